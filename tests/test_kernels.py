"""The kernels through Python: exact integers, derived bounds against float64, GGUF's encodings, exact errors."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from cpuinfer import _core, formats
from cpuinfer.errors import InvalidRequest, UnsupportedCpu, UnsupportedFormat
from cpuinfer.formats.canonical import IntegerRows, TableRows

ISAS = [entry["name"] for entry in _core.kernel_sets() if entry["usable"]]
EACH_ISA = [
    pytest.param(
        entry["name"], marks=pytest.mark.skipif(not entry["usable"], reason=f"{entry['name']}: {entry['missing']}")
    )
    for entry in _core.kernel_sets()
]
LAST_CODE = {"int4": 15, "int8": 255}
U = 2.0**-24  # unit roundoff of fp32


def gamma(n: int) -> float:
    """The relative error of n fp32 roundings in a row: n u / (1 - n u)."""
    return n * U / (1 - n * U)


def packed(
    encoding: str,
    codes: NDArray[np.uint8],
    scale: NDArray[np.float16],
    bias: NDArray[np.float16] | None = None,
    *,
    zero: int = 0,
) -> _core.PackedMatrix:
    matrix = _core.PackedMatrix(encoding, *codes.shape, zero=zero, has_bias=bias is not None)
    matrix.set_integer_rows(0, codes, scale, bias)
    return matrix


def random_matrix(
    rng: np.random.Generator, encoding: str, n: int, k: int
) -> tuple[NDArray[np.uint8], NDArray[np.float16], NDArray[np.float16]]:
    codes = rng.integers(0, LAST_CODE[encoding] + 1, (n, k), dtype=np.uint8)
    scale = rng.normal(size=(n, k // 32)).astype(np.float16)
    return codes, scale, rng.normal(size=(n, k // 32)).astype(np.float16)


@pytest.mark.parametrize("isa", EACH_ISA)
@pytest.mark.parametrize(("encoding", "zero"), [("int4", 0), ("int4", 8), ("int8", 0), ("int8", 128), ("int8", 255)])
@pytest.mark.parametrize("shape", [(1, 32, 1), (15, 64, 2), (17, 96, 3), (33, 224, 9), (576, 32, 8)])
def test_integer_products_equal_int32_arithmetic(
    isa: str, encoding: str, zero: int, shape: tuple[int, int, int]
) -> None:
    """With weight scales of 1 and a 127 in every group of x, the scales are 1 and the fp32 sums below 2^24 are exact.

    |sum| <= k 255 127 < 2^24 for k <= 512.
    """
    n, k, m = shape
    rng = np.random.default_rng(n * k + m)
    codes = rng.integers(0, LAST_CODE[encoding] + 1, (n, k), dtype=np.uint8)
    codes[0] = LAST_CODE[encoding]
    x = rng.integers(-127, 128, (m, k))
    x[:, ::32] = 127
    x[-1] = -127
    result = _core.matmul(
        packed(encoding, codes, np.ones((n, k // 32), np.float16), zero=zero), x.astype(np.float32), isa=isa
    )
    np.testing.assert_array_equal(result, (x.astype(np.int32) @ (codes.astype(np.int32) - zero).T).astype(np.float32))


@pytest.mark.parametrize("isa", EACH_ISA)
@pytest.mark.parametrize("encoding", ["int4", "int8"])
@pytest.mark.parametrize("has_bias", [False, True])
def test_scaled_products_are_within_the_rounding_of_their_definition(isa: str, encoding: str, has_bias: bool) -> None:
    """Bound: per group one product of scales (1 rounding), then one fma (1), and with a bias two more of each.

    The first group's term thus passes through at most 1 + groups (or 1 + 2 groups) roundings, later ones through fewer:
    |error| <= gamma(1 + 2 groups) sum |terms|.
    """
    rng = np.random.default_rng(7)
    n, k, zero = 50, 320, 8
    codes, scale, bias = random_matrix(rng, encoding, n, k)
    x = rng.normal(size=(11, k)).astype(np.float32)
    x_codes, x_scale, x_sum = _core.quantize_rows(x, isa=isa)
    halves = x_codes.reshape(11, -1, 2, 16).sum(axis=3, dtype=np.int32)
    np.testing.assert_array_equal(x_sum.reshape(halves.shape), np.stack([halves.sum(axis=2), halves[:, :, 0]], axis=2))
    w = (codes.astype(np.int64) - zero).reshape(n, -1, 32)
    dots = np.einsum("ngi,mgi->mng", w, x_codes.astype(np.int64).reshape(11, -1, 32))
    terms = [dots * scale.astype(np.float64) * x_scale[:, None, :].astype(np.float64)]
    if has_bias:
        terms.append(bias.astype(np.float64) * (x_scale.astype(np.float64) * x_sum[:, ::2])[:, None, :])
    expected = sum(term.sum(axis=2) for term in terms)
    magnitude = sum(np.abs(term).sum(axis=2) for term in terms)
    got = _core.matmul(packed(encoding, codes, scale, bias if has_bias else None, zero=zero), x, isa=isa)
    assert np.all(np.abs(got - expected) <= gamma(1 + 2 * (k // 32)) * magnitude)


@pytest.mark.parametrize("isa", EACH_ISA)
def test_quantised_rows_are_within_half_a_step(isa: str) -> None:
    """|x - scale code| <= scale / 2 from the rounding to an integer.

    scale, inverse and x inverse are each rounded once: three times u of a value of at most 127 steps.
    """
    x = np.random.default_rng(3).normal(size=(5, 320)).astype(np.float32)
    x[0, :32] = 0
    x[1, :32] = 9e-31
    codes, scale, _ = _core.quantize_rows(x, isa=isa)
    groups = x.reshape(5, -1, 32)
    expected = np.abs(groups).max(axis=2) / np.float32(127)
    expected[:2, 0] = 0
    np.testing.assert_array_equal(scale, expected)
    error = np.abs(groups.astype(np.float64) - scale[:, :, None].astype(np.float64) * codes.reshape(groups.shape))
    error[1, 0] = 0  # a group below the least magnitude is zero
    assert np.all(error <= scale[:, :, None] * (0.5 + 127 * gamma(3)))
    assert codes.min() >= -127


@pytest.mark.parametrize("isa", EACH_ISA)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_fault_in_one_group_makes_that_row_nan_and_no_other(isa: str, bad: float) -> None:
    rng = np.random.default_rng(5)
    codes, scale, _ = random_matrix(rng, "int4", 20, 96)
    x = rng.normal(size=(3, 96)).astype(np.float32)
    x[1, 40] = bad
    x_codes, x_scale, x_sum = _core.quantize_rows(x, isa=isa)
    assert np.isnan(x_scale[1, 1])
    assert not x_codes[1, 32:64].any()
    assert not x_sum[1, 2:4].any()
    got = _core.matmul(packed("int4", codes, scale, zero=8), x, isa=isa)
    assert np.isnan(got[1]).all()
    assert np.isfinite(got[[0, 2]]).all()


@pytest.mark.parametrize("isa", EACH_ISA)
@pytest.mark.parametrize("encoding", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (17, 5, 3), (40, 129, 10)])
def test_float_products_are_within_the_rounding_of_k_fused_steps(
    isa: str, encoding: str, shape: tuple[int, int, int]
) -> None:
    """k fused steps round k times: |error| <= gamma(k) sum |w x|."""
    n, k, m = shape
    rng = np.random.default_rng(k)
    w = rng.normal(size=(n, k)).astype(np.float16 if encoding == "f16" else np.float32)
    values: NDArray[np.generic] = w
    if encoding == "bf16":
        values = (w.view(np.uint32) >> 16).astype(np.uint16)
        w = (values.astype(np.uint32) << 16).view(np.float32)
    matrix = _core.PackedMatrix(encoding, n, k)
    matrix.set_float_rows(0, values)
    x = rng.normal(size=(m, k)).astype(np.float32)
    exact = x.astype(np.float64) @ w.T.astype(np.float64)
    magnitude = np.abs(x).astype(np.float64) @ np.abs(w).T.astype(np.float64)
    assert np.all(np.abs(_core.matmul(matrix, x, isa=isa) - exact) <= gamma(k) * magnitude)
    np.testing.assert_array_equal(matrix.read_row(n - 1), w[n - 1].astype(np.float32))


def canonical(kind: str, blocks: NDArray[np.uint8], n: int) -> tuple[_core.PackedMatrix, NDArray[np.float16]]:
    """A packed matrix, and its bias [n, k / 32], from blocks [count, bytes] as the GGUF specification lays them out."""
    halves = blocks[:, :4].copy().view(np.float16).reshape(n, -1, 2)
    scale, bias = np.ascontiguousarray(halves[:, :, 0]), np.ascontiguousarray(halves[:, :, 1])
    if kind == "Q8_0":
        codes = (blocks[:, 2:].view(np.int8).astype(np.int16) + 128).astype(np.uint8)
        return packed("int8", codes.reshape(n, -1), scale, zero=128), np.zeros_like(scale)
    nibbles = blocks[:, -16:]
    codes = np.concatenate([nibbles & 15, nibbles >> 4], axis=1).reshape(n, -1)
    if kind == "Q4_0":
        return packed("int4", codes, scale, zero=8), np.zeros_like(scale)
    return packed("int4", codes, scale, bias), bias


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
@pytest.mark.parametrize("isa", EACH_ISA)
def test_ggufs_own_weights_read_back_exactly_and_multiply_within_the_quantisation_of_x(kind: str, isa: str) -> None:
    """Bound: x differs from its codes by half a step, y by |w| times that, plus the rounding of the sums.

    |error| <= (1/2 + 127 gamma(3)) sum step |w| + gamma(1 + 2 groups) sum 127 step (|w - bias| + |bias|).
    """
    rng = np.random.default_rng(11)
    n, k = 21, 160
    quantization = gguf.GGMLQuantizationType[kind]
    raw = gguf.quants.quantize(rng.normal(size=(n, k)).astype(np.float32), quantization)
    weights = gguf.quants.dequantize(raw, quantization)
    matrix, bias = canonical(kind, raw.reshape(n * k // 32, -1), n)
    for row in range(n):
        np.testing.assert_array_equal(matrix.read_row(row), weights[row])
    x = rng.normal(size=(9, k)).astype(np.float32)
    _, x_scale, _ = _core.quantize_rows(x, isa=isa)
    step = np.repeat(x_scale, 32, axis=1).astype(np.float64)
    w, b = weights.astype(np.float64), np.repeat(bias, 32, axis=1).astype(np.float64)
    bound = (0.5 + 127 * gamma(3)) * step @ np.abs(w).T
    bound += gamma(1 + 2 * (k // 32)) * 127 * step @ (np.abs(w - b) + np.abs(b)).T
    error = np.abs(_core.matmul(matrix, x, isa=isa) - x.astype(np.float64) @ w.T)
    assert np.all(error <= bound)


@pytest.mark.parametrize("encoding", ["int4", "int8"])
def test_rows_may_arrive_in_pieces_of_any_size(encoding: str) -> None:
    codes, scale, bias = random_matrix(np.random.default_rng(2), encoding, 50, 64)
    matrix = _core.PackedMatrix(encoding, 50, 64, has_bias=True)
    for begin, end in [(40, 50), (0, 3), (3, 20), (20, 40)]:
        matrix.set_integer_rows(begin, codes[begin:end], scale[begin:end], bias[begin:end])
    for row in range(50):
        w = codes[row].reshape(2, 32).astype(np.float64) * scale[row][:, None] + bias[row][:, None]
        np.testing.assert_array_equal(matrix.read_row(row), w.astype(np.float32).ravel())
    assert (matrix.encoding, matrix.n, matrix.k, matrix.zero, matrix.has_bias) == (encoding, 50, 64, 0, True)
    assert matrix.bytes == 64 * 64 // (2 if encoding == "int4" else 1) + 2 * 64 * 2 * 2


def test_the_first_usable_set_of_the_table_is_selected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CPUINFER_ISA", raising=False)
    sets = _core.kernel_sets()
    assert [entry["name"] for entry in sets] == ["amx", "avx512_vnni", "avx_vnni", "avx2", "scalar"]
    assert _core.select_kernels() == ISAS[0]
    assert [entry["name"] for entry in sets if entry["selected"]] == ISAS[:1]
    monkeypatch.setenv("CPUINFER_ISA", "scalar")
    assert _core.select_kernels() == "scalar"
    assert _core.select_kernels(ISAS[0]) == ISAS[0]


def test_a_set_that_does_not_exist_or_cannot_run_is_refused_with_the_usable_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CPUINFER_ISA", "avx3")
    with pytest.raises(
        UnsupportedCpu, match=r"^CPUINFER_ISA=avx3: no such kernel set; there are amx, .* scalar; usable"
    ):
        _core.select_kernels()
    monkeypatch.delenv("CPUINFER_ISA")
    for entry in _core.kernel_sets():
        if not entry["usable"]:
            with pytest.raises(UnsupportedCpu) as refusal:
                _core.select_kernels(entry["name"])
            assert str(refusal.value) == f"isa={entry['name']}: {entry['missing']}; usable here: {', '.join(ISAS)}"


def test_wrong_shapes_types_and_codes_are_named() -> None:
    matrix = _core.PackedMatrix("int4", 20, 64, zero=8)
    codes, scale = np.zeros((4, 64), np.uint8), np.zeros((4, 2), np.float16)
    with pytest.raises(InvalidRequest, match=r"^codes: int8 \(4, 64\), expected contiguous uint8 \(\*, 64\)$"):
        matrix.set_integer_rows(0, codes.view(np.int8), scale)
    with pytest.raises(InvalidRequest, match=r"^scale: float16 \(3, 2\), expected contiguous float16 \(4, 2\)$"):
        matrix.set_integer_rows(0, codes, scale[:3])
    with pytest.raises(InvalidRequest, match=r"^codes: not contiguous or not aligned, uint8 \(4, 64\)"):
        matrix.set_integer_rows(0, codes[:, ::-1], scale)
    with pytest.raises(InvalidRequest, match=r"^bias: given, the matrix has none$"):
        matrix.set_integer_rows(0, codes, scale, scale)
    with pytest.raises(InvalidRequest, match=r"^rows 18 to 22: the matrix has 20$"):
        matrix.set_integer_rows(18, codes, scale)
    with pytest.raises(InvalidRequest, match=r"^rows -1 to 3: the matrix has 20$"):
        matrix.set_integer_rows(-1, codes, scale)
    with pytest.raises(InvalidRequest, match="rows 20 to 21"):
        matrix.read_row(20)
    with pytest.raises(UnsupportedFormat, match=r"^rows 0 to 3: a 4-bit code above 15$"):
        matrix.set_integer_rows(0, codes + 16, scale)
    with pytest.raises(InvalidRequest, match=r"^float rows for a matrix of int4$"):
        matrix.set_float_rows(0, codes.astype(np.float32))
    with pytest.raises(InvalidRequest, match=r"^x: float32 \(1, 32\), expected contiguous float32 \(\*, 64\)$"):
        _core.matmul(matrix, np.zeros((1, 32), np.float32))
    with pytest.raises(
        InvalidRequest, match=r"^encoding 'int3': expected int4, int8, table4, f16, bf16, f32 or a block type"
    ):
        _core.PackedMatrix("int3", 1, 32)
    with pytest.raises(UnsupportedFormat, match=r"\(16, 48\): int8 needs inputs in groups of 32$"):
        _core.PackedMatrix("int8", 16, 48)
    with pytest.raises(UnsupportedFormat, match=r"\(16, 96\): int4 needs inputs in groups of 64$"):
        _core.PackedMatrix("int4", 16, 96, group=64)
    with pytest.raises(UnsupportedFormat, match=r"\(16, 96\): q4_k needs inputs in groups of 256$"):
        _core.PackedMatrix("q4_k", 16, 96)
    with pytest.raises(UnsupportedFormat, match=r"^table4: a table of 15 numbers$"):
        _core.PackedMatrix("table4", 16, 32, table=[0.0] * 15)
    with pytest.raises(UnsupportedFormat, match=r"^a table with a number that is not finite$"):
        _core.PackedMatrix("table4", 16, 32, table=[float("nan")] * 16)
    with pytest.raises(InvalidRequest, match=r"^blocks: uint8 \(4, 64\), expected contiguous uint8 \(\*, 36\)$"):
        matrix.set_block_rows(0, codes)
    for other in (
        _core.PackedMatrix("int4", 16, 64, group=64),
        _core.PackedMatrix("int4", 16, 64, has_zeros=True),
        _core.PackedMatrix("table4", 16, 64, table=[0.0] * 16),
        _core.PackedMatrix("f32", 16, 64),
    ):
        with pytest.raises(InvalidRequest, match=rf"^rows of blocks for a matrix of {other.encoding}$"):
            other.set_block_rows(0, codes)
    with pytest.raises(InvalidRequest, match=r"^zeros: missing, the matrix has them$"):
        _core.PackedMatrix("int4", 16, 64, has_zeros=True).set_integer_rows(0, codes, scale)
    with pytest.raises(UnsupportedFormat, match=r"^zero point 16: expected a code, 0 to 15$"):
        _core.PackedMatrix("int4", 16, 32, zero=16)
    for n, k in [(0, 32), (16, 0), (-1, 32), (1 << 40, 32)]:
        with pytest.raises(UnsupportedFormat, match="expected sizes from 1 to"):
            _core.PackedMatrix("f32", n, k)


def dequantised(x: NDArray[np.float32], isa: str) -> NDArray[np.float64]:
    """x as the integer kernels see it."""
    codes, scale, _ = _core.quantize_rows(x, isa=isa)
    return (codes.reshape(len(x), -1, 32) * scale.astype(np.float64)[:, :, None]).reshape(x.shape)


@pytest.mark.parametrize("isa", EACH_ISA)
@pytest.mark.parametrize("encoding", sorted({f.lower() for f in formats.supported()} - {"f32", "f16", "bf16"}))
def test_products_of_every_type_are_those_of_its_decoded_weights(isa: str, encoding: str) -> None:
    """Bound: the sums' roundings, two or four a scale, on terms of at most |scale code| + |bias|.

    Where a group has its smallest and its largest code, that is at most 3 times its largest weight.
    """
    form = formats.find(encoding.upper())
    rng, n, k = np.random.default_rng(4), 35, 768
    raw = rng.integers(0, 256, (n, k // form.elements * form.block_bytes), dtype=np.uint8)
    if encoding == "mxfp4":
        raw[:, ::17] = rng.integers(100, 140, raw[:, ::17].shape)  # exponents whose squares do not overflow
    with np.errstate(all="ignore"):
        values = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[encoding.upper()])
    fine = np.isfinite(values).all(axis=1) & (np.abs(values).max(axis=1) < 1e30)
    raw, values = raw[fine], values[fine].astype(np.float64)
    assert len(raw) > 4
    matrix = _core.PackedMatrix(form.layout, len(raw), k, zero=form.zero, has_bias=form.has_bias)
    form.decode(raw, k).pack(matrix, 0)
    x = rng.normal(size=(11, k)).astype(np.float32)
    exact = dequantised(x, isa) @ values.T
    largest = np.abs(values).max(axis=1)
    bound = gamma(2 + 4 * (k // 16)) * np.abs(dequantised(x, isa)).sum(axis=1)[:, None] * 3 * largest
    assert np.all(np.abs(_core.matmul(matrix, x, isa=isa) - exact) <= bound)


@pytest.mark.parametrize("isa", EACH_ISA)
@pytest.mark.parametrize(("layout", "group"), [("int4", 32), ("int4", 128), ("int8", 64), ("int8", 384)])
def test_products_with_a_zero_point_a_group(isa: str, layout: str, group: int) -> None:
    rng, n, k = np.random.default_rng(6), 33, 384
    codes = rng.integers(0, LAST_CODE[layout] + 1, (n, k), dtype=np.uint8)
    rows = IntegerRows(
        codes,
        rng.normal(size=(n, k // group)).astype(np.float16),
        zeros=rng.integers(0, LAST_CODE[layout] + 1, (n, k // group), dtype=np.uint8),
        group=group,
    )
    matrix = _core.PackedMatrix(layout, n, k, has_zeros=True, group=group)
    rows.pack(matrix, 0)
    values = rows.to_float(np.float64)
    np.testing.assert_array_equal([matrix.read_row(i) for i in range(n)], values.astype(np.float32))
    x = rng.normal(size=(9, k)).astype(np.float32)
    seen = dequantised(x, isa)
    bound = gamma(2 + 2 * (k // 32)) * np.abs(seen) @ np.abs(values).T
    # The sum of a group is exact before it is scaled, so its terms' magnitudes do not matter one by one.
    assert np.all(np.abs(_core.matmul(matrix, x, isa=isa) - seen @ values.T) <= bound)


@pytest.mark.parametrize("isa", EACH_ISA)
def test_products_of_codes_into_a_table(isa: str) -> None:
    """Bound: the table's numbers are off by half a step of their largest / 32512, then the roundings of the sums."""
    rng, n, k, group = np.random.default_rng(8), 21, 192, 64
    table = np.sort(rng.normal(size=16)).astype(np.float32)
    rows = TableRows(
        rng.integers(0, 16, (n, k), dtype=np.uint8), rng.random((n, k // group)).astype(np.float16), table, group
    )
    matrix = _core.PackedMatrix("table4", n, k, group=group, table=table)
    rows.pack(matrix, 0)
    values = rows.to_float(np.float64)
    step = np.abs(table).max() / 32512 * np.repeat(rows.scale.astype(np.float64), group, axis=1)
    x = rng.normal(size=(5, k)).astype(np.float32)
    seen = dequantised(x, isa)
    bound = np.abs(seen) @ (0.5 * step + gamma(4 + 2 * (k // 32)) * (np.abs(values) + step)).T
    assert np.all(np.abs(_core.matmul(matrix, x, isa=isa) - seen @ values.T) <= bound)
    read = np.array([matrix.read_row(i) for i in range(n)])
    assert np.all(np.abs(read - values) <= step * (0.5 + gamma(3) * 32512))
