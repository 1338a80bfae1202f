"""Types of the native core."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cpuinfer.checkpoint import Reader
from cpuinfer.config import Activation
from cpuinfer.formats.canonical import BlockLayout, Layout
from cpuinfer.formats.packed import Codebook
from cpuinfer.request import Want

# Files

def gguf_tensor_types() -> list[tuple[int, str, int, int]]: ...

class Gguf:
    def __init__(self, path: bytes) -> None: ...
    def files(self) -> list[tuple[bytes, int]]: ...
    def keys(self) -> list[str]: ...
    def type(self, key: str) -> tuple[str, int | None]: ...
    def value(self, key: str) -> int | float | bool | str | list[str] | memoryview: ...
    def tensors(self) -> list[tuple[str, tuple[int, ...], str, int, int]]: ...
    def floats(self, name: str) -> memoryview: ...
    def read_rows(self, name: str, begin: int, end: int, out: npt.NDArray[np.uint8]) -> None: ...

class Packing:
    def __init__(self, jobs: Sequence[tuple[Reader, str, PackedMatrix]], threads: int) -> None: ...
    def wait(self) -> None: ...
    def stop(self) -> None: ...

# Quantisers

def quantize_blocks(
    type: str, w: npt.NDArray[Any], importance: npt.NDArray[np.float32] | None = None, *, search: bool
) -> npt.NDArray[np.uint8]: ...
def block_scales(
    type: str, blocks: npt.NDArray[np.uint8]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32] | None]: ...
def represent_blocks(
    type: str, scale: npt.NDArray[np.float32], offset: npt.NDArray[np.float32] | None = None
) -> npt.NDArray[np.uint8]: ...
def with_codes(type: str, blocks: npt.NDArray[np.uint8], codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]: ...
def search_scales(
    levels: npt.NDArray[np.float32],
    group: int,
    w: npt.NDArray[Any],
    importance: npt.NDArray[np.float32] | None,
    plain: npt.NDArray[np.float32],
) -> npt.NDArray[np.float32]: ...
def search_zeros(
    last: int,
    group: int,
    w: npt.NDArray[Any],
    importance: npt.NDArray[np.float32] | None,
    plain: npt.NDArray[np.float32],
    zeros: npt.NDArray[np.uint8],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]: ...
def nearest_codes(
    levels: npt.NDArray[np.float32],
    group: int,
    w: npt.NDArray[Any],
    scale: npt.NDArray[np.float32],
    offset: npt.NDArray[np.float32] | None = None,
) -> npt.NDArray[np.uint8]: ...

# Text

class BytePairs:
    def __init__(self, tokens: list[str], left_out: list[int], whole_words: bool) -> None: ...
    def add_merges(self, merges: list[str]) -> int: ...
    def encode(self, words: list[str]) -> list[int]: ...

def write_pieces(pieces: list[str], scores: list[float], types: list[int]) -> bytes: ...

# The machine

def cpu_features() -> dict[str, str | list[str]]: ...
def read_bandwidth(bytes: int, threads: int, seconds: float = 0.3) -> float: ...

# Kernels

def kernel_sets() -> list[dict[str, Any]]: ...
def select_kernels(name: str | None = None) -> str: ...

class BufferPool:
    def __init__(self, bytes: int) -> None: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

def codebook(name: Codebook) -> npt.NDArray[np.int8]: ...
def read_blocks(layout: BlockLayout, raw: npt.NDArray[np.uint8], k: int) -> npt.NDArray[np.float32]: ...

class PackedMatrix:
    def __init__(
        self,
        encoding: Layout,
        n: int,
        k: int,
        *,
        zero: int = 0,
        has_bias: bool = False,
        has_zeros: bool = False,
        group: int = 32,
        table: Sequence[float] | npt.NDArray[np.float32] | None = None,
        pool: BufferPool | None = None,
        room: int = 0,
        beside: PackedMatrix | None = None,
    ) -> None: ...
    def set_integer_rows(
        self,
        row: int,
        codes: npt.NDArray[np.uint8],
        scale: npt.NDArray[np.float16],
        bias: npt.NDArray[np.float16] | None = None,
        zeros: npt.NDArray[np.uint8] | None = None,
    ) -> None: ...
    def set_block_rows(self, row: int, blocks: npt.NDArray[np.uint8]) -> None: ...
    def set_float_rows(self, row: int, values: npt.NDArray[Any]) -> None: ...
    def read_row(self, row: int) -> npt.NDArray[np.float32]: ...
    @property
    def encoding(self) -> Layout: ...
    @property
    def n(self) -> int: ...
    @property
    def k(self) -> int: ...
    @property
    def zero(self) -> int: ...
    @property
    def has_bias(self) -> bool: ...
    @property
    def has_zeros(self) -> bool: ...
    @property
    def group(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def panel_bytes(self) -> int: ...

def matmul(matrix: PackedMatrix, x: npt.NDArray[np.float32], isa: str | None = None) -> npt.NDArray[np.float32]: ...
def quantize_rows(
    x: npt.NDArray[np.float32], isa: str | None = None
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32], npt.NDArray[np.int32]]: ...

# Sampling

class Sampler:
    def __init__(
        self,
        *,
        vocabulary: int,
        temperature: float = ...,
        top_k: int = ...,
        top_p: float = ...,
        min_p: float = ...,
        repetition_penalty: float = ...,
        presence_penalty: float = ...,
        frequency_penalty: float = ...,
        logit_bias: Sequence[tuple[int, float]] = ...,
        seed: int = ...,
        order: Sequence[str] = ...,
        logprobs: int = ...,
    ) -> None: ...
    def see_prompt(self, tokens: Sequence[int] | npt.NDArray[np.int32]) -> None: ...
    def sample(self, logits: npt.NDArray[np.float32]) -> tuple[int, float | None, list[tuple[int, float]] | None]: ...

def philox(key: Sequence[int], counter: Sequence[int]) -> list[int]: ...

# Running

_Vector = memoryview | npt.NDArray[np.float32]
_Norm = tuple[str, _Vector, _Vector | None, float] | None

class Program:
    def __init__(self, ropes: Sequence[tuple[Sequence[float], bool, float]]) -> None: ...
    def embed(
        self,
        name: str,
        table: PackedMatrix,
        *,
        scale: float = 1.0,
        positions: PackedMatrix | None = None,
        position_offset: int = 0,
    ) -> int: ...
    def normalize(self, name: str, x: int, norm: _Norm, *, groups: int = 1, residual: int | None = None) -> int: ...
    def linears(
        self,
        name: str,
        x: int,
        norm: _Norm,
        weights: Sequence[PackedMatrix],
        *,
        biases: Sequence[_Vector | None],
        act: Activation | None = None,
        softcap: float = 0.0,
        residual: int | None = None,
        input_order: Sequence[int] = (),
    ) -> list[int]: ...
    def glu(
        self,
        name: str,
        x: int,
        norm: _Norm,
        gate: PackedMatrix,
        up: PackedMatrix,
        *,
        biases: Sequence[_Vector | None],
        act: Activation,
        input_order: Sequence[int] = (),
    ) -> int: ...
    def experts(
        self,
        name: str,
        x: int,
        norm: _Norm,
        weights: Sequence[PackedMatrix],
        *,
        count: int,
        used: int,
        renormalise: bool,
        act: Activation,
        residual: int | None = None,
        input_order: Sequence[int] = (),
        inner_order: Sequence[int] = (),
    ) -> int: ...
    def gated(self, name: str, x: int, gate: int, *, residual: int | None = None) -> int: ...
    def attention(
        self,
        name: str,
        q: int,
        k: int,
        v: int,
        *,
        layer: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        scale: float,
        rope: int = -1,
        window: int = 0,
        softcap: float = 0.0,
        slopes: Sequence[float] = (),
    ) -> int: ...

class ArenaLayout:
    def __init__(self) -> None: ...
    def take(self, floats: int) -> int: ...
    def give_back(self, offset: int, floats: int) -> None: ...
    @property
    def end(self) -> int: ...

def worker_bytes(*, widest: int, head_dim: int, experts: int, tiled_rows: int) -> int: ...

class Session:
    def __init__(
        self,
        program: Program,
        *,
        isa: str = "",
        threads: int,
        batch: int,
        context: int,
        cache_pages: int,
        cache: str = "f16",
        kept_pages: int = 0,
        keep_values: bool = False,
        profile: bool = False,
        tiles: bool = False,
    ) -> None: ...
    def open(self, sampler: Sampler | None = None) -> int: ...
    def close(self, sequence: int) -> None: ...
    def reuse(self, sequence: int, prompt: Sequence[int]) -> int: ...
    def length(self, sequence: int) -> int: ...
    def step(self, feeds: Sequence[tuple[int, Sequence[int], Want, Sequence[int] | None]]) -> list[Any]: ...
    def cancel(self) -> None: ...
    def value(self, id: int, rows: int) -> npt.NDArray[np.float32]: ...
    def profile(self) -> list[tuple[str, Literal["prompt", "decoding"], int, int, float, float, float]]: ...
    @property
    def vocabulary(self) -> int: ...
    @property
    def weight_bytes(self) -> int: ...
    @property
    def arena_bytes(self) -> int: ...
    @property
    def page_bytes(self) -> int: ...
    @property
    def pages_used(self) -> int: ...
    @property
    def pages_kept(self) -> int: ...
