"""What `show` prints of a model: plain data, made by describe.describe from a file's header."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TensorKind:
    """All tensors of one kind and encoding, such as every layer's query projection."""

    kind: str
    """The tensor's name without its layer: `self_attn.q_proj`."""
    encoding: str
    """As the file stores it: `Q4_1`."""
    layout: str
    """As the kernels read it: int4, int8, q4_k, ..., f16, bf16 or f32."""
    count: int
    shape: tuple[int, ...]
    """Of one tensor: (outputs, inputs), or (width,)."""
    bits_per_weight: float
    """In the file, scales included."""
    packed_bits: float
    """The same as the kernels read them, rows padded to panels of 16."""
    bytes: int
    """Of all of them, in the file."""


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes that running the model takes."""

    weights: int
    cache: int
    """Keys and values of one sequence as long as the context."""
    scratch: int
    overhead: int
    """Interpreter, libraries, tokenizer."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.cache + self.scratch + self.overhead


@dataclass(frozen=True, slots=True)
class Description:
    """A model file: what it holds and what running it takes."""

    name: str
    format: str
    """GGUF or safetensors."""
    architecture: str
    parameters: int
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    vocabulary: int
    context: int
    tied: bool
    """The output head is the embedding table."""
    rope: str
    tokenizer: str
    has_chat_template: bool
    file_bytes: int
    tensors: tuple[TensorKind, ...]
    memory: MemoryEstimate
    bytes_per_token: int
    """Packed bytes of weights read to decode one token."""
    kv_cache: str = "f16"
    """How keys and values are kept in this estimate."""
    left_out: tuple[str, ...] = ()
    """Parts of the model that the files have and nothing reads: `vision_tower`."""
