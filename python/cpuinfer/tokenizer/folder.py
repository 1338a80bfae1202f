"""Tokenizers from the files of a Hugging Face folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from cpuinfer.errors import CheckpointError, UnsupportedModel
from cpuinfer.tokenizer.base import Special, Tokenizer, byte_alphabet, ending_ids
from cpuinfer.tokenizer.bytelevel import ByteLevel, Words
from cpuinfer.tokenizer.guard import guarded
from cpuinfer.tokenizer.keys import CONTROL, NORMAL, USER_DEFINED
from cpuinfer.tokenizer.sentence_pieces import SPACE, SentencePieces
from cpuinfer.tokenizer.splits import SPLITS
from cpuinfer.tokenizer.wordpiece import WordPiece

if TYPE_CHECKING:
    from tokenizers import Tokenizer as FastTokenizer

MOST_BYTES = 64 << 20
"""Of any of these files; the largest vocabularies in use take half of it."""
TEMPLATE, MORE_TEMPLATES = "chat_template.jinja", "additional_chat_templates"


def from_folder(path: Path) -> Tokenizer:
    """The tokenizer of a folder; see Tokenizer.from_folder."""
    if (path / "tokenizer.json").is_file():
        return JsonTokenizer(path)
    if (path / "tokenizer.model").is_file():
        return _sentence_pieces(path)
    if (path / "vocab.json").is_file() and (path / "merges.txt").is_file():
        return _vocabulary_and_merges(path)
    if (path / "vocab.txt").is_file():
        return _vocabulary(path)
    raise UnsupportedModel(
        f"{path}: no tokenizer: expected tokenizer.json, tokenizer.model, vocab.json with merges.txt, or vocab.txt"
    )


def chat_template(path: Path, name: str = "default") -> str | None:
    """The folder's chat template of a name: a file of its own, or in tokenizer_config.json; None without."""
    own = path / (TEMPLATE if name == "default" else f"{MORE_TEMPLATES}/{name}.jinja")
    if own.is_file():
        return _read(own).decode("utf-8", errors="replace")
    template = _settings(path, "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):  # several by name
        named = (entry for entry in template if isinstance(entry, dict) and entry.get("name") == name)
        template = next(named, {}).get("template")
    elif name != "default":
        return None
    if template is not None and not isinstance(template, str):
        raise CheckpointError(f"{path / 'tokenizer_config.json'}: chat_template is not a text")
    return template


class JsonTokenizer(Tokenizer):
    """A tokenizer.json as it is, by the library that wrote it.

    The post-processor is not asked for: BOS is added by `encode`, if the post-processor would.
    """

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer as Fast

        self._where = where = path / "tokenizer.json"
        text = _read(where)
        with guarded(self._refuse):
            self._fast = Fast.from_buffer(text)
            self._plain = Fast.from_buffer(text)
            self._plain.encode_special_tokens = True
            for fast in (self._fast, self._plain):
                fast.no_padding()
                fast.no_truncation()
                _add_missing(fast, path)
            vocabulary = self._fast.get_vocab(with_added_tokens=True)
            added = self._fast.get_added_tokens_decoder()
            first = self._fast.encode("", add_special_tokens=True).ids[:1]
            lead = self._fast.encode("a", add_special_tokens=False).ids[:1]
        if not vocabulary:
            self._refuse("its vocabulary is empty")
        tokens = _by_id(vocabulary, where)
        control = frozenset(i for i, token in added.items() if token.special)
        special = _special(path, tokens, control, frozenset(added) - control, first)
        self._byte_of = byte_alphabet() if b'"ByteLevel"' in text else None
        adds_space = self._byte_of is None and "".join(tokens[i] for i in lead).startswith(SPACE)
        super().__init__(tokens, replace(special, adds_space=adds_space))

    def _refuse(self, fault: str) -> NoReturn:
        raise CheckpointError(f"{self._where}: not a sound tokenizer: {fault}")

    def _encode_all(self, text: str, *, parse_special: bool) -> list[int]:
        fast = self._fast if parse_special else self._plain
        with guarded(self._refuse):
            return list(fast.encode(text, add_special_tokens=False).ids)

    def _encode_piece(self, piece: str) -> Sequence[int]:
        return self._encode_all(piece, parse_special=True)

    def _piece_bytes(self, token: str, _: int, /) -> bytes:
        if self._byte_of is not None:
            try:
                return bytes([self._byte_of[letter] for letter in token])
            except KeyError:
                return token.encode()
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            try:
                return bytes([int(token[3:5], 16)])
            except ValueError:
                pass
        return token.replace(SPACE, " ").encode()


def _add_missing(fast: FastTokenizer, path: Path) -> None:
    """Add what tokenizer_config.json and added_tokens.json name, tokenizer.json lacks and the model has a row for."""
    from tokenizers import AddedToken

    rows = _settings(path, "config.json").get("vocab_size")
    for i, (text, kind) in sorted(_added_tokens(path).items()):
        free = i == fast.get_vocab_size(with_added_tokens=True) and _is_id(i, rows if isinstance(rows, int) else i + 1)
        if free and fast.token_to_id(text) is None:
            fast.add_tokens([AddedToken(text, special=kind == CONTROL, normalized=False)])


def _by_id(vocabulary: Mapping[str, int], where: Path) -> list[str]:
    size = max(vocabulary.values()) + 1
    _check_gaps(len(vocabulary), size, where)
    tokens = [f"<unused {i}>" for i in range(size)]  # ids that some vocabularies leave out
    for token, i in vocabulary.items():
        tokens[i] = token
    return tokens


def _check_gaps(named: int, size: int, where: Path) -> None:
    """Ids without a token take room as well: no file may ask for many more than it names."""
    if size > 4 * named + 1024:
        raise CheckpointError(f"{where}: {named} tokens with ids up to {size - 1}")


def _special(
    path: Path, tokens: Sequence[str], control: frozenset[int], user_defined: frozenset[int], first: Sequence[int]
) -> Special:
    """`first`: what the tokenizer itself puts before a text."""
    ids = {token: i for i, token in enumerate(tokens)}
    settings = _settings(path, "tokenizer_config.json")

    def named(key: str) -> int | None:
        entry = settings.get(key)
        text = entry.get("content") if isinstance(entry, dict) else entry
        return ids.get(text) if isinstance(text, str) else None

    bos_id, eos_id = named("bos_token"), named("eos_token")
    ends = [eos_id]
    for source in ("generation_config.json", "config.json"):
        found = _settings(path, source).get("eos_token_id")
        ends += [i for i in (found if isinstance(found, list) else [found]) if _is_id(i, len(tokens))]
        start = _settings(path, source).get("bos_token_id")
        if "bos_token" not in settings and bos_id is None and _is_id(start, len(tokens)):
            bos_id = start
    if bos_id is None and set(first) & control - set(ends):  # it has one, whatever the other files say
        bos_id = first[0]
    add_bos = settings.get("add_bos_token")
    if not isinstance(add_bos, bool):
        add_bos = list(first) == [bos_id]
    return Special(
        control=control,
        user_defined=user_defined,
        bos_id=bos_id,
        eos_id=eos_id,
        eos_ids=ending_ids(tokens, control, ends),
        add_bos=add_bos and bos_id is not None,
    )


def _is_id(value: object, vocabulary: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < vocabulary


def _sentence_pieces(path: Path) -> Tokenizer:
    import sentencepiece

    where = path / "tokenizer.model"
    proto = _read(where)

    def refuse(fault: str) -> NoReturn:
        raise CheckpointError(f"{where}: not a SentencePiece model: {fault}")

    with guarded(refuse):
        processor = sentencepiece.SentencePieceProcessor(model_proto=proto)
        size = processor.get_piece_size()
        tokens = [processor.id_to_piece(i) for i in range(size)]
        types = [6 if processor.is_byte(i) else CONTROL if processor.is_control(i) else NORMAL for i in range(size)]
        bos, eos, first = processor.bos_id(), processor.eos_id(), processor.encode("a")
    added = _added_tokens(path)
    _check_gaps(len(tokens) + len(added), max(added, default=0) + 1, path)
    for i in sorted(added):
        if i >= len(tokens):
            tokens += [f"<unused {n}>" for n in range(len(tokens), i + 1)]
            types += [NORMAL] * (i + 1 - len(types))
        tokens[i], types[i] = added[i]
    control = frozenset(i for i, kind in enumerate(types) if kind == CONTROL)
    user = frozenset(i for i, kind in enumerate(types) if kind == USER_DEFINED)
    special = _special(path, tokens, control, user, [bos] if bos >= 0 else [])
    if special.bos_id is None and bos >= 0:
        special = replace(special, bos_id=bos)
    add_bos = _settings(path, "tokenizer_config.json").get("add_bos_token", True)
    special = replace(
        special,
        eos_ids=special.eos_ids | ({eos} if eos >= 0 else frozenset()),
        add_bos=bool(add_bos) and special.bos_id is not None,
        adds_space="".join(tokens[i] for i in first).startswith(SPACE),
    )
    return SentencePieces(tokens, types, special, proto, str(where))


def _added_tokens(path: Path) -> dict[int, tuple[str, int]]:
    """id -> (text, kind), from tokenizer_config.json's added_tokens_decoder and from added_tokens.json."""
    found: dict[int, tuple[str, int]] = {}
    decoder = _settings(path, "tokenizer_config.json").get("added_tokens_decoder")
    for key, entry in decoder.items() if isinstance(decoder, dict) else ():
        if key.isdecimal() and len(key) < 10 and isinstance(entry, dict) and isinstance(entry.get("content"), str):
            found[int(key)] = (entry["content"], CONTROL if entry.get("special") else USER_DEFINED)
    for text, i in _settings(path, "added_tokens.json").items():
        if _is_id(i, 1 << 24) and i not in found:
            found[i] = (text, USER_DEFINED)
    return found


def _vocabulary_and_merges(path: Path) -> Tokenizer:
    """GPT-2's two files; they do not say how words are cut: as GPT-2 does, or as Qwen 2 in its models and Qwen 3's."""
    where = path / "vocab.json"
    vocabulary = _settings(path, "vocab.json")
    if not vocabulary or not all(_is_id(i, 1 << 24) for i in vocabulary.values()):
        raise CheckpointError(f"{where}: not an object of token ids")
    lines = _read(path / "merges.txt").decode("utf-8", errors="replace").splitlines()
    merges = [line for line in lines if line and not line.startswith("#version")]

    def refuse(i: int) -> NoReturn:
        raise CheckpointError(
            f"{path}: vocab.json and merges.txt do not fit each other: {merges[i]!r}, "
            "expected two tokens that join to a third"
        )

    added = {i: entry for i, entry in _added_tokens(path).items() if entry[0] not in vocabulary}
    if clash := added.keys() & set(vocabulary.values()):
        raise CheckpointError(f"{where}: id {min(clash)} is that of {added[min(clash)][0]!r} too")
    tokens = _by_id({**vocabulary, **{text: i for i, (text, _) in added.items()}}, where)
    named = {i for i, token in enumerate(tokens) if token.startswith("<|") and token.endswith("|>")}
    control = frozenset(named | {i for i, (_, kind) in added.items() if kind == CONTROL})
    said = ("tokenizer_config.json", "tokenizer_class"), ("config.json", "model_type")
    kinds = [str(_settings(path, name).get(key)).lower() for name, key in said]
    split = SPLITS["qwen2" if any(kind.startswith(("qwen2", "qwen3")) for kind in kinds) else "gpt-2"]
    left_out = set(range(len(tokens))) - set(vocabulary.values())
    words = Words(tokens, left_out, merges, split, refuse)
    return ByteLevel(tokens, _special(path, tokens, control, frozenset(added) - control, []), words)


def _vocabulary(path: Path) -> Tokenizer:
    where = path / "vocab.txt"
    tokens = _read(where).decode("utf-8", errors="replace").splitlines()
    if not tokens or len(set(tokens)) < len(tokens):
        raise CheckpointError(f"{where}: empty, or with a token twice")
    control = frozenset(i for i, token in enumerate(tokens) if token.startswith("[") and token.endswith("]"))
    special = replace(_special(path, tokens, control, frozenset(), []), adds_space=True)
    lowercase = _settings(path, "tokenizer_config.json").get("do_lower_case", True)
    return WordPiece(tokens, special, lowercase=bool(lowercase), source=str(where))


def _settings(path: Path, name: str) -> dict[str, Any]:
    """A JSON object; an empty one where there is no such file."""
    if not (path / name).is_file():
        return {}
    try:
        found = json.loads(_read(path / name))
        json.dumps(found, ensure_ascii=False).encode()  # JSON can spell half of a surrogate pair, which is not text
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path / name}: not JSON: {error}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path / name}: not a JSON object")
    return found


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise CheckpointError(f"{path}: {path.stat().st_size} bytes, expected at most {MOST_BYTES}")
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
