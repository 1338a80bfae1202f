"""Perplexity of one GGUF model written in every encoding, as a Markdown table.

    PYTHONPATH=tests python benchmarks/perplexity.py MODEL.gguf        (needs the extra `test`; SmolLM2: five minutes)

`ffn_down` of every layer is written in each encoding, the rest stays; then, in encodings of blocks of 32, every matrix.
The loss is the difference of the mean log probability of a token of the tests' text to F16, in nats, with the standard
error of that mean: both have read the same tokens.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Type

import importances
from cpuinfer import LLM, formats
from reencoded_gguf import Reencoder, bits
from test_perplexity import ENGLISH, TERNARY, lost

DOWN = r"ffn_down"


def measure(reencoder: Reencoder, encodings: list[str], only: str) -> dict[str, npt.NDArray[np.float64]]:
    """Log probabilities of the text's tokens but the first."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for encoding in encodings:
            with LLM(reencoder.write(Path(folder) / "model.gguf", encoding, only=only)) as model:
                found[encoding] = np.array(model.score(ENGLISH).logprobs[1:], np.float64)
    return found


def table(logprobs: dict[str, npt.NDArray[np.float64]]) -> str:
    """Most bits first."""
    lines = ["| encoding | bits a weight | perplexity | loss | standard error |", "|---|--:|--:|--:|--:|"]
    for encoding in sorted(logprobs, key=bits, reverse=True):
        values = logprobs[encoding]
        loss = logprobs["F16"] - values
        error = loss.std(ddof=1) / np.sqrt(loss.size)
        numbers = f"{np.exp(-values.mean()):.2f} | {loss.mean():.4f} | {error:.4f}"
        lines.append(f"| {encoding} | {bits(encoding):.3f} | {numbers} |")
    return "\n".join(lines)


def disorder(logprobs: dict[str, npt.NDArray[np.float64]]) -> str:
    """The pair of which fewer bits lose less by the most standard errors."""
    pairs = itertools.combinations(sorted(set(logprobs) - set(TERNARY), key=bits), 2)
    lead, fewer, more = max(
        (lost(logprobs[fewer], logprobs[more]), fewer, more) for fewer, more in pairs if bits(fewer) < bits(more)
    )
    return f"Most out of order: {fewer} before {more}, by {lead:.1f} standard errors."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    model = parser.parse_args().model
    reencoder = Reencoder(model, importances.measure(model))
    encodings = sorted(formats.supported())
    small = [name for name in encodings if gguf.GGML_QUANT_SIZES[Type[name]][0] <= 32]
    for what, names, only in (("ffn_down of every layer", encodings, DOWN), ("Every matrix", small, "")):
        logprobs = measure(reencoder, names, only)
        print(f"{what}:\n\n{table(logprobs)}\n\n{disorder(logprobs)}\n")


if __name__ == "__main__":
    main()
