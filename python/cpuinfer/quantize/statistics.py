"""What a weight's inputs are like: sums over calibration tokens, from which methods know what rounding costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cpuinfer.errors import InvalidRequest, NumericalError

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
PANEL = 1024
"""Rows of the Hessian that are added to at once: bounds what a chunk needs beside it."""
TOKENS = 4096
"""Tokens multiplied at once: a sum of so many products in float32 is off by about 1e-6 of its magnitude."""


@dataclass(slots=True, kw_only=True)
class Statistics:
    """Sums over tokens, added to chunk by chunk; whole at every moment, and saved and loaded as arrays.

    Chunks change nothing but the order of sums: the sample, too, is the same however the tokens were cut.
    """

    tokens: int
    square_sum: Doubles
    """[k]."""
    magnitude_sum: Doubles
    """[k]."""
    triangle: npt.NDArray[np.floating] | None
    """[k, k] of float32 or float64: sum of x x^T; of the panels above the diagonal only what `hessian` mirrored."""
    sample: Floats
    """[at most capacity, k]: inputs drawn without replacement, in an order that is random too."""
    priorities: npt.NDArray[np.uint64]
    """Of the sample's rows, descending."""
    capacity: int
    seed: int

    @classmethod
    def empty(
        cls,
        k: int,
        *,
        hessian: bool = True,
        capacity: int = 0,
        seed: int = 0,
        dtype: type[np.float32] | type[np.float64] = np.float32,
    ) -> Statistics:
        """Of no tokens yet.  capacity: rows of the sample; dtype: of the Hessian, which has k * k numbers."""
        if k < 1 or capacity < 0:
            raise InvalidRequest(f"statistics of {k} inputs with {capacity} samples: expected at least 1 and 0")
        return cls(
            tokens=0,
            square_sum=np.zeros(k),
            magnitude_sum=np.zeros(k),
            triangle=np.zeros((k, k), dtype) if hessian else None,
            sample=np.empty((0, k), np.float32),
            priorities=np.empty(0, np.uint64),
            capacity=capacity,
            seed=seed,
        )

    @property
    def k(self) -> int:
        """Inputs."""
        return len(self.square_sum)

    @property
    def mean_square(self) -> Floats:
        """[k]: of each input."""
        return (self.square_sum / self._some_tokens()).astype(np.float32)

    @property
    def mean_magnitude(self) -> Floats:
        """[k]: of each input."""
        return (self.magnitude_sum / self._some_tokens()).astype(np.float32)

    @property
    def hessian(self) -> npt.NDArray[np.floating]:
        """[k, k], symmetric: the sum over tokens of x x^T.  A view: valid until more is added."""
        self._some_tokens()
        if self.triangle is None:
            raise InvalidRequest("statistics: no Hessian was accumulated")
        for begin in range(0, self.k, PANEL):
            end = begin + PANEL
            self.triangle[:begin, begin:end] = self.triangle[begin:end, :begin].T
        return self.triangle

    def add(self, x: npt.NDArray[np.floating]) -> None:
        """More inputs, [tokens, k].  NumericalError where one is not finite; then nothing is added."""
        if x.ndim != 2 or x.shape[1] != self.k:
            raise InvalidRequest(f"inputs: shape {x.shape}, expected ('*', {self.k})")
        x = x.astype(np.float32, copy=False)
        squares = np.einsum("ij,ij->j", x, x, dtype=np.float64)
        if not np.isfinite(squares).all():
            at = int(np.argmin(np.isfinite(squares)))
            raise NumericalError(f"inputs: column {at} holds NaN or infinity")
        self.square_sum += squares
        self.magnitude_sum += np.abs(x).sum(axis=0, dtype=np.float64)
        if self.triangle is not None:
            for begin in range(0, len(x), TOKENS):
                _add_products(self.triangle, x[begin : begin + TOKENS])
        if self.capacity:
            self._draw(x)
        self.tokens += len(x)

    def arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """The state, to be saved; `of_arrays` goes on from it."""
        state: dict[str, npt.NDArray[np.generic]] = {
            "counts": np.array([self.tokens, self.capacity, self.seed], np.int64),
            "square_sum": self.square_sum,
            "magnitude_sum": self.magnitude_sum,
            "sample": self.sample,
            "priorities": self.priorities,
        }
        return state if self.triangle is None else state | {"triangle": self.triangle}

    @classmethod
    def of_arrays(cls, state: Mapping[str, npt.NDArray[np.generic]]) -> Statistics:
        """From what `arrays` gave."""
        tokens, capacity, seed = (int(count) for count in state["counts"])
        triangle = state.get("triangle")
        double = triangle is not None and triangle.dtype == np.float64
        return cls(
            tokens=tokens,
            square_sum=np.array(state["square_sum"], np.float64),
            magnitude_sum=np.array(state["magnitude_sum"], np.float64),
            triangle=None if triangle is None else np.array(triangle, np.float64 if double else np.float32),
            sample=np.array(state["sample"], np.float32),
            priorities=np.array(state["priorities"], np.uint64),
            capacity=capacity,
            seed=seed,
        )

    def _some_tokens(self) -> int:
        if not self.tokens:
            raise InvalidRequest("statistics: of no tokens, expected at least one")
        return self.tokens

    def _draw(self, x: Floats) -> None:
        """Keep the tokens of largest priority, a hash of their index: a uniform draw without replacement."""
        priorities = _hashes(self.tokens, len(x), self.seed)
        if len(self.priorities) == self.capacity:
            better = priorities > self.priorities[-1]
            x, priorities = x[better], priorities[better]
        both = np.concatenate([self.priorities, priorities])
        kept = np.argsort(~both, kind="stable")[: self.capacity]
        self.sample, self.priorities = np.concatenate([self.sample, x])[kept], both[kept]


def _add_products(triangle: npt.NDArray[np.floating], x: Floats) -> None:
    for begin in range(0, len(triangle), PANEL):
        panel = x[:, begin : begin + PANEL]
        triangle[begin : begin + PANEL, : begin + PANEL] += panel.T @ x[:, : begin + PANEL]


def _hashes(begin: int, count: int, seed: int) -> npt.NDArray[np.uint64]:
    """SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) of the numbers from `begin` on."""
    mixed = np.arange(begin + 1, begin + 1 + count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed += np.full(1, seed % (1 << 32), np.uint64) * np.uint64(0xD1342543DE82EF95)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    hashes: npt.NDArray[np.uint64] = mixed ^ (mixed >> np.uint64(31))
    return hashes
