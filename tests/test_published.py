"""Published 4-bit and 8-bit weights: the numbers that went in come out, and nothing that does not fit goes in."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

import published_files as files
from cpuinfer import _core
from cpuinfer.errors import CheckpointError
from cpuinfer.formats.canonical import BlockRows, IntegerRows, TableRows
from cpuinfer.published import reader
from cpuinfer.weight import Weight
from published_files import (
    AWQ,
    BNB,
    FORMATS,
    FP4,
    GPTQ,
    HQQ,
    MXFP4,
    NF4,
    ROUND,
    MemoryTensors,
    P,
    bf16,
    compressed,
    example,
    numbers,
)

SIZES = [(48, 64), (16, 96), (8, 160), (40, 128)]


def unrounded(weight: Weight, *cuts: int):
    """What the rows mean, read in pieces, columns put back in the weight's own order."""
    n, k = weight.shape
    pieces = []
    for begin, end in zip((0, *cuts), (*cuts, n), strict=True):
        rows = weight.rows(begin, end)
        if isinstance(rows, BlockRows):
            assert rows.form.layout == weight.layout == "mxfp4"
            pieces.append(gguf.dequantize(rows.raw, gguf.GGMLQuantizationType.MXFP4).astype(np.float64))
            continue
        assert rows.group == weight.group
        assert k % weight.group == 0
        assert weight.group % 32 == 0
        assert rows.codes.dtype == np.uint8
        assert rows.codes.flags.c_contiguous
        assert rows.scale.dtype == np.float16
        assert rows.scale.shape == (end - begin, k // weight.group)
        assert rows.scale.flags.c_contiguous
        if isinstance(rows, IntegerRows):
            assert weight.layout in {"int4", "int8"}
            assert (rows.zero, rows.zeros is not None, rows.bias is not None) == (
                weight.zero,
                weight.has_zeros,
                weight.has_bias,
            )
            if rows.zeros is not None:
                assert (rows.zeros.dtype, rows.zeros.shape) == (np.uint8, rows.scale.shape)
                assert rows.zeros.flags.c_contiguous
        else:
            assert isinstance(rows, TableRows)
            assert weight.layout == "table4"
            np.testing.assert_array_equal(rows.table, weight.table)
        pieces.append(rows.to_float(np.float64))
    values = np.concatenate(pieces)
    if weight.input_order is None:
        return values
    assert weight.input_order.dtype == np.int32
    assert sorted(weight.input_order) == list(range(k))
    own = np.empty_like(values)
    own[:, weight.input_order] = values
    return own


def check(config, arrays, values, *, exact=True):
    """Both ways of reading give the values; returns the weight."""
    tensors = MemoryTensors(arrays)
    read = reader(config)
    assert read.is_quantised(tensors, P)
    assert not read.is_quantised(tensors, "lm_head")
    weight = read(tensors, P, values.shape)
    np.testing.assert_array_equal(weight.floats(), values)
    cuts = sorted({1, 3, values.shape[0] // 2, values.shape[0] - 3})
    if exact:
        np.testing.assert_array_equal(unrounded(weight, *cuts), values)
    assert weight.shape == values.shape
    assert weight.rows(2, 2) is not None
    assert sorted(weight.tensor_names) == sorted(arrays)
    assert weight.file_bytes == sum(array.nbytes for array in arrays.values())
    assert reader(config)(tensors, P).shape == values.shape
    return weight


@pytest.mark.parametrize(("n", "k"), SIZES)
@pytest.mark.parametrize("group", [32, 64, 128, -1])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("version", [1, 2])
def test_gptq_gives_the_numbers_that_were_packed(n, k, group, bits, version):
    codes, scales, zeros, values = numbers(n, k, group, bits)
    config = {**GPTQ, "bits": bits, "group_size": group, "checkpoint_format": "gptq" if version == 1 else "gptq_v2"}
    weight = check(config, files.gptq(P, codes, scales, zeros, bits, version=version), values)
    assert weight.encoding == f"GPTQ int{bits} " + ("per row" if group == -1 else f"g{group}")
    assert weight.input_order is None


def test_gptq_of_version_1_and_2_differ_by_one_in_the_zero_points():
    arrays = files.gptq(P, np.full((8, 32), 9), np.ones((8, 1), np.float16), np.full((8, 1), 7), 4, version=1)
    assert arrays[f"{P}.qzeros"].tolist() == [[0x66666666]]
    for stored, value in (("gptq", 2), ("gptq_v2", 3)):
        weight = reader({**GPTQ, "checkpoint_format": stored})(MemoryTensors(arrays), P)
        assert (weight.floats() == value).all()
        assert (unrounded(weight) == value).all()


def test_a_group_may_be_longer_than_a_row():
    codes, scales, zeros, values = numbers(48, 64, -1, 4)
    check({**GPTQ, "group_size": 1 << 80}, files.gptq(P, codes, scales, zeros, 4), values)


def test_gptq_zero_points_of_version_1_wrap_round():
    codes = np.full((8, 32), 5)
    arrays = files.gptq(P, codes, np.ones((8, 1), np.float16), np.zeros((8, 1), int), 4, version=1)
    assert arrays[f"{P}.qzeros"].view(np.uint32).tolist() == [[0xFFFFFFFF]]
    check(GPTQ, arrays, codes.astype(float))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
def test_gptq_with_sym_ignores_stored_zero_points(bits, version):
    codes, scales, zeros, _ = numbers(48, 64, 32, bits)
    values = np.repeat(scales.astype(float), 32, axis=1) * (codes - (1 << (bits - 1)))
    config = {**GPTQ, "bits": bits, "sym": True, "checkpoint_format": version}
    arrays = files.gptq(P, codes, scales, zeros, bits)
    weight = check(config, arrays, values)
    assert weight.zero == 1 << (bits - 1)
    check(config, {name: array for name, array in arrays.items() if "qzeros" not in name}, values)
    narrow = {**arrays, f"{P}.qzeros": arrays[f"{P}.qzeros"][:, :4]}  # packers that count outputs by 32
    check(config, narrow, values)


@pytest.mark.parametrize(("n", "k", "group"), [(48, 64, 32), (8, 160, 64), (16, 192, 64), (8, 256, 128)])
@pytest.mark.parametrize("sym", [True, False])
def test_gptq_act_order_takes_each_column_with_the_scale_that_g_idx_names(n, k, group, sym):
    g_idx = np.random.default_rng(7).permutation(np.arange(k) // group)
    codes, scales, zeros, values = numbers(n, k, group, 4, index=g_idx)
    if sym:
        values = scales.astype(float)[:, g_idx] * (codes - 8)
    config = {**GPTQ, "group_size": group, "sym": sym}
    arrays = files.gptq(P, codes, scales, zeros, 4, g_idx=g_idx)
    weight = check({**config, "desc_act": True}, arrays, values)
    assert weight.input_order is not None
    assert (np.diff(g_idx[weight.input_order]) >= 0).all()
    assert weight.encoding.endswith(" act-order")
    # Without desc_act too: g_idx is what dequantises, whatever the config says.
    check(config, arrays, values)


def test_gptq_without_act_order_needs_no_order_of_inputs():
    codes, scales, zeros, values = numbers(48, 64, 32, 4)
    for g_idx in (np.arange(64) // 32, np.zeros(64)):  # the second: written before it was ever filled in
        weight = check(GPTQ, files.gptq(P, codes, scales, zeros, 4, g_idx=g_idx), values)
        assert weight.input_order is None
    with pytest.raises(CheckpointError, match=r"q_proj\.g_idx: missing, expected I32 \(64\)"):
        reader({**GPTQ, "desc_act": True})(MemoryTensors(files.gptq(P, codes, scales, zeros, 4)), P)


def test_gptq_is_read_once_and_let_go():
    codes, scales, zeros, values = numbers(48, 64, 32, 4)
    tensors = MemoryTensors(files.gptq(P, codes, scales, zeros, 4))
    weight = reader(GPTQ)(tensors, P)
    assert tensors.reads == {}
    for begin in range(0, 48, 16):
        np.testing.assert_array_equal(weight.rows(begin, begin + 16).to_float(np.float64), values[begin : begin + 16])
    assert set(tensors.reads.values()) == {1}
    weight.rows(0, 1)
    assert tensors.reads[f"{P}.qweight"] == 2


@pytest.mark.parametrize(("n", "k"), SIZES)
@pytest.mark.parametrize("group", [32, 64, 128, -1])
def test_awq_gives_the_numbers_that_were_packed(n, k, group):
    codes, scales, zeros, values = numbers(n, k, group, 4)
    weight = check({**AWQ, "group_size": group}, files.awq(P, codes, scales, zeros), values)
    assert weight.encoding.startswith("AWQ int4")


def test_awq_nibbles_are_outputs_0_2_4_6_1_3_5_7():
    word = np.uint32(0x76543210).view(np.int32)  # nibble i holds i
    arrays = {
        f"{P}.qweight": np.full((32, 1), word, np.int32),
        f"{P}.qzeros": np.array([[0]], np.int32),
        f"{P}.scales": np.ones((1, 8), np.float16),
    }
    check(AWQ, arrays, np.repeat(np.array([[0.0], [4], [1], [5], [2], [6], [3], [7]]), 32, axis=1))


@pytest.mark.parametrize(
    ("packing", "version"), [("auto_round:auto_gptq", 1), ("auto_round", 2), ("auto_round:gptqmodel", 2), (None, 1)]
)
def test_auto_round_packed_as_gptq_has_the_zero_points_of_its_packing(packing, version):
    codes, scales, zeros, values = numbers(48, 96, 32, 4)
    weight = check(
        {**ROUND, "packing_format": packing}, files.gptq(P, codes, scales, zeros, 4, version=version), values
    )
    assert weight.encoding == "AutoRound int4 g32"


def test_auto_round_packed_as_awq_is_read_as_awq():
    codes, scales, zeros, values = numbers(48, 96, 32, 4)
    check({**ROUND, "packing_format": "auto_round:auto_awq", "sym": True}, files.awq(P, codes, scales, zeros), values)


def test_auto_round_layers_may_have_options_of_their_own():
    codes, scales, zeros, values = numbers(48, 96, 64, 8)
    other = {".*gate": {"bits": 16, "data_type": "fp"}, "lm_head": {"bits": 2}}
    config = {**ROUND, "extra_config": {P: {"bits": 8, "group_size": 64}, **other}}
    check(config, files.gptq(P, codes, scales, zeros, 8), values)


@pytest.mark.parametrize(("n", "k"), SIZES)
@pytest.mark.parametrize("group", [32, 128, -1])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zero_points", ["none", "packed", "int8"])
def test_compressed_tensors_give_the_numbers_that_were_packed(n, k, group, bits, zero_points):
    codes, scales, zeros, values = numbers(n, k, group, bits)
    half = 1 << (bits - 1)
    index = np.zeros(k, int) if group == -1 else np.arange(k) // group
    if zero_points == "none":
        values = scales.astype(float)[:, index] * (codes - half)
    arrays = files.compressed_tensors(
        P,
        codes - half,
        scales,
        None if zero_points == "none" else zeros - half,
        bits,
        packed_zeros=zero_points != "int8",
    )
    weight = check(compressed(bits, group, zero_points == "none"), arrays, values)
    assert weight.encoding == f"compressed-tensors int{bits} " + ("per row" if group == -1 else f"g{group}")


def test_compressed_tensors_in_activation_order_name_the_group_of_each_column():
    g_idx = np.random.default_rng(3).permutation(np.arange(160) // 32)
    codes, scales, zeros, values = numbers(48, 160, 32, 4, index=g_idx)
    arrays = files.compressed_tensors(P, codes - 8, scales, zeros - 8, 4, g_idx=g_idx)
    assert check(compressed(symmetric=False, actorder="group"), arrays, values).input_order is not None
    # A g_idx of -1 was never filled in.
    codes, scales, zeros, values = numbers(48, 160, 32, 4)
    arrays = files.compressed_tensors(P, codes - 8, scales, zeros - 8, 4, g_idx=np.full(160, -1))
    assert check(compressed(symmetric=False), arrays, values).input_order is None


def test_symmetric_compressed_tensors_ignore_zero_points():
    codes, scales, zeros, _ = numbers(48, 64, 32, 4)
    values = np.repeat(scales.astype(float), 32, axis=1) * (codes - 8)
    check(compressed(), files.compressed_tensors(P, codes - 8, scales, zeros - 8, 4), values)


def test_of_several_config_groups_the_one_that_the_tensors_have_is_taken():
    config = compressed(8, 64)
    config["config_groups"] |= {
        "group_1": compressed(4, 32)["config_groups"]["group_0"],
        "group_2": compressed(4, 32, symmetric=False)["config_groups"]["group_0"],
    }
    codes, scales, zeros, values = numbers(48, 64, 32, 4)
    check(config, files.compressed_tensors(P, codes - 8, scales, zeros - 8, 4), values)
    symmetric = np.repeat(scales.astype(float), 32, axis=1) * (codes - 8)
    check(config, files.compressed_tensors(P, codes - 8, scales, None, 4), symmetric)
    other = files.compressed_tensors(P, codes - 8, scales[:, :1], None, 4)
    with pytest.raises(
        CheckpointError, match=r"weight_packed: I32 \(48, 8\) for a weight .* fits none of config_groups"
    ):
        reader(config)(MemoryTensors(other), P)


@pytest.mark.parametrize(("n", "k"), [*SIZES, (3, 96)])
@pytest.mark.parametrize("blocksize", [32, 64, 128, 4096])
@pytest.mark.parametrize(("kind", "table"), [("nf4", NF4), ("fp4", FP4)])
def test_bitsandbytes_gives_the_numbers_that_were_packed(n, k, blocksize, kind, table):
    rng = np.random.default_rng(2)
    codes = rng.integers(0, 16, (n, k))
    absmax = rng.uniform(0.01, 0.1, -(-n * k // blocksize)).astype(np.float16).astype(np.float32)
    flat = np.array([table[code] * np.float64(absmax[i // blocksize]) for i, code in enumerate(codes.reshape(-1))])
    arrays = files.bitsandbytes(P, codes, table, absmax, blocksize, kind=kind)
    weight = check_small({**BNB, "bnb_4bit_quant_type": kind}, arrays, flat.reshape(n, k))
    assert weight.encoding == f"bitsandbytes {kind.upper()} g{blocksize}"


def check_small(config, arrays, values):
    weight = reader(config)(MemoryTensors(arrays), P, values.shape)
    np.testing.assert_array_equal(weight.floats(), values)
    np.testing.assert_array_equal(unrounded(weight), values)
    np.testing.assert_array_equal(unrounded(weight, 1, 2), values)
    return weight


def test_bitsandbytes_has_the_high_nibble_first_and_the_table_of_the_file():
    arrays = files.bitsandbytes(P, np.tile([1, 2], (2, 32)), FP4, np.ones(2, np.float32), 64, kind="fp4")
    assert (arrays[f"{P}.weight"] == 0x12).all()
    check_small({**BNB, "bnb_4bit_quant_type": "fp4"}, arrays, np.tile(FP4[1:3].astype(float), (2, 32)))


@pytest.mark.parametrize("storage", [np.uint8, np.uint16, np.float16, np.float32])
def test_bitsandbytes_bytes_may_be_stored_as_floats(storage):
    rng = np.random.default_rng(4)
    codes = rng.integers(0, 16, (48, 96))
    arrays = files.bitsandbytes(P, codes, NF4, np.ones(72, np.float32), 64)
    arrays[f"{P}.weight"] = arrays[f"{P}.weight"].view(np.uint8).reshape(-1).view(storage).reshape(-1, 1)
    check_small(BNB, arrays, NF4[codes].astype(float))


def test_bitsandbytes_double_quantisation_is_undone_in_fp32():
    rng = np.random.default_rng(5)
    n, k, blocksize = 48, 96, 64
    codes, inner = rng.integers(0, 16, (n, k)), rng.integers(0, 256, 72).astype(np.uint8)
    outer, inner_table = rng.uniform(0.01, 0.05, 5).astype(np.float32), np.linspace(-1, 1, 256, dtype=np.float32)
    arrays = files.bitsandbytes(
        P, codes, NF4, inner, blocksize, nested=(outer, inner_table, 0.0625), nested_blocksize=16
    )
    absmax = [np.float32(inner_table[code] * outer[i // 16]) + np.float32(0.0625) for i, code in enumerate(inner)]
    values = NF4[codes].astype(np.float64) * np.repeat(np.array(absmax, np.float64), blocksize).reshape(n, k)
    weight = check(BNB, arrays, values, exact=False)
    assert weight.encoding == "bitsandbytes NF4 g64 double"
    # One rounding of the scale to fp16.
    assert (np.abs(unrounded(weight, 7) - values) <= np.abs(values) * 2**-11).all()


@pytest.mark.parametrize(("n", "k", "group"), [(*size, 32) for size in SIZES] + [(48, 64, 64), (9, 128, 64)])
@pytest.mark.parametrize("bits", [4, 8])
def test_hqq_gives_the_numbers_that_were_packed(n, k, group, bits):
    codes, scales, zeros, values = numbers(n, k, group, bits)
    weight = check(HQQ, files.hqq(P, codes, scales, zeros.astype(np.float16), bits, group=group), values)
    assert weight.encoding == f"HQQ int{bits} g{group}"
    assert (weight.has_zeros, weight.has_bias) == (True, False)


def test_hqq_zero_points_that_are_not_whole_become_biases():
    codes, scales, _, _ = numbers(48, 64, 32, 4)
    zeros = np.random.default_rng(6).uniform(3, 12, (48, 2)).astype(np.float16)
    product = np.repeat(scales.astype(float), 32, axis=1)
    values = product * (codes - np.repeat(zeros.astype(float), 32, axis=1))
    weight = check(HQQ, files.hqq(P, codes, scales, zeros, 4, group=32), values, exact=False)
    assert (weight.has_zeros, weight.has_bias) == (False, True)
    bias = np.abs(product * np.repeat(zeros.astype(float), 32, axis=1))
    assert (np.abs(unrounded(weight, 7) - values) <= np.maximum(bias * 2**-11, 2**-25)).all()


def test_hqq_high_nibbles_are_the_first_half_of_the_rows():
    codes = np.repeat([[1], [2]], 32, axis=1)
    arrays = files.hqq(P, codes, np.ones((2, 1), np.float16), np.zeros((2, 1), np.float16), 4, group=32)
    assert (arrays[f"{P}.W_q"] == 0x12).all()
    check_small(HQQ, arrays, codes.astype(float))


@pytest.mark.parametrize("shape", [(48, 64), (16, 96), (3, 24, 160)])
def test_mxfp4_gives_the_numbers_that_were_packed(shape):
    rng = np.random.default_rng(8)
    codes = rng.integers(0, 16, shape)
    exponents = rng.integers(100, 140, (*shape[:-1], shape[-1] // 32))
    exponents.flat[:3] = 0, 1, 252
    magnitudes = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    signs = np.where(codes < 8, 1.0, -1.0)
    values = signs * np.array(magnitudes)[codes % 8] * 2.0 ** (np.repeat(exponents, 32, axis=-1) - 127)
    weight = check(MXFP4, files.mxfp4(P, codes, exponents), values.reshape(-1, shape[-1]))
    assert (weight.encoding, weight.group) == ("MXFP4", 32)


def test_mxfp4_neighbours_share_a_byte_in_the_file_and_not_in_the_block():
    arrays = files.mxfp4(P, np.arange(32)[None] % 16, np.array([[127]]))
    assert arrays[f"{P}_blocks"][0, 0, :2].tolist() == [0x10, 0x32]
    raw = reader(MXFP4)(MemoryTensors(arrays), P).rows(0, 1).raw
    assert raw.tolist() == [[127] + [code << 4 | code for code in range(16)]]


@pytest.mark.parametrize("stored", ["bf16", "f32"])
def test_scales_of_other_types_become_fp16_rounded_once(stored):
    codes, scales, zeros, _ = numbers(48, 64, 32, 4)
    wide = scales.astype(np.float32) * np.float32(1.0009765625)
    if stored == "bf16":
        wide = (wide.view(np.uint32) & 0xFFFF0000).view(np.float32)
    values = np.repeat(wide.astype(float), 32, axis=1) * (codes - np.repeat(zeros, 32, axis=1))
    kept = bf16(wide) if stored == "bf16" else wide
    weight = check(GPTQ, files.gptq(P, codes, kept, zeros, 4), values, exact=False)
    least = np.abs(codes - np.repeat(zeros, 32, axis=1)) * 2.0**-25  # of subnormal scales
    assert (np.abs(unrounded(weight, 5) - values) <= np.maximum(np.abs(values) * 2**-11, least)).all()


@pytest.mark.parametrize("format_name", FORMATS)
def test_rows_are_packed_into_the_matrix_that_the_weight_asks_for(format_name):
    config, sound = example(format_name)
    weight = reader(config)(MemoryTensors(sound), P)
    matrix = weight.new_matrix(_core.BufferPool(1 << 16))
    for begin in range(0, 48, 16):
        weight.rows(begin, begin + 16).pack(matrix, begin)
    assert (matrix.encoding, matrix.bytes) == (weight.layout, weight.packed_bytes)
    values = np.stack([matrix.read_row(row) for row in range(48)])
    # fp32 arithmetic, and tables in steps of their largest magnitude / 32512.
    slack = np.abs(weight.floats()).max() * (2**-22 if weight.table is None else 1 / 32512)
    np.testing.assert_allclose(values, unrounded(weight), rtol=0, atol=slack)
