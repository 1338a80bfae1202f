"""Every format against the gguf package's dequantisation, on random and extreme blocks and on the real model."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Encoding

from cpuinfer import _core, formats
from cpuinfer.checkpoint import open_checkpoint
from cpuinfer.errors import InvalidRequest, UnsupportedFormat
from cpuinfer.formats.canonical import BlockLayout, BlockRows, FloatRows
from cpuinfer.formats.packed import Codebook, with_eighth

NAMES = (
    *("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "MXFP4"),
    *("IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S", "IQ1_M"),
)
BLOCK = {name: gguf.GGML_QUANT_SIZES[Encoding[name]] for name in NAMES}
BLOCK_LAYOUTS = get_args(BlockLayout)


def random_rows(encoding: str, rows: int, k: int) -> np.ndarray:
    """Random bytes: every code, and scales of every kind, subnormal, infinite and NaN among them."""
    elements, size = BLOCK[encoding]
    assert k % elements == 0
    return np.random.default_rng(rows * k).integers(0, 256, (rows, k // elements * size), np.uint8)


def test_every_type_of_weights_is_known() -> None:
    assert formats.supported() == tuple(sorted(BLOCK))
    for name, sizes in BLOCK.items():
        assert (formats.find(name).elements, formats.find(name).block_bytes) == sizes


@pytest.mark.parametrize("name", ["", "q4_1", "canonical", "CANONICAL", "Q4_2", "..Q4_1", "os", "Q4_1\n", "__INIT__"])
def test_a_name_that_is_no_format_is_refused_with_the_list(name: str) -> None:
    with pytest.raises(
        UnsupportedFormat, match=r"is not supported; supported are BF16, F16, F32, IQ1_M, .*, Q8_0, TQ1_0, TQ2_0$"
    ):
        formats.find(name)


@pytest.mark.parametrize("blocks", [1, 2, 3, 32])
@pytest.mark.parametrize("encoding", sorted(BLOCK))
def test_values_equal_those_of_the_gguf_package(encoding: str, blocks: int) -> None:
    k = max(32, BLOCK[encoding][0]) * blocks
    raw = random_rows(encoding, 5, k)
    with np.errstate(all="ignore"):
        values = formats.find(encoding).decode(raw, k).to_float(np.float32)
        expected = gguf.quants.dequantize(raw, Encoding[encoding])
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize("layout", BLOCK_LAYOUTS)
def test_exact_values_of_blocks_are_those_of_the_gguf_package_but_for_one_rounding(layout: BlockLayout) -> None:
    """Every product and difference of the gguf package's is exact in fp32 but the last."""
    form = formats.find(layout.upper())
    raw = random_rows(layout.upper(), 40, 4 * form.elements)
    with np.errstate(all="ignore"):
        values = form.decode(raw, 4 * form.elements).to_float(np.float64)
        expected = gguf.quants.dequantize(raw, Encoding[layout.upper()])
        assert np.isfinite(expected).sum() > expected.size // 2
        np.testing.assert_array_equal(values.astype(np.float32), expected)
    assert values.dtype == np.float64


@pytest.mark.parametrize("layout", ["q2_k", "q4_k", "q5_k", "q5_1"])
def test_exact_values_of_blocks_are_not_rounded_to_fp32(layout: BlockLayout) -> None:
    """A scale of thousands less a minimum near 2**-14 needs more than the 24 bits of fp32, fewer than float64's 53."""
    form = formats.find(layout.upper())
    raw = np.full((1, form.block_bytes), 0x7F, np.uint8)
    at = 80 if layout == "q2_k" else 0
    raw[0, at : at + 4] = np.array([30000, 2.0**-14 * 1.5], np.float16).view(np.uint8)
    values = form.decode(raw, form.elements).to_float(np.float64)
    assert np.any(values != values.astype(np.float32))
    remainder = values / 2.0**-15
    np.testing.assert_array_equal(remainder, np.rint(remainder))
    assert np.abs(remainder).max() < 2.0**53


@pytest.mark.parametrize("layout", BLOCK_LAYOUTS)
def test_block_sizes_are_those_of_the_files_reader(layout: BlockLayout) -> None:
    form = formats.find(layout.upper())
    known = {name: (elements, size) for _, name, elements, size in _core.gguf_tensor_types()}
    assert form.layout == layout
    assert (form.elements, form.block_bytes) == known[layout.upper()]


@pytest.mark.parametrize("name", get_args(Codebook))
def test_code_books_are_those_of_the_gguf_package(name: Codebook) -> None:
    table = _core.codebook(name)
    reference = getattr(gguf.quants, name.upper())
    if name in ("iq4_nl", "mxfp4"):
        expected = np.array(reference.kvalues)
    else:
        reference.init_grid()
        expected = reference.grid.reshape(reference.grid_shape)
    assert table.dtype == np.int8
    np.testing.assert_array_equal(table, expected)


