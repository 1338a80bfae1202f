"""A folder's tokenizer as the keys `tokenizer.ggml.*` of a GGUF file, checked to give the same tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cpuinfer.errors import CheckpointError, UnsupportedModel
from cpuinfer.quantize.gguf_writer import Entry
from cpuinfer.quantize.pre_tokenizers import CHECK, recognised
from cpuinfer.quantize.sentencepiece_model import piece_list
from cpuinfer.tokenizer import Tokenizer
from cpuinfer.tokenizer.folder import chat_template
from cpuinfer.tokenizer.keys import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED

ADDED_SCORE = -1000.0
"""What converters give to tokens that were added to a SentencePiece vocabulary, which no merge makes."""
ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")
SPACE = "\u2581"
PLAIN = "in which 12 of 3456 words, it's said, don't\n  differ: caf\u00e9 \u4f60\u597d \U0001f600!"
TEXTS = (PLAIN, CHECK, " ", "\n\n", "a", " a  b ", "x = [1, 2];\n\treturn x\n")
"""What both tokenizers are asked, to see that they agree."""
Keys = dict[str, Entry]


def metadata(folder: Path, vocabulary: int) -> Keys:
    """The keys, for a table of `vocabulary` rows.

    Raises UnsupportedModel for a tokenizer that GGUF has no words for, or that would give other tokens there.
    """
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")):
        return _prefixed({"model": Entry("string", "none")})
    tokenizer = Tokenizer.from_folder(folder)
    if len(tokenizer.tokens) > vocabulary:
        raise UnsupportedModel(f"{folder}: {len(tokenizer.tokens)} tokens, expected up to {vocabulary}, a row for each")
    model = _json(folder / "tokenizer.json")
    kind = model.get("model", {}) if isinstance(model.get("model"), Mapping) else {}
    if (folder / "tokenizer.model").is_file() and (not model or kind.get("byte_fallback")):
        keys = _sentence_pieces(folder, tokenizer, vocabulary)
    elif kind.get("type", "BPE") != "BPE" or "vocab" not in kind:
        raise UnsupportedModel(f"{folder}: no tokenizer.model, nor a tokenizer.json of BPE: GGUF has no other")
    elif kind.get("byte_fallback"):
        keys = _merged_pieces(kind, tokenizer, vocabulary)
    else:
        keys = _byte_level(folder, model, tokenizer, vocabulary)
    keys = _prefixed(keys | _roles(folder, tokenizer))
    template, tool_use = chat_template(folder), chat_template(folder, "tool_use")
    if template is not None:
        keys["tokenizer.chat_template"] = Entry("string", template)
    if tool_use is not None:
        keys["tokenizer.chat_templates"] = Entry("string", ["tool_use"], is_array=True)
        keys["tokenizer.chat_template.tool_use"] = Entry("string", tool_use)
    _check(folder, tokenizer, keys)
    return keys


def _prefixed(keys: Mapping[str, Entry]) -> Keys:
    return {f"tokenizer.ggml.{key}": entry for key, entry in keys.items()}


def _byte_level(folder: Path, model: Mapping[str, Any], tokenizer: Tokenizer, vocabulary: int) -> Keys:
    tokens, types = _padded(tokenizer, vocabulary)
    merges = [_merge(pair) for pair in model["model"].get("merges", [])]
    return {
        "model": Entry("string", "gpt2"),
        "pre": Entry("string", recognised(folder / "tokenizer.json", model)),
        "tokens": Entry("string", tokens, is_array=True),
        "token_type": Entry("int32", types, is_array=True),
        "merges": Entry("string", merges, is_array=True),
    }


def _merge(pair: str | Sequence[str]) -> str:
    """Older files have one text; a space within a part is spelled as the byte alphabet spells it."""
    return pair if isinstance(pair, str) else " ".join(part.replace(" ", "\u0120") for part in pair)


def _padded(tokenizer: Tokenizer, vocabulary: int) -> tuple[list[str], list[int]]:
    """Tokens and their types, a row of the table each; rows without a token are unused ones."""
    tokens = list(tokenizer.tokens)
    types = [NORMAL] * len(tokens)
    for i, token in enumerate(tokens):
        if i in tokenizer.control_ids or (i in tokenizer.user_defined_ids and _looks_special(token)):
            types[i] = CONTROL
        elif i in tokenizer.user_defined_ids:
            types[i] = USER_DEFINED
        elif token == f"<unused {i}>":
            types[i] = UNUSED
    tokens += [f"[PAD{i}]" for i in range(len(tokens), vocabulary)]
    types += [UNUSED] * (vocabulary - len(types))
    return tokens, types


def _looks_special(token: str) -> bool:
    """Converters take these for control tokens though the folder does not call them special."""
    pairs = (("<|", "|>"), ("<\uff5c", "\uff5c>"), ("<unused", ">"))
    named = ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
    return token in named or any(token.startswith(begin) and token.endswith(end) for begin, end in pairs)


def _merged_pieces(kind: Mapping[str, Any], tokenizer: Tokenizer, vocabulary: int) -> Keys:
    """BPE with a fallback to bytes: a SentencePiece vocabulary whose scores were turned into a list of merges.

    A piece's score was less the later it was merged: the place of its first merge stands for it.
    """
    tokens, types = _padded(tokenizer, vocabulary)
    scores = [0.0 if kind == NORMAL else ADDED_SCORE for kind in types]
    ids = {token: i for i, token in enumerate(tokens)}
    for rank, pair in reversed(list(enumerate(kind.get("merges", [])))):
        piece = "".join(pair.split(" ")) if isinstance(pair, str) else "".join(pair)
        if piece in ids and types[ids[piece]] == NORMAL:
            scores[ids[piece]] = -float(rank)
    unknown = kind.get("unk_token")
    for i, token in enumerate(tokens):
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">") and types[i] == NORMAL:
            types[i] = BYTE
        elif token == unknown and types[i] == NORMAL:
            types[i] = UNKNOWN
        elif types[i] == USER_DEFINED:
            tokens[i] = token.replace(SPACE, " ")
    return _pieces(tokens, scores, types, tokenizer, ids.get(unknown) if isinstance(unknown, str) else None)


def _sentence_pieces(folder: Path, tokenizer: Tokenizer, vocabulary: int) -> Keys:
    """The pieces of a tokenizer.model, with the tokens that other files add."""
    tokens, types = _padded(tokenizer, vocabulary)
    scores, unknown = [ADDED_SCORE] * vocabulary, None
    for i, piece in enumerate(piece_list((folder / "tokenizer.model").read_bytes())[:vocabulary]):
        unknown = i if piece.type == UNKNOWN else unknown
        if types[i] not in (CONTROL, USER_DEFINED):  # as other files say
            tokens[i], types[i] = piece.text, piece.type
        if types[i] != USER_DEFINED or piece.type == USER_DEFINED:
            scores[i] = piece.score
    for i, kind in enumerate(types):
        if kind == USER_DEFINED:
            tokens[i] = tokens[i].replace(SPACE, " ")
    return _pieces(tokens, scores, types, tokenizer, unknown)


def _pieces(
    tokens: list[str], scores: list[float], types: list[int], tokenizer: Tokenizer, unknown: int | None
) -> Keys:
    keys = {
        "model": Entry("string", "llama"),
        "pre": Entry("string", "default"),
        "tokens": Entry("string", tokens, is_array=True),
        "scores": Entry("float32", scores, is_array=True),
        "token_type": Entry("int32", types, is_array=True),
        "add_space_prefix": Entry("bool", tokenizer.adds_space),
    }
    if unknown is not None:
        keys["unknown_token_id"] = Entry("uint32", unknown)
    return keys


def _roles(folder: Path, tokenizer: Tokenizer) -> Keys:
    """Which tokens begin and end texts."""
    keys: Keys = {}
    if tokenizer.bos_id is not None:
        keys["bos_token_id"] = Entry("uint32", tokenizer.bos_id)
    main = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    ends = main + sorted(tokenizer.eos_ids - set(main))
    keys |= {key: Entry("uint32", end) for key, end in zip(ENDS, ends, strict=False)}
    settings = _json(folder / "tokenizer_config.json")
    padding = settings.get("pad_token")
    padding = padding.get("content") if isinstance(padding, Mapping) else padding
    if isinstance(padding, str) and padding in tokenizer.tokens:
        keys["padding_token_id"] = Entry("uint32", list(tokenizer.tokens).index(padding))
    adds = tokenizer.bos_id is not None and tokenizer.encode("a")[:1] == [tokenizer.bos_id]
    keys["add_bos_token"] = Entry("bool", adds)
    return keys


def _check(folder: Path, tokenizer: Tokenizer, keys: Mapping[str, Entry]) -> None:
    """UnsupportedModel where the keys mean another tokenizer."""
    written = Tokenizer.from_metadata({key: _as_read(entry) for key, entry in keys.items()}, str(folder))
    specials = "".join(tokenizer.tokens[i] for i in sorted(tokenizer.control_ids)[:8])
    for text in (*TEXTS, f"a{specials}b"):
        wanted, found = tokenizer.encode(text), written.encode(text)
        if wanted != found:
            at = next((i for i, (a, b) in enumerate(zip(wanted, found, strict=False)) if a != b), 0)
            raise UnsupportedModel(
                f"{folder}: its tokenizer does something that GGUF has no key for: {text[:40]!r} becomes "
                f"{wanted[at : at + 4]} here, {found[at : at + 4]} there, from token {at} on"
            )


def _as_read(entry: Entry) -> Any:
    """A value as our reader gives it."""
    if not entry.is_array or entry.type == "string":
        return entry.value
    import numpy as np

    return np.array(entry.value, entry.type).data


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not JSON: {error}") from None
    return found if isinstance(found, dict) else {}
