"""Byte-level BPE by definition, to test against, and a small vocabulary to test with."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterator

import numpy as np

from cpuinfer.tokenizer import Tokenizer


def letters() -> list[str]:
    """The letter of every byte: itself if it prints, else the next from U+0100 on (GPT-2's table)."""
    out, extra = [], 0x100
    for byte in range(256):
        if chr(byte).isprintable() and byte not in (0x20, 0xA0, 0xAD):
            out.append(chr(byte))
        else:
            out.append(chr(extra))
            extra += 1
    return out


LETTERS = letters()
SPACE = set("\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000") | {chr(c) for c in range(0x2000, 0x200B)}


def kind(character: str) -> str:
    if character in SPACE:
        return " "
    first = unicodedata.category(character)[0]
    return first if first in "LN" else "?"


def words(text: str) -> Iterator[str]:
    """GPT-2's words: a contraction; letters, digits or symbols with one space before; or white space."""
    at = 0
    while at < len(text):
        short = next((s for s in ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d") if text.startswith(s, at)), None)
        if short:
            end = at + len(short)
        else:
            start = at + (text[at] == " " and at + 1 < len(text) and kind(text[at + 1]) != " ")
            end = start
            while end < len(text) and kind(text[end]) == kind(text[start]):
                end += 1
            if kind(text[start]) == " " and end < len(text) and end - at > 1:
                end -= 1  # the last space belongs to the next word
        yield text[at:end]
        at = end


def segments(text: str) -> Iterator[str]:
    """Every digit by itself, and what lies between."""
    held = ""
    for character in text:
        if kind(character) == "N":
            yield from filter(None, (held, character))
            held = ""
        else:
            held += character
    yield from filter(None, (held,))


def merge(word: str, ids: dict[str, int], ranks: dict[str, int]) -> list[int]:
    parts = [LETTERS[byte] for byte in word.encode() if LETTERS[byte] in ids]
    while len(parts) > 1:
        ranked = [(ranks.get(f"{a} {b}", len(ranks)), i) for i, (a, b) in enumerate(itertools.pairwise(parts))]
        rank, i = min(ranked)
        if rank == len(ranks):
            break
        parts[i : i + 2] = ["".join(parts[i : i + 2])]
    return [ids[part] for part in parts]


def by_hand(text: str, metadata: dict[str, object]) -> list[int]:
    ids = {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    ranks = {pair: i for i, pair in enumerate(metadata["tokenizer.ggml.merges"])}
    single = metadata["tokenizer.ggml.pre"] == "smollm"
    return [
        i for part in (segments(text) if single else [text]) for word in words(part) for i in merge(word, ids, ranks)
    ]


SPECIAL = ["<|im_start|>", "<|im_end|>", "<|im_end|>>", "<|endoftext|>"]


def small(**changes: object) -> dict[str, object]:
    """All bytes, a few merges, four control tokens and a user-defined one."""
    merges = ["h e", "l l", "he ll", "hell o", "Ġ hell", "1 2", "Ġ Ġ", "Ċ Ċ", "Ã ©", "ð Ł"]
    tokens = LETTERS + [m.replace(" ", "") for m in merges] + SPECIAL + ["  tab  "]
    types = [1] * (len(tokens) - 5) + [3] * 4 + [4]
    metadata: dict[str, object] = {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": tokens,
        "merges": merges,
        "token_type": np.array(types, np.int32),
        "bos_token_id": tokens.index("<|im_start|>"),
        "eos_token_id": tokens.index("<|endoftext|>"),
        "add_bos_token": False,
    }
    metadata |= changes
    return {f"tokenizer.ggml.{key}": value for key, value in metadata.items() if value is not None}


def build(**changes: object) -> Tokenizer:
    return Tokenizer.from_metadata(small(**changes), "small.gguf")


SMALL = build()
BOS, END, LONGER, EOT = (small()["tokenizer.ggml.tokens"].index(token) for token in SPECIAL)
