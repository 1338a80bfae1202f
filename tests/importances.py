"""How much the columns of a model's matrices matter: the mean squares of what they are multiplied by in a text.

Where inputs are uncorrelated, errors e of a row cost E[(e x)^2] = sum of e^2 E[x^2] in what it gives.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from cpuinfer import loader
from cpuinfer.reference import Reference

TEXT = """\
A letter to a friend who plans a garden. Start with the soil, since everything else follows from it. Dig a small hole
after rain and see how long the water stands. If it is gone within an hour, the ground is light, and it will want
compost each spring; if it is there the next day, plant on raised beds or choose what likes wet feet, such as willow,
mint and iris.

Question: what is the sum of 12 and 30? Answer: 42. def add(a, b): return a + b

In 1821 the physicist heated two metals joined at their ends and saw the needle of a compass turn. He thought of
magnetism; others soon understood that an electric current flowed. Today the same effect measures temperatures in
ovens, engines and space probes.
"""
"""Not of the one that perplexities are taken on."""


def measure(path: Path) -> dict[str, npt.NDArray[np.float32]]:
    """[k] by the file's names of its matrices, as the interpreter in NumPy multiplies them."""
    blueprint = loader.open_model(path)
    found = {}

    def see(x: npt.NDArray[np.float64], name: str) -> npt.NDArray[np.float64]:
        found[blueprint.tensor(name).name] = np.mean(x * x, axis=0).astype(np.float32)
        return x

    reference = Reference(blueprint.graph, blueprint.weight, activation=see, dtype=np.float32)
    reference.logits(blueprint.source.tokenizer().encode(TEXT))
    return found
