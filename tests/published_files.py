"""Writers of published weight files, one loop at a time from each format's description, for tests."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt

DTYPES = {
    "uint8": "U8",
    "int8": "I8",
    "float16": "F16",
    "uint16": "BF16",
    "float32": "F32",
    "int32": "I32",
    "int64": "I64",
}


class MemoryTensors:
    """Tensors held in memory; counts what is read whole."""

    def __init__(self, arrays: dict[str, npt.NDArray[Any]]) -> None:
        self.arrays = arrays
        self.reads: dict[str, int] = {}

    def names(self) -> Collection[str]:
        return self.arrays.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self.arrays[name].shape

    def dtype(self, name: str) -> str:
        return DTYPES[self.arrays[name].dtype.name]

    def read(self, name: str) -> npt.NDArray[Any]:
        self.reads[name] = self.reads.get(name, 0) + 1
        return self.arrays[name].copy()

    def read_rows(self, name: str, begin: int, end: int) -> npt.NDArray[Any]:
        assert 0 <= begin <= end <= self.arrays[name].shape[0]
        return self.arrays[name][begin:end].copy()


def as_words(sequence: list[int], bits: int) -> npt.NDArray[np.int32]:
    """Codes of one line into int32 words, the first lowest; a last word that is not full has zeros above."""
    words = []
    for start in range(0, len(sequence), 32 // bits):
        word = 0
        for place, code in enumerate(sequence[start : start + 32 // bits]):
            assert 0 <= code < 1 << bits
            word |= code << (bits * place)
        words.append(word)
    return np.array(words, np.uint32).view(np.int32)


def words_along_rows(codes: npt.NDArray[Any], bits: int) -> npt.NDArray[np.int32]:
    return np.stack([as_words([int(code) for code in row], bits) for row in codes])


def words_along_columns(codes: npt.NDArray[Any], bits: int) -> npt.NDArray[np.int32]:
    return np.ascontiguousarray(words_along_rows(codes.T, bits).T)


def bf16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """The bits of values that bf16 holds exactly."""
    bits = values.astype(np.float32).view(np.uint32)
    assert not (bits & 0xFFFF).any()
    return (bits >> 16).astype(np.uint16)


def gptq(
    prefix: str,
    codes: npt.NDArray[Any],
    scales: npt.NDArray[Any],
    zeros: npt.NDArray[Any],
    bits: int,
    *,
    version: int = 1,
    g_idx: npt.NDArray[Any] | None = None,
) -> dict[str, npt.NDArray[Any]]:
    """codes [n, k]; scales, zeros [n, groups]."""
    stored = (zeros.astype(int) - (version == 1)) % (1 << bits)
    made = {
        f"{prefix}.qweight": words_along_columns(codes.T, bits),
        f"{prefix}.scales": np.ascontiguousarray(scales.T),
        f"{prefix}.qzeros": words_along_rows(stored.T, bits),
    }
    return made if g_idx is None else {**made, f"{prefix}.g_idx": g_idx.astype(np.int32)}


def awq(
    prefix: str, codes: npt.NDArray[Any], scales: npt.NDArray[Any], zeros: npt.NDArray[Any]
) -> dict[str, npt.NDArray[Any]]:
    """codes [n, k]; scales, zeros [n, groups]."""

    def packed(columns: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
        mixed = np.empty_like(columns)
        for start in range(0, columns.shape[1], 8):
            for place, output in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
                mixed[:, start + place] = columns[:, start + output]
        return words_along_rows(mixed, 4)

    return {
        f"{prefix}.qweight": packed(codes.T),
        f"{prefix}.scales": np.ascontiguousarray(scales.T),
        f"{prefix}.qzeros": packed(zeros.T),
    }


def compressed_tensors(
    prefix: str,
    codes: npt.NDArray[Any],
    scales: npt.NDArray[Any],
    zeros: npt.NDArray[Any] | None,
    bits: int,
    *,
    g_idx: npt.NDArray[Any] | None = None,
    packed_zeros: bool = True,
) -> dict[str, npt.NDArray[Any]]:
    """codes [n, k] and zeros [n, groups] as signed numbers."""
    half = 1 << (bits - 1)
    made: dict[str, npt.NDArray[Any]] = {
        f"{prefix}.weight_packed": words_along_rows(codes.astype(int) + half, bits),
        f"{prefix}.weight_scale": scales,
        f"{prefix}.weight_shape": np.array(codes.shape, np.int64),
    }
    if zeros is not None:
        made[f"{prefix}.weight_zero_point"] = (
            words_along_columns(zeros.astype(int) + half, bits) if packed_zeros else zeros.astype(np.int8)
        )
    return made if g_idx is None else {**made, f"{prefix}.weight_g_idx": g_idx.astype(np.int32)}


def bitsandbytes(
    prefix: str,
    codes: npt.NDArray[Any],
    table: npt.NDArray[np.float32],
    absmax: npt.NDArray[Any],
    blocksize: int,
    *,
    kind: str = "nf4",
    nested: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], float] | None = None,
    nested_blocksize: int = 256,
) -> dict[str, npt.NDArray[Any]]:
    """codes [n, k]; absmax of flat blocks; nested is (absmax of absmax, its table, offset)."""
    flat = [int(code) for code in codes.reshape(-1)]
    pairs = [flat[i] << 4 | flat[i + 1] for i in range(0, len(flat), 2)]
    state = {"quant_type": kind, "blocksize": blocksize, "dtype": "bfloat16", "shape": list(codes.shape)}
    made: dict[str, npt.NDArray[Any]] = {
        f"{prefix}.weight": np.array(pairs, np.uint8).reshape(-1, 1),
        f"{prefix}.weight.absmax": absmax,
        f"{prefix}.weight.quant_map": table.astype(np.float32),
    }
    if nested is not None:
        made[f"{prefix}.weight.nested_absmax"], made[f"{prefix}.weight.nested_quant_map"], offset = nested
        state |= {"nested_blocksize": nested_blocksize, "nested_dtype": "float32", "nested_offset": offset}
    blob = json.dumps(state).encode()
    return {**made, f"{prefix}.weight.quant_state.bitsandbytes__{kind}": np.frombuffer(blob, np.uint8)}


def hqq(
    prefix: str, codes: npt.NDArray[Any], scales: npt.NDArray[Any], zeros: npt.NDArray[Any], bits: int, *, group: int
) -> dict[str, npt.NDArray[Any]]:
    """codes [n, k]; scales, zeros [n, groups]."""
    lines = codes.reshape(-1, group).astype(np.uint8)
    if bits == 4:
        half = len(lines) // 2
        halves = zip(lines[:half], lines[half:], strict=True)
        pairs = [[high << 4 | low for high, low in zip(*pair, strict=True)] for pair in halves]
        lines = np.array(pairs, np.uint8)
    options = {"nbits": bits, "group_size": group, "axis": 1}
    flags = {"view_as_float": 0, "quant_scale": 0, "quant_zero": 0, "channel_wise": 1, "optimize": 1, "round_zero": 1}
    return {
        f"{prefix}.W_q": lines,
        f"{prefix}.scale": scales.reshape(-1, 1),
        f"{prefix}.zero": zeros.reshape(-1, 1),
        f"{prefix}.shape": np.array(codes.shape, np.int64),
        f"{prefix}.packing": np.frombuffer(f"{bits}bit_u8".encode(), np.uint8),
        **{f"{prefix}.{key}": np.array(value, np.int32) for key, value in options.items()},
        **{f"{prefix}.{key}": np.array(value, np.uint8) for key, value in flags.items()},
    }


def mxfp4(prefix: str, codes: npt.NDArray[Any], exponents: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
    """codes [..., n, k]; exponents [..., n, k / 32], as stored."""
    pairs = [int(low) | int(high) << 4 for low, high in codes.reshape(-1, 2)]
    *outer, k = codes.shape
    return {
        f"{prefix}_blocks": np.array(pairs, np.uint8).reshape(*outer, k // 32, 16),
        f"{prefix}_scales": exponents.astype(np.uint8),
    }


P = "model.layers.0.self_attn.q_proj"
NF4 = np.linspace(-1, 1, 16, dtype=np.float32) ** 3  # any table will do: the file's is used
FP4 = np.array([0, 0.0052083, 0.6667, 1, 0.3333, 0.5, 0.1667, 0.25] * 2, np.float32) * np.repeat([1, -1], 8)
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False, "desc_act": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
ROUND = {"quant_method": "auto-round", "bits": 4, "group_size": 32, "sym": False}
BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
HQQ = {"quant_method": "hqq", "quant_config": {}, "skip_modules": ["lm_head"]}
MXFP4 = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
FORMATS = ["gptq", "awq", "compressed", "ordered", "bnb", "nested", "hqq", "mxfp4"]


def compressed(bits: int = 4, group: int = 32, symmetric: bool = True, **options: object) -> dict[str, Any]:
    strategy = "channel" if group == -1 else "group"
    weights = {"num_bits": bits, "group_size": None if group == -1 else group, "strategy": strategy, "type": "int"}
    one = {"targets": ["Linear"], "weights": {**weights, "symmetric": symmetric, **options}, "input_activations": None}
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": one}}


def count_groups(k, group):
    return 1 if group == -1 else -(-k // group)


def numbers(n, k, group, bits, *, index=None, seed=1):
    """codes [n, k], fp16 scales and zeros [n, groups] of every size and sign, and the values that they mean."""
    rng = np.random.default_rng(seed)
    count = count_groups(k, group)
    codes = rng.integers(0, 1 << bits, (n, k))
    zeros = rng.integers(0, 1 << bits, (n, count))
    zeros[0, 0], zeros[-1, -1] = 0, (1 << bits) - 1
    scales = rng.normal(0, 0.01, (n, count)).astype(np.float16)
    if index is None:
        index = np.zeros(k, int) if group == -1 else np.arange(k) // group
    values = scales.astype(np.float64)[:, index] * (codes - zeros[:, index])
    return codes, scales, zeros, values


def example(format_name: str) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """A config and the tensors of a weight of (48, 64)."""
    codes, scales, zeros, _ = numbers(48, 64, 32, 4)
    exponents = np.full((48, 2), 120)
    return {
        "gptq": ({**GPTQ, "desc_act": True}, gptq(P, codes, scales, zeros, 4, g_idx=np.arange(64) // 32)),
        "awq": (AWQ, awq(P, codes, scales, zeros)),
        "compressed": (compressed(symmetric=False), compressed_tensors(P, codes - 8, scales, zeros - 8, 4)),
        "ordered": (
            compressed(actorder="group"),
            compressed_tensors(P, codes - 8, scales, None, 4, g_idx=np.arange(64) // 32),
        ),
        "bnb": (BNB, bitsandbytes(P, codes, NF4, np.ones(48, np.float32), 64)),
        "nested": (
            BNB,
            bitsandbytes(
                P, codes, NF4, np.ones(48, np.uint8), 64, nested=(np.ones(1, np.float32), np.ones(256, np.float32), 0.5)
            ),
        ),
        "hqq": (HQQ, hqq(P, codes, scales, zeros.astype(np.float16), 4, group=32)),
        "mxfp4": (MXFP4, mxfp4(P, codes, exponents)),
    }[format_name]
