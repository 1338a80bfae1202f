"""Writes a complete, tiny Llama GGUF (random weights, a working byte-level tokenizer) with the gguf package."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Encoding

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = ("Ġ t", "h e", "i n", "Ġ a", "r e", "o n", "Ġt he", "e r", "l l", "o r", "Ġ w", "Ġw or")
CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou answer briefly.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_alphabet() -> list[str]:
    """The character that byte-level BPE writes for each byte: itself if it prints, else the next one from U+0100."""
    prints = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in prints]
    return [chr(byte) if byte in prints else chr(0x100 + hidden.index(byte)) for byte in range(256)]


def vocabulary(size: int | None = None) -> list[str]:
    """Special tokens, 256 bytes, one token per merge, then unused tokens up to ``size``."""
    tokens = [*SPECIAL_TOKENS, *byte_alphabet(), *(merge.replace(" ", "") for merge in MERGES)]
    size = size or len(tokens)
    if size < len(tokens):
        raise ValueError(f"a vocabulary of {size}, expected at least {len(tokens)}")
    return tokens + [f"<unused {i}>" for i in range(size - len(tokens))]


SCALES = {
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
    "IQ2_XXS": (0,),
    "IQ2_XS": (0,),
    "IQ2_S": (0,),
    "IQ3_XXS": (0,),
    "IQ3_S": (0,),
    "IQ1_S": (0,),
}
"""Where blocks have their fp16 scales, of types the gguf package does not write."""


def random_blocks(kind: str, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """Random codes, with scales that make the weights about 1 / sqrt(inputs)."""
    inputs, size = gguf.GGML_QUANT_SIZES[Encoding[kind]]
    raw = random.integers(0, 256, (shape[0], shape[1] // inputs, size), dtype=np.uint8)

    def with_scale(scale: float) -> np.ndarray:
        for offset in SCALES[kind]:
            raw[:, :, offset : offset + 2] = np.full(1, scale, np.float16).view(np.uint8)
        return raw.reshape(shape[0], -1)

    deviation = gguf.quants.dequantize(with_scale(1.0), Encoding[kind]).std()
    return with_scale(1 / deviation / np.sqrt(shape[1]))


def write_tiny_llama(
    path: Path,
    *,
    encoding: str = "Q4_0",
    embedding: str | None = None,
    tied: bool = True,
    layers: int = 2,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    feed_forward: int = 96,
    vocab: int | None = None,
    context: int = 512,
    rope_base: float = 10000.0,
    seed: int = 0,
    split_max_tensors: int = 0,
) -> Path:
    """Write the model to ``path`` and return it; ``embedding`` is the encoding of the token table (default Q8_0)."""
    tokens = vocabulary(vocab)
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=split_max_tensors)
    writer.add_name("tiny")
    writer.add_block_count(layers)
    writer.add_context_length(context)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(feed_forward)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_rope_freq_base(rope_base)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    _add_tokenizer(writer, tokens)

    random = np.random.default_rng(seed)

    def add(name: str, shape: tuple[int, ...], kind: str) -> None:
        if len(shape) == 1:
            values = 1 + 0.1 * random.standard_normal(shape, dtype=np.float32)
        else:
            values = random.standard_normal(shape, dtype=np.float32) / np.float32(np.sqrt(shape[-1]))
        raw = random_blocks(kind, shape, random) if kind in SCALES else gguf.quants.quantize(values, Encoding[kind])
        writer.add_tensor(name, raw, raw_dtype=Encoding[kind])

    kv_width = hidden // heads * kv_heads
    add("token_embd.weight", (len(tokens), hidden), embedding or "Q8_0")
    for i in range(layers):
        add(f"blk.{i}.attn_norm.weight", (hidden,), "F32")
        add(f"blk.{i}.attn_q.weight", (hidden, hidden), encoding)
        add(f"blk.{i}.attn_k.weight", (kv_width, hidden), encoding)
        add(f"blk.{i}.attn_v.weight", (kv_width, hidden), encoding)
        add(f"blk.{i}.attn_output.weight", (hidden, hidden), encoding)
        add(f"blk.{i}.ffn_norm.weight", (hidden,), "F32")
        add(f"blk.{i}.ffn_gate.weight", (feed_forward, hidden), encoding)
        add(f"blk.{i}.ffn_up.weight", (feed_forward, hidden), encoding)
        add(f"blk.{i}.ffn_down.weight", (hidden, feed_forward), encoding)
    add("output_norm.weight", (hidden,), "F32")
    if not tied:
        add("output.weight", (len(tokens), hidden), encoding)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: gguf.GGUFWriter, tokens: list[str]) -> None:
    control = set(SPECIAL_TOKENS) | {token for token in tokens if token.startswith("<unused ")}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if token in control else gguf.TokenType.NORMAL for token in tokens])
    writer.add_token_merges(list(MERGES))
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(CHAT_TEMPLATE)
