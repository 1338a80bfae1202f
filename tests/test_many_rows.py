"""A product of many rows is, bit for bit, that of each row alone: for every layout and kernel set."""

from __future__ import annotations

import numpy as np
import pytest

from cpuinfer import _core
from reencoded_gguf import quantize
from test_kernels import EACH_ISA
from tiny_gguf import SCALES, random_blocks

N, K = 21, 512
BLOCKS = ("Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4", "TQ1_0", "TQ2_0")
BLOCKS += ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S", "IQ1_M")
NF4 = np.linspace(-1, 1, 16)


def matrix(layout: str, random: np.random.Generator) -> _core.PackedMatrix:
    if layout.upper() in BLOCKS:
        made = _core.PackedMatrix(layout, N, K)
        kind = layout.upper()
        values = random.standard_normal((N, K), dtype=np.float32)
        made.set_block_rows(0, random_blocks(kind, (N, K), random) if kind in SCALES else quantize(values, kind))
        return made
    if layout == "f32":
        made = _core.PackedMatrix(layout, N, K)
        made.set_float_rows(0, random.standard_normal((N, K), dtype=np.float32))
        return made
    if layout in ("f16", "bf16"):
        made = _core.PackedMatrix(layout, N, K)
        numbers = random.integers(0, 0x3C00, (N, K), dtype=np.uint16)  # finite, as either kind of half
        made.set_float_rows(0, numbers.view(np.float16) if layout == "f16" else numbers)
        return made
    group = 64
    table = NF4 if layout == "table4" else None
    made = _core.PackedMatrix(layout, N, K, group=group, table=table)
    codes = random.integers(0, 256 if layout == "int8" else 16, (N, K), dtype=np.uint8)
    made.set_integer_rows(0, codes, random.standard_normal((N, K // group)).astype(np.float16))
    return made


@pytest.mark.parametrize("isa", EACH_ISA)
@pytest.mark.parametrize("layout", ["int4", "int8", "table4", "f32", "f16", "bf16", *map(str.lower, BLOCKS)])
def test_rows_do_not_depend_on_their_company(layout: str, isa: str) -> None:
    random = np.random.default_rng(5)
    weights = matrix(layout, random)
    x = random.standard_normal((130, K), dtype=np.float32)
    alone = np.concatenate([_core.matmul(weights, x[row : row + 1], isa) for row in range(len(x))])
    assert np.isfinite(alone).all()
    for rows in (2, 7, 8, 9, 17, 33, 63, 64, 65, 130):
        np.testing.assert_array_equal(_core.matmul(weights, x[:rows], isa), alone[:rows])
