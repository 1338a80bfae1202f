"""What GGUF calls the way in which a tokenizer.json cuts text into words: `tokenizer.ggml.pre`.

Converters hash the tokens of a check text, so that they know published vocabularies alone.  Here words are compared:
those that a tokenizer.json cuts a check text into, and those of every way that tokenizer/splits.py knows.
"""

from __future__ import annotations

import json
import unicodedata
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from cpuinfer.errors import CheckpointError, UnsupportedModel
from cpuinfer.tokenizer import TokenizerWarning
from cpuinfer.tokenizer.guard import guarded
from cpuinfer.tokenizer.splits import SPLITS, Split

CHECK = (
    "It's I'LL we'Ve don't they'd 'Tis x'y | 1 12 123 1234 12345678 1,234.5 a1b22 v2.0\n"
    "  two   three    \t\ttabs \r\n\r\n\n end of line  \n\n\n   indented\n"
    "camelCase HTTPServer CONSTANT_NAME snake_case /usr/bin/env --flag==value // ### *** ... !!! ?! ;;;\n"
    "(a)(b)[c]{d} $5 5% a+b=c <tag> `code` ~x~ ^^ |pipe| @user #tag a/b\\c \u201cquoted\u201d \u2018so\u2019 \u2026 «\n"
    "café naïve Ångström µm Слово Ελληνικά 我想在apple工作1314151天 \u3072らがなカタカナ\u3002 한국어 ไทยกำ\n"
    "नमस्ते \u0964 \u06d4 \u060c \u0660\u0661\u0662 ²³⅕ 😀🚀 ✅ \u200d \u00a0nbsp \ufb01n \uff11\uff12 \uff01"
)
"""Letters, marks, digits, symbols and spaces of all kinds, in normal form C, with a ligature that KC would change."""


def recognised(path: Path, settings: Mapping[str, Any]) -> str:
    """The name.  Raises UnsupportedModel for a way that none of GGUF's names stands for.

    Warns where texts are brought to normal form C first and the name does not say so, as converters do silently.
    """
    from tokenizers import Tokenizer as Fast

    def refuse(fault: str) -> NoReturn:
        raise CheckpointError(f"{path}: not a sound tokenizer: {fault}")

    with guarded(refuse):
        fast = Fast.from_str(json.dumps(settings))
    composes = _composes(path, fast)
    cut = [] if fast.pre_tokenizer is None else fast.pre_tokenizer.pre_tokenize_str(CHECK)
    whole_words = settings["model"].get("ignore_merges") is True
    found = [
        (name, split)
        for name, split in SPLITS.items()
        if split.whole_words == whole_words and cut == _cutter(split).pre_tokenize_str(CHECK)
    ]
    if not found:
        raise UnsupportedModel(f"{path}: it cuts text into words in a way that GGUF has no name for")
    for name, split in found:
        if split.nfc == composes:
            return name
    if not composes:
        raise UnsupportedModel(
            f"{path}: what GGUF calls its way of cutting text brings it to normal form C, it does not"
        )
    warnings.warn(
        f"{path}: text is brought to Unicode normal form C first, which a GGUF file cannot say: "
        "decomposed letters will have other tokens",
        TokenizerWarning,
        stacklevel=4,
    )
    return found[0][0]


def _composes(path: Path, fast: Any) -> bool:
    """Whether text is brought to normal form C; UnsupportedModel for any other change to it."""
    if fast.normalizer is None:
        return False
    parts = unicodedata.normalize("NFD", CHECK)
    composed = fast.normalizer.normalize_str(parts)
    if fast.normalizer.normalize_str(CHECK) != CHECK or composed not in (CHECK, parts):
        raise UnsupportedModel(f"{path}: it normalises text in a way that GGUF cannot say")
    return bool(composed == CHECK)


def _cutter(split: Split) -> Any:
    from tokenizers import Regex, pre_tokenizers

    steps: list[Any] = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in split.patterns]
    return pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
