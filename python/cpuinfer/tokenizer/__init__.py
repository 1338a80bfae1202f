"""Text to token ids and back, from GGUF metadata or the files of a Hugging Face folder."""

from __future__ import annotations

from cpuinfer.tokenizer.base import Tokenizer, TokenizerWarning

__all__ = ["Tokenizer", "TokenizerWarning"]
