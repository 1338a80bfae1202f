"""cpuinfer: run language models on the CPU you already own."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cpuinfer.errors import (
        Cancelled,
        CheckpointError,
        ContextFull,
        CpuInferError,
        DownloadError,
        InvalidRequest,
        MemoryLimit,
        ModelNotFound,
        NumericalError,
        OutputError,
        UnsupportedCpu,
        UnsupportedFormat,
        UnsupportedModel,
    )
    from cpuinfer.llm import LLM
    from cpuinfer.results import Chunk, Completion, Score, Timings, TokenLogprob
    from cpuinfer.sampling import SamplingParams

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "Cancelled",
    "CheckpointError",
    "Chunk",
    "Completion",
    "ContextFull",
    "CpuInferError",
    "DownloadError",
    "InvalidRequest",
    "MemoryLimit",
    "ModelNotFound",
    "NumericalError",
    "OutputError",
    "SamplingParams",
    "Score",
    "Timings",
    "TokenLogprob",
    "UnsupportedCpu",
    "UnsupportedFormat",
    "UnsupportedModel",
    "__version__",
]

_HOME = {
    "LLM": "llm",
    "SamplingParams": "sampling",
    **dict.fromkeys(("Chunk", "Completion", "Score", "Timings", "TokenLogprob"), "results"),
}
"""The module of each public name; all others are of `errors`."""


def __getattr__(name: str) -> object:
    """Import a public name when it is first used: importing cpuinfer itself does no work."""
    if name not in __all__:
        msg = f"module 'cpuinfer' has no attribute {name!r}"
        raise AttributeError(msg)
    value = getattr(importlib.import_module(f"cpuinfer.{_HOME.get(name, 'errors')}"), name)
    globals()[name] = value
    return value
