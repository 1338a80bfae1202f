"""Gemma 3 with an image encoder: its text part, which is gemma3_text.  The encoder is left out."""

from __future__ import annotations

from cpuinfer.models import gemma3_text

HF_PART = "text_config"
_ENCODER = ("vision_tower.", "multi_modal_projector.")
HF_LEFT_OUT = (*_ENCODER, *(f"model.{part}" for part in _ENCODER))
_OURS = gemma3_text.GGUF_NAMES.values()
HF_NAMES = {
    **{f"language_model.{name}": name for name in _OURS},
    **{name.replace("model.", "model.language_model.", 1): name for name in _OURS},  # as transformers names them now
}
HF_DEFAULTS = gemma3_text.HF_DEFAULTS
OPTIONS = gemma3_text.OPTIONS
build = gemma3_text.build