def test_an_unknown_code_book_is_refused_with_the_list() -> None:
    with pytest.raises(InvalidRequest, match=r"code-book 'iq1_m': expected iq4_nl, mxfp4, .* or iq1_s"):
        _core.codebook("iq1_m")


def test_the_eighth_sign_makes_the_number_of_negative_ones_even() -> None:
    signs = with_eighth(np.arange(128, dtype=np.uint32))
    np.testing.assert_array_equal(signs & 127, np.arange(128))
    assert not (np.unpackbits(signs[:, None], axis=1).sum(axis=1) % 2).any()


@pytest.mark.parametrize("encoding", sorted(BLOCK))
def test_decoded_rows_are_what_the_format_declares(encoding: str) -> None:
    found = formats.find(encoding)
    rows = found.decode(random_rows(encoding, 3, 256), 256)
    if isinstance(rows, BlockRows):
        layout = {"Q4_0": "int4", "Q4_1": "int4", "Q8_0": "int8"}.get(encoding, encoding.lower())
        assert (rows.form, rows.k, found.layout) == (found, 256, layout)
        parts = [rows.raw]
    else:
        assert isinstance(rows, FloatRows)
        assert (rows.layout, rows.values.itemsize) == (found.layout, found.block_bytes)
        parts = [rows.values]
    assert all(part.flags.c_contiguous and part.flags.aligned for part in parts)


@pytest.mark.parametrize("encoding", sorted(BLOCK))
def test_packed_weights_take_the_bits_of_the_file(encoding: str) -> None:
    found, k = formats.find(encoding), 512
    matrix = _core.PackedMatrix(found.layout, 48, k, zero=found.zero, has_bias=found.has_bias)
    raw = random_rows(encoding, 48, k)
    found.decode(raw, k).pack(matrix, 0)
    assert matrix.bytes == raw.nbytes == 48 * k // found.elements * found.block_bytes


def test_codes_at_both_ends_decode_exactly() -> None:
    one = np.float16(1).tobytes()
    ends = {
        "Q8_0": (one + bytes([0x80, 0x7F] * 16), [-128, 127] * 16),
        "Q4_0": (one + b"\xf0" * 16, [-8] * 16 + [7] * 16),
        "Q4_1": (one + np.float16(-2).tobytes() + b"\x0f" * 16, [13] * 16 + [-2] * 16),
    }
    for encoding, (block, values) in ends.items():
        rows = formats.find(encoding).decode(np.frombuffer(block, np.uint8)[None], 32)
        assert rows.to_float(np.float64).tolist() == [values]


def test_every_half_and_bfloat_widens_exactly() -> None:
    bits = np.arange(65536, dtype=np.uint16)
    half = formats.find("F16").decode(bits.view(np.uint8)[None], 65536)
    np.testing.assert_array_equal(half.to_float(np.float64)[0], bits.view(np.float16).astype(np.float64))
    bfloat = formats.find("BF16").decode(bits.view(np.uint8)[None], 65536)
    np.testing.assert_array_equal(bfloat.to_float(np.float32)[0].view(np.uint32) >> 16, bits)


@pytest.mark.parametrize("encoding", sorted(BLOCK))
def test_bytes_that_do_not_match_the_row_length_are_refused(encoding: str) -> None:
    decode = formats.find(encoding).decode
    raw = random_rows(encoding, 2, 512)
    for wrong, k in ((raw, 768), (raw[:, 1:], 512), (raw[0], 512), (raw.astype(np.int16), 512), (raw, 511)):
        with pytest.raises(InvalidRequest, match=r"raw: .* expected uint8 \(rows, "):
            decode(wrong, k)


@pytest.mark.parametrize("encoding", sorted(BLOCK))
def test_unaligned_and_empty_bytes_decode_alike(encoding: str) -> None:
    raw = random_rows(encoding, 2, 256)
    shifted = np.concatenate([np.zeros(1, np.uint8), raw.ravel()])[1:].reshape(raw.shape)
    decode = formats.find(encoding).decode
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(decode(shifted, 256).to_float(np.float32), decode(raw, 256).to_float(np.float32))
    assert decode(raw[:0], 256).to_float(np.float32).shape == (0, 256)


def test_the_real_model_dequantises_as_the_gguf_package_does(real_model: Path) -> None:
    checkpoint = open_checkpoint(real_model)
    for info in list(checkpoint.tensors.values())[:12]:
        raw = checkpoint.read_rows(info.name, 0, info.rows)
        values = formats.find(info.encoding).decode(raw, info.shape[-1]).to_float(np.float32)
        np.testing.assert_array_equal(
            values, gguf.quants.dequantize(raw, Encoding[info.encoding]).reshape(values.shape)
        )
