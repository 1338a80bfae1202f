"""The numbers a weight may take: schemes of integers, of tables and of GGUF's block types, found by name.

value[r, c] = scale[r, c // group] * levels[code[r, c]] + offset[r, c // group]
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from cpuinfer.errors import InvalidRequest, NumericalError, UnsupportedFormat

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from cpuinfer.formats.canonical import Rows

WHOLE_ROW = -1
"""The group of a scheme in which all of a row shares one scale."""
GROUPS = (32, 64, 128, 256, WHOLE_ROW)
BITS = range(2, 9)
TABLE_NAMES = ("nf4", "fp4", "af4", "iq4_nl", "dynamic4")
BLOCK_NAMES = (
    "Q2_K",
    "Q3_K",
    "Q4_0",
    "Q4_1",
    "Q4_K",
    "Q5_0",
    "Q5_1",
    "Q5_K",
    "Q6_K",
    "Q8_0",
    "IQ4_NL",
    "IQ4_XS",
)


@dataclass(frozen=True, slots=True)
class Fit:
    """The scales and offsets of a matrix's groups, as what is stored says them."""

    scale: npt.NDArray[np.float32]
    """[n, k / group]: exactly what a reader of the format computes."""
    offset: npt.NDArray[np.float32] | None = None
    """[n, k / group], or None where the scheme has none."""
    stored: Any = None
    """What else the scheme needs to write rows: for the scheme alone."""


class Scheme(Protocol):
    """A set of numbers that the weights of a group may take, and how they are stored.

    Every method takes and gives whole rows: w float32 [n, k], k a multiple of `block`.  Several threads may call.
    """

    @property
    def name(self) -> str:
        """As ``find`` takes it."""

    @property
    def levels(self) -> npt.NDArray[np.float32]:
        """[codes], ascending: what each code stands for."""

    @property
    def group(self) -> int:
        """Neighbours along a row that share scale and offset; WHOLE_ROW: all of it."""

    @property
    def block(self) -> int:
        """Neighbours that are fitted together, a multiple of `group`; WHOLE_ROW: all of a row."""

    @property
    def has_offset(self) -> bool:
        """Whether groups have offsets."""

    @property
    def bits_per_weight(self) -> float:
        """Scales and offsets counted, but those of whole rows."""

    def fit(
        self, w: npt.NDArray[np.float32], importance: npt.NDArray[np.floating] | None = None, *, search: bool = True
    ) -> Fit:
        """Scales and offsets for weights.

        importance: [k] or [n, k], none negative: what the square of each error counts; None: all alike.
        search: for the least weighted error among a finite number of candidates; else as the format's reference
        rounds to nearest.  Raises NumericalError, naming the row, for weights that are not finite or too large.
        """

    def represent(self, scale: npt.NDArray[np.floating], offset: npt.NDArray[np.floating] | None = None) -> Fit:
        """What can be stored nearest to given scales and offsets, [n, k / group] each."""

    def codes(self, w: npt.NDArray[np.float32], fit: Fit) -> npt.NDArray[np.uint8]:
        """[n, k]: the codes of the levels nearest to weights; where the scale is 0, of the level nearest to 0."""

    def values(self, codes: npt.NDArray[np.uint8], fit: Fit) -> npt.NDArray[np.float32]:
        """[n, k]: what codes stand for."""

    def rows(self, codes: npt.NDArray[np.uint8], fit: Fit) -> Rows:
        """Rows as files hold them and kernels take them; UnsupportedFormat for schemes that no kernel reads."""


def find(name: str) -> Scheme:
    """The scheme of a name: "Q4_K", "int4:g128:asym", "nf4:g64"; UnsupportedFormat says what there is.

    What is left out of "int4:g32:sym" is as in it; "g-1" is one scale a row.
    """
    if name in BLOCK_NAMES:
        from cpuinfer.quantize.blocks import BlockScheme

        return BlockScheme.of(name)
    integer = re.fullmatch(r"int([2-8])(?::g(32|64|128|256|-1))?(?::(sym|asym))?", name)
    if integer:
        from cpuinfer.quantize.grids import IntegerScheme

        bits, group, kind = integer.groups(default="")
        return IntegerScheme(bits=int(bits), group=int(group or 32), has_offset=kind == "asym")
    table = re.fullmatch(rf"({'|'.join(TABLE_NAMES)})(?::g(32|64|128|256|-1))?", name)
    if table:
        from cpuinfer.quantize.tables import TableScheme

        kind, group = table.groups(default="")
        return TableScheme.named(kind, group=int(group or 64))
    raise UnsupportedFormat(
        f"scheme {name!r}: expected {', '.join(BLOCK_NAMES)}, or int2 to int8 with :g32, :g64, :g128, :g256 or :g-1 "
        f"and :sym or :asym, or {', '.join(TABLE_NAMES)} with a group"
    )


def in_groups(array: npt.NDArray[np.float32], group: int, *, what: str = "weights") -> npt.NDArray[np.float32]:
    """[n, k] seen as [n, k / group, group]; InvalidRequest where the rows do not divide."""
    if array.ndim != 2 or not array.shape[1] or (group != WHOLE_ROW and array.shape[1] % group):
        raise InvalidRequest(f"{what}: shape {array.shape}, expected two dimensions, rows a multiple of {group}")
    n, k = array.shape
    groups = 1 if group == WHOLE_ROW else k // group
    return array.reshape(n, groups, k // groups)


def counted(importance: npt.NDArray[np.floating] | None, shape: tuple[int, ...]) -> npt.NDArray[np.float32] | None:
    """Importance as contiguous float32; InvalidRequest for another shape, numbers below 0 or not finite."""
    import numpy as np

    if importance is None:
        return None
    if importance.shape not in (shape, shape[1:]):
        raise InvalidRequest(f"importance: shape {importance.shape}, expected {shape[1:]} or {shape}")
    given = np.ascontiguousarray(importance, np.float32)
    if not (np.isfinite(given).all() and (given >= 0).all()):
        raise InvalidRequest("importance: holds NaN, infinity or a number below 0")
    return given


def halved(scale: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """[n, groups] rounded to fp16, as float32; NumericalError naming the row of one that is not finite or too large."""
    import numpy as np

    with np.errstate(over="ignore", under="ignore"):
        rounded: npt.NDArray[np.float32] = scale.astype(np.float16).astype(np.float32)
    wrong = ~np.isfinite(rounded).all(axis=1)
    if wrong.any():
        row = int(wrong.argmax())
        raise NumericalError(f"row {row}: holds NaN, infinity or a number too large for fp16 scales")
    return rounded
