"""Every format against the gguf package's dequantisation, on random and extreme blocks and on the real model."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Encoding

from cpuinfer import formats
from cpuinfer.checkpoint import open_checkpoint
from cpuinfer.errors import InvalidRequest, UnsupportedFormat
from cpuinfer.formats.canonical import FloatRows, IntegerRows, to_float

BLOCK = {"F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "Q8_0": (32, 34), "Q4_0": (32, 18), "Q4_1": (32, 20)}
SHAPES = [(1, 32), (3, 64), (2, 96), (7, 1024)]


def random_rows(encoding: str, rows: int, k: int) -> np.ndarray:
    """Random bytes: every code, and scales of every kind, subnormal, infinite and NaN among them."""
    elements, size = BLOCK[encoding]
    return np.random.default_rng(rows * k).integers(0, 256, (rows, k // elements * size), np.uint8)


def test_the_folder_is_the_registry() -> None:
    assert formats.supported() == tuple(sorted(BLOCK))
    for name in BLOCK:
        assert formats.find(name).name == name


@pytest.mark.parametrize("name", ["", "q4_1", "canonical", "CANONICAL", "Q4_2", "..Q4_1", "os", "Q4_1\n", "__INIT__"])
def test_a_name_that_is_no_format_is_refused_with_the_list(name: str) -> None:
    with pytest.raises(UnsupportedFormat, match="is not supported; supported are BF16, F16, F32, Q4_0, Q4_1, Q8_0"):
        formats.find(name)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("encoding", sorted(BLOCK))
def test_values_equal_those_of_the_gguf_package(encoding: str, shape: tuple[int, int]) -> None:
    raw = random_rows(encoding, *shape)
    with np.errstate(all="ignore"):
        values = to_float(formats.find(encoding).decode(raw, shape[1]), np.float32)
        expected = gguf.quants.dequantize(raw, Encoding[encoding])
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize("encoding", sorted(BLOCK))
def test_decoded_rows_are_what_the_format_declares(encoding: str) -> None:
    found = formats.find(encoding)
    rows = found.decode(random_rows(encoding, 3, 64), 64)
    if isinstance(rows, IntegerRows):
        assert not found.is_float
        assert (rows.codes.shape, rows.codes.dtype, rows.scale.shape, rows.scale.dtype) == ((3, 64), "u1", (3, 2), "f2")
        assert rows.codes.max() < 2**found.bits
        assert (rows.zero, rows.bias is not None) == (found.zero, found.has_bias)
        assert found.layout == f"int{found.bits}"
        parts = [rows.codes, rows.scale, *([] if rows.bias is None else [rows.bias])]
    else:
        assert isinstance(rows, FloatRows)
        assert found.is_float
        assert (rows.layout, rows.values.itemsize * 8) == (found.layout, found.bits)
        parts = [rows.values]
    assert all(part.flags.c_contiguous and part.flags.aligned for part in parts)


def test_codes_at_both_ends_decode_exactly() -> None:
    one = np.float16(1).tobytes()
    ends = {
        "Q8_0": (one + bytes([0x80, 0x7F] * 16), [-128, 127] * 16),
        "Q4_0": (one + b"\xf0" * 16, [-8] * 16 + [7] * 16),
        "Q4_1": (one + np.float16(-2).tobytes() + b"\x0f" * 16, [13] * 16 + [-2] * 16),
    }
    for encoding, (block, values) in ends.items():
        rows = formats.find(encoding).decode(np.frombuffer(block, np.uint8)[None], 32)
        assert to_float(rows, np.float64).tolist() == [values]


def test_every_half_and_bfloat_widens_exactly() -> None:
    bits = np.arange(65536, dtype=np.uint16)
    half = formats.find("F16").decode(bits.view(np.uint8)[None], 65536)
    np.testing.assert_array_equal(to_float(half, np.float64)[0], bits.view(np.float16).astype(np.float64))
    bfloat = formats.find("BF16").decode(bits.view(np.uint8)[None], 65536)
    np.testing.assert_array_equal(to_float(bfloat, np.float32)[0].view(np.uint32) >> 16, bits)


@pytest.mark.parametrize("encoding", sorted(BLOCK))
def test_bytes_that_do_not_match_the_row_length_are_refused(encoding: str) -> None:
    decode = formats.find(encoding).decode
    raw = random_rows(encoding, 2, 64)
    for wrong, k in ((raw, 96), (raw[:, 1:], 64), (raw[0], 64), (raw.astype(np.int16), 64), (raw, 63)):
        with pytest.raises(InvalidRequest, match=r"raw: .* expected uint8 \(rows, "):
            decode(wrong, k)


@pytest.mark.parametrize("encoding", sorted(BLOCK))
def test_unaligned_and_empty_bytes_decode_alike(encoding: str) -> None:
    raw = random_rows(encoding, 2, 64)
    shifted = np.concatenate([np.zeros(1, np.uint8), raw.ravel()])[1:].reshape(raw.shape)
    decode = formats.find(encoding).decode
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(to_float(decode(shifted, 64), np.float32), to_float(decode(raw, 64), np.float32))
    assert to_float(decode(raw[:0], 64), np.float32).shape == (0, 64)


def test_the_real_model_dequantises_as_the_gguf_package_does(real_model: Path) -> None:
    checkpoint = open_checkpoint(real_model)
    for info in list(checkpoint.tensors.values())[:12]:
        raw = checkpoint.read_rows(info.name, 0, info.rows)
        values = to_float(formats.find(info.encoding).decode(raw, info.shape[-1]), np.float32)
        np.testing.assert_array_equal(
            values, gguf.quants.dequantize(raw, Encoding[info.encoding]).reshape(values.shape)
        )
