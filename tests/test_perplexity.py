"""SmolLM2 in every encoding a GGUF file can have: all run, and what they lose goes by their bits."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import importances
from cpuinfer import LLM, formats
from reencoded_gguf import Reencoder, bits

ENGLISH = """\
The harbour town had three bakeries, and nobody could remember a time when there had been fewer. The oldest stood at the
foot of the hill, where the road turns away from the water, and its owner opened the shutters every morning before the
first boats came in. Fishermen bought bread there, still warm, and talked about the weather. In winter the windows were
white with steam, so that from the street one could see only the light of the lamps and the shape of people moving.

When the railway came, the town changed. Visitors arrived on Saturdays, walked along the beach, looked at the lighthouse
and went home on Sunday evening with small parcels of biscuits under their arms. The second bakery lived well on
those biscuits. The third sold cakes for weddings, and since most people marry in summer, it closed from November to the
end of February. Each of the three families believed that the other two would not last for another ten years.

They were all mistaken. The railway closed first, on a wet morning in October, and the station became a library. The
teacher who looked after the books bought her rolls in each bakery in turn, one week after another, and never said
which she liked best. Children who had learned to read there later wrote to her from other towns, and nearly every
letter asked whether the bread was still warm at six.
"""

DOWN = r"blk\.(\d*[05]|2|11|28|29)\.ffn_down"
"""The only matrices here whose rows divide into blocks of 256: of every fifth layer, and the four with outliers of up
to 30 times the others' spread, which meet inputs as far out.  `benchmarks/perplexity.py` takes all layers."""
TERNARY = ("TQ1_0", "TQ2_0")
"""For models trained with weights of -1, 0 and 1; of others they leave little."""
ENCODINGS = (
    *("F32", "BF16", "Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0", "Q3_K", "Q2_K", "MXFP4"),
    *("IQ4_NL", "IQ4_XS", "IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S", *TERNARY),
)
DEVIATIONS = 3
"""Standard errors that a mean over the text's tokens may be off by: once in 370."""

Array = npt.NDArray[np.float64]


@pytest.fixture(scope="module")
def reencoder(real_model: Path) -> Reencoder:
    return Reencoder(real_model, importances.measure(real_model))


@pytest.fixture(scope="module")
def logprobs(reencoder: Reencoder, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Array]:
    """Of the text's tokens but the first, by the encoding of a few matrices, all multiplied alike: without tile units,
    which leave fp32 ones to others."""
    path = tmp_path_factory.mktemp("encodings") / "model.gguf"
    found = {}
    for encoding in ("F16", *ENCODINGS):
        with LLM(reencoder.write(path, encoding, only=DOWN), deterministic=True) as model:
            found[encoding] = np.array(model.score(ENGLISH).logprobs[1:], np.float64)
    return found


def lost(better: Array, worse: Array) -> float:
    """By the mean token, in standard errors of the mean: both have read the same tokens."""
    difference = better - worse
    return float(difference.mean() / (difference.std(ddof=1) / np.sqrt(difference.size)))


def test_every_encoding_there_is_runs(logprobs: dict[str, Array]) -> None:
    assert set(logprobs) == set(formats.supported())
    for encoding, values in logprobs.items():
        assert np.isfinite(values).all(), encoding
        assert (values <= 0).all(), encoding


def test_fewer_bits_never_lose_less(logprobs: dict[str, Array]) -> None:
    encodings = sorted(set(logprobs) - set(TERNARY), key=bits)
    for fewer, more in itertools.combinations(encodings, 2):
        if bits(fewer) < bits(more):
            assert lost(logprobs[more], logprobs[fewer]) > -DEVIATIONS, f"{fewer} beats {more}"


def test_a_whole_bit_less_is_felt_below_four(logprobs: dict[str, Array]) -> None:
    for family in (("IQ1_S", "IQ2_XXS", "IQ3_XXS", "IQ4_XS"), ("Q2_K", "Q3_K")):
        for fewer, more in itertools.pairwise(family):
            assert logprobs[fewer].mean() < logprobs[more].mean(), f"{fewer} beats {more}"
    for encoding in ("Q2_K", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S", *TERNARY):
        assert lost(logprobs["F16"], logprobs[encoding]) > DEVIATIONS, encoding


def test_six_bits_and_more_lose_nothing_that_shows(logprobs: dict[str, Array]) -> None:
    for encoding in ("F32", "BF16", "Q8_0", "Q6_K"):
        assert abs(lost(logprobs["F16"], logprobs[encoding])) < DEVIATIONS, encoding


def test_perplexity_of_the_whole_model_grows_as_bits_are_taken_away(reencoder: Reencoder, tmp_path: Path) -> None:
    found = {}
    for encoding in ("F16", "Q8_0", "Q5_0", "Q4_0"):
        with LLM(reencoder.write(tmp_path / "model.gguf", encoding), deterministic=True) as model:
            found[encoding] = model.score(ENGLISH).perplexity
    assert found["Q8_0"] == pytest.approx(found["F16"], rel=0.01)
    assert found["F16"] < 0.99 * found["Q5_0"] < 0.99**2 * found["Q4_0"], found
