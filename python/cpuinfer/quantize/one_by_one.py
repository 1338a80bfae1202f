"""Matrices rounded one by one, whatever becomes of others, kept on disk: they are read to be judged and written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cpuinfer.formats.canonical import Rows
from cpuinfer.loader import Blueprint
from cpuinfer.quantize.forward import Floats
from cpuinfer.quantize.outcome import Outcome, Progress, outcome
from cpuinfer.quantize.quantised import squares
from cpuinfer.quantize.recipe import FLOATS, Recipe
from cpuinfer.quantize.result import plain
from cpuinfer.quantize.stages import cut
from cpuinfer.quantize.work import Work, row_arrays
from cpuinfer.weight import Weight
from cpuinfer.weights import concatenated

PIECE = 1 << 20
"""Weights that a thread rounds at once."""


@dataclass(slots=True, kw_only=True)
class OneByOne:
    """The run of a recipe."""

    blueprint: Blueprint
    recipe: Recipe
    work: Work
    threads: int
    counted: Mapping[str, Floats] = field(default_factory=dict)
    """By name [k]: what the square of an error counts in each column, of matrices of which that is known."""
    progress: Progress = lambda _what, _share: None

    def run(self) -> Outcome:
        """Go on from what is finished, to the end."""
        stages = cut(self.blueprint.graph)
        seen: set[str] = set()
        with ThreadPoolExecutor(self.threads) as executor:
            for i, stage in enumerate(stages):
                mine = [name for name in stage.weights() if name not in seen and self._is_rounded(name)]
                seen |= set(mine)
                if i >= self.work.finished():
                    self.progress(stage.name, i / len(stages))
                    arrays = [self._arrays(name, executor) for name in mine]
                    self.work.save(i, {key: array for each in arrays for key, array in each.items()}, {})
        self.progress("layers", 1.0)
        return outcome(self.blueprint, self.recipe, self.work, stages)

    def _is_rounded(self, name: str) -> bool:
        return self.recipe.encodings.get(name, "F32") not in FLOATS

    def _arrays(self, name: str, executor: ThreadPoolExecutor) -> dict[str, npt.NDArray[np.generic]]:
        source, counted = self.blueprint.source.weights[name], self.counted.get(name)
        weight = plain(source, self.recipe.encodings[name], self.recipe.method, counted)
        n, k = source.shape
        step = n if source.whole else max(1, PIECE // k)

        def part(begin: int) -> tuple[Rows, float, float]:
            end = min(begin + step, n)
            rows = weight.rows(begin, end)
            lost, total = _errors(source, rows, begin, end, counted)
            return rows, lost, total

        found = list(executor.map(part, range(0, n, step)))
        arrays = row_arrays(f"{name}/", concatenated([rows for rows, _, _ in found]))
        if counted is not None:
            lost, total = math.fsum(each[1] for each in found), math.fsum(each[2] for each in found)
            arrays[f"{name}/error"] = np.array(lost / total if total else 0.0)
        return arrays


def _errors(source: Weight, rows: Rows, begin: int, end: int, counted: Floats | None) -> tuple[float, float]:
    """The squares of what rounding changed and of what was, each column counted so."""
    if counted is None:
        return 0.0, 0.0
    before = source.rows(begin, end).to_float(np.float32)
    return squares(before - rows.to_float(np.float32), counted), squares(before, counted)
