"""Two matrices whose panels lie in turn: in every encoding the numbers they have apart; room that fits no other."""

from __future__ import annotations

import numpy as np
import pytest

from cpuinfer import _core, formats
from cpuinfer.errors import InvalidRequest
from cpuinfer.formats.canonical import TableRows
from reencoded_gguf import quantize

ROWS, K = 40, 512
RNG = np.random.default_rng(8)
VALUES = RNG.standard_normal((ROWS, K), dtype=np.float32)
X = RNG.standard_normal((9, K), dtype=np.float32)


def filled(encoding: str, **place: object) -> _core.PackedMatrix:
    form = formats.find(encoding)
    bias = getattr(form, "has_bias", False)
    matrix = _core.PackedMatrix(form.layout, ROWS, K, zero=getattr(form, "zero", 0), has_bias=bias, **place)
    form.decode(quantize(VALUES, encoding).view(np.uint8), K).pack(matrix, 0)
    return matrix


@pytest.mark.parametrize("encoding", formats.supported())
def test_a_matrix_beside_another_has_the_numbers_it_has_alone(encoding: str) -> None:
    alone, other = filled(encoding), filled("Q4_1")
    first = filled(encoding, room=other.panel_bytes)
    second = filled("Q4_1", beside=first)
    third = filled("Q4_1", room=alone.panel_bytes)
    fourth = filled(encoding, beside=third)
    for apart, paired in ((alone, first), (other, second), (other, third), (alone, fourth)):
        assert paired.bytes == apart.bytes
        np.testing.assert_array_equal(paired.read_row(ROWS - 1), apart.read_row(ROWS - 1))
        for rows in (1, 9):
            np.testing.assert_array_equal(_core.matmul(paired, X[:rows]), _core.matmul(apart, X[:rows]))


def test_a_table_beside_another_has_the_numbers_it_has_alone() -> None:
    table = np.linspace(-1, 1, 16, dtype=np.float32)
    rows = TableRows(RNG.integers(0, 16, (ROWS, K), dtype=np.uint8), np.ones((ROWS, K // 64), np.float16), table, 64)
    alone = _core.PackedMatrix("table4", ROWS, K, group=64, table=table)
    paired = _core.PackedMatrix("table4", ROWS, K, group=64, table=table, beside=filled("Q8_0", room=alone.panel_bytes))
    for matrix in (alone, paired):
        rows.pack(matrix, 0)
    np.testing.assert_array_equal(_core.matmul(paired, X), _core.matmul(alone, X))


def test_room_is_for_as_many_panels_of_that_size() -> None:
    first = filled("Q4_0", room=filled("Q8_0").panel_bytes)
    with pytest.raises(InvalidRequest, match="3 panels of 5120 bytes beside 3 with room for 8704 behind each"):
        filled("Q4_1", beside=first)
    with pytest.raises(InvalidRequest, match="1 panels of 8704 bytes beside 3 with room for 8704 behind each"):
        _core.PackedMatrix("int8", 16, K, zero=128, beside=first)
    with pytest.raises(InvalidRequest, match="room of -1 bytes"):
        filled("Q4_0", room=-1)
