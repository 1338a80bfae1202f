"""Tokenizers from the metadata of a GGUF file: byte-level BPE, SentencePiece and WordPiece."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import NoReturn

from cpuinfer.errors import UnsupportedModel
from cpuinfer.tokenizer import sentence_pieces
from cpuinfer.tokenizer.base import Special, Tokenizer, TokenizerWarning, ending_ids
from cpuinfer.tokenizer.bytelevel import ByteLevel, Words
from cpuinfer.tokenizer.keys import CONTROL, UNKNOWN, UNUSED, USER_DEFINED, Keys
from cpuinfer.tokenizer.splits import DEFAULT, SPLITS, Split
from cpuinfer.tokenizer.wordpiece import WordPiece

_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")


def from_metadata(metadata: Mapping[str, object], source: str) -> Tokenizer:
    """The tokenizer of a file; see Tokenizer.from_metadata."""
    keys = Keys(metadata, source)
    match keys.get("model"):
        case "gpt2":
            return _byte_level(keys)
        case "llama" | "t5" as model:
            return _sentence_pieces(keys, "bpe" if model == "llama" else "unigram")
        case "bert":
            return _word_piece(keys)
        case model:
            raise UnsupportedModel(
                f"{source}: tokenizer.ggml.model is {model!r}, expected 'gpt2', 'llama', 't5' or 'bert'"
            )


def _special(keys: Keys, tokens: list[str], *, add_bos: bool) -> Special:
    control = keys.ids_of_type(CONTROL, len(tokens))
    bos_id = keys.token_id("bos_token_id", len(tokens))
    if bos_id is None and keys.get("model") == "bert":
        bos_id = keys.token_id("cls_token_id", len(tokens))
    named = [keys.token_id(key, len(tokens)) for key in _END_KEYS]
    add_bos = keys.flag("add_bos_token", add_bos)
    if add_bos and bos_id is None:
        keys.refuse("add_bos_token", "is true, but there is no tokenizer.ggml.bos_token_id")
    return Special(
        control=control,
        user_defined=keys.ids_of_type(USER_DEFINED, len(tokens)),
        bos_id=bos_id,
        eos_id=named[0],
        eos_ids=ending_ids(tokens, control, named),
        add_bos=add_bos,
    )


def _byte_level(keys: Keys) -> Tokenizer:
    split = _split_named(keys)
    tokens = keys.tokens()
    special = _special(keys, tokens, add_bos=split.add_bos)
    merges = keys.strings("merges")

    def refuse(i: int) -> NoReturn:
        keys.refuse("merges", f"[{i}] is {merges[i]!r}, expected two tokens that join to a third")

    # Without the control tokens: no spelling of a text can merge into one.
    return ByteLevel(tokens, special, Words(tokens, special.control, merges, split, refuse))


def _split_named(keys: Keys) -> Split:
    name = keys.get("pre")
    if name is None or name == "default" or not isinstance(name, str) or name not in SPLITS:
        fault = "does not name a pre-tokenizer" if name in {None, "default"} else f"is {name!r}, which is not known"
        warnings.warn(
            f"{keys.source}: tokenizer.ggml.pre {fault}; {DEFAULT!r} is taken: "
            "token ids may differ from those the model was trained on",
            TokenizerWarning,
            stacklevel=6,
        )
        name = DEFAULT
    return SPLITS[str(name)]


def _sentence_pieces(keys: Keys, model: str) -> Tokenizer:
    tokens = keys.tokens()
    add_prefix = keys.flag("add_space_prefix", True)
    special = replace(_special(keys, tokens, add_bos=model == "bpe"), adds_space=add_prefix)
    types, scores = keys.types(len(tokens)), keys.scores(len(tokens))
    unknown = keys.token_id("unknown_token_id", len(tokens))
    if unknown is None:
        found = [i for i, kind in enumerate(types) if kind == UNKNOWN]
        if len(found) != 1:
            keys.refuse("token_type", f"has {len(found)} unknown tokens, expected one, or unknown_token_id to name it")
        unknown = found[0]
    types = [UNUSED if kind == UNKNOWN else kind for kind in types]
    types[unknown] = UNKNOWN
    proto = sentence_pieces.model_proto(
        tokens,
        scores,
        types,
        model=model,
        unknown=unknown,
        add_prefix=add_prefix,
        remove_extra=keys.flag("remove_extra_whitespaces", False),
        charsmap=keys.raw_bytes("precompiled_charsmap"),
    )
    return sentence_pieces.SentencePieces(tokens, types, special, proto, f"{keys.source}: tokenizer.ggml.tokens")


def _word_piece(keys: Keys) -> Tokenizer:
    """Converters write word beginnings with a leading U+2581 and leave "##" out of the rest."""
    stored = keys.tokens()
    special = _special(keys, stored, add_bos=keys.get("cls_token_id") is not None)
    special = replace(special, adds_space=True)
    tokens = [
        token if i in special.control else token[1:] if token.startswith("\u2581") else f"##{token}"
        for i, token in enumerate(stored)
    ]
    return WordPiece(tokens, special, lowercase=keys.flag("lowercase", True), source=keys.source)
