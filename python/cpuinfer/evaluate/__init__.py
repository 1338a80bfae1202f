"""Measures of a model: perplexity, divergence from another model, multiple choice, and whether two results differ.

>>> from cpuinfer import LLM
>>> from cpuinfer.evaluate import perplexity
>>> perplexity(LLM("model.gguf", deterministic=True), Path("text.txt")).perplexity  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cpuinfer.evaluate.comparison import Comparison, Difference, compare
    from cpuinfer.evaluate.estimates import Estimate
    from cpuinfer.evaluate.kullback_leibler import Divergence, divergence, save_logits
    from cpuinfer.evaluate.likelihood import Perplexity, perplexity
    from cpuinfer.evaluate.multiple_choice import Accuracy, Choices, choices
    from cpuinfer.evaluate.questions import Question, read_questions
    from cpuinfer.evaluate.records import read_record, write_record

_HOME = {
    **dict.fromkeys(("Comparison", "Difference", "compare"), "comparison"),
    "Estimate": "estimates",
    **dict.fromkeys(("Divergence", "divergence", "save_logits"), "kullback_leibler"),
    **dict.fromkeys(("Perplexity", "perplexity"), "likelihood"),
    **dict.fromkeys(("Accuracy", "Choices", "choices"), "multiple_choice"),
    **dict.fromkeys(("Question", "read_questions"), "questions"),
    **dict.fromkeys(("read_record", "write_record"), "records"),
}
"""The module of each public name."""

__all__ = [
    "Accuracy",
    "Choices",
    "Comparison",
    "Difference",
    "Divergence",
    "Estimate",
    "Perplexity",
    "Question",
    "choices",
    "compare",
    "divergence",
    "perplexity",
    "read_questions",
    "read_record",
    "save_logits",
    "write_record",
]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    if name not in __all__:
        msg = f"module 'cpuinfer.evaluate' has no attribute {name!r}"
        raise AttributeError(msg)
    value = getattr(importlib.import_module(f"cpuinfer.evaluate.{_HOME[name]}"), name)
    globals()[name] = value
    return value
