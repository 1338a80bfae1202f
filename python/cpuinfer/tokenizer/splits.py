"""How byte-level BPE cuts text into words before merging, by the names GGUF files have for it.

The patterns are those of the models' own tokenizer.json files.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Split:
    """How text is cut into words, and what else goes by the same name in GGUF files."""

    patterns: tuple[str, ...]
    """Each cuts what the ones before left, its matches and what lies between becoming pieces."""
    nfc: bool = False
    """Text is brought to Unicode normal form C first."""
    whole_words: bool = False
    """A word that is a token is taken as it is, even where the merges would build it otherwise."""
    add_bos: bool = False
    """The rule of files that do not say."""


_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACE = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_KANA = r"[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_HAN_HANGUL = r"[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_DEEPSEEK_WORDS = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|" + _SPACE
)


def _modern(digits: str, *, marks: str = "") -> str:
    """The pattern of Llama 3 and Qwen 2, which differ in how many digits make a word."""
    letters = rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}{marks}]+"
    symbols = rf" ?[^\s\p{{L}}{marks}\p{{N}}]+[\r\n]*"
    return f"{_CONTRACTION}|{letters}|{digits}|{symbols}|{_SPACE}"


def _cased(ending: str, digits: str, symbols: str) -> str:
    """Words of capitals then small letters, as Tekken and GPT-4o cut them."""
    upper, lower = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    before = r"[^\r\n\p{L}\p{N}]?"
    return (
        f"{before}{upper}*{lower}+{ending}|{before}{upper}+{lower}*{ending}|{digits}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+{symbols}|{_SPACE}"
    )


def _ranges(hexadecimal: str) -> str:
    """A character class from code points and ranges in hexadecimal."""
    spans = (span.split("-") for span in hexadecimal.split())
    return "".join("-".join(f"\\x{{{point}}}" for point in span) for span in spans)


# Letters that have case, as DeepSeek LLM lists them.
_CASED_LETTERS = _ranges(
    "b5 c0-d6 d8-f6 f8-1ba 1bc-1bf 1c4-293 295-2af 370-373 376 377 37b-37d 37f 386 388-38a 38c 38e-3a1 3a3-3f5 "
    "3f7-481 48a-52f 531-556 10a0-10c5 13a0-13f5 13f8-13fd 1c90-1cba 1cbd-1cbf 1d00-1d2b 1d6b-1d77 1d79-1d9a "
    "1e00-1f15 1f18-1f1d 1f20-1f45 1f48-1f4d 1f50-1f57 1f59 1f5b 1f5d 1f5f-1f7d 1f80-1fb4 1fb6-1fbc 1fbe 1fc2-1fc4 "
    "1fc6-1fcc 1fd0-1fd3 1fd6-1fdb 1fe0-1fec 1ff2-1ff4 1ff6-1ffc 2102 2107 210a-2113 2115 2119-211d 2124 2126 2128 "
    "212a-212d 212f-2134 2139 213c-213f 2145-2149 214e 2183 2184 2c00-2c7b 2c7e-2ce4 2ceb-2cee 2cf2 2cf3 a640-a66d "
    "a680-a69b a722-a76f a771-a787 a78b-a78e ab70-abbf fb00-fb06 fb13-fb17 ff21-ff3a ff41-ff5a 10400-1044f "
    "104b0-104d3 104d8-104fb 10c80-10cb2 10cc0-10cf2 118a0-118df 1e900-1e943 "
)

_DIGITS = Split((r"\p{N}", _GPT2))
_PLAIN = Split((_GPT2,))
_LLAMA3 = Split((_modern(r"\p{N}{1,3}"),), whole_words=True, add_bos=True)
_QWEN2 = Split((_modern(r"\p{N}"),), nfc=True)
_POINTS = r" ?[^(\s|.,!?\x{2026}\x{3002}\x{ff0c}\x{3001}\x{964}\x{6d4}\x{60c})]+"
_DEEPSEEK3 = Split((r"\p{N}{1,3}", _KANA, _DEEPSEEK_WORDS))
_GPT4O = Split((_cased(f"{_CONTRACTION}?", r"\p{N}{1,3}", r"[\r\n/]*"),))
_DBRX = Split((_modern(r"\p{N}{1,3}"),))

DEFAULT = "gpt-2"
SPLITS: dict[str, Split] = {
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "exaone4", "jina-es", "jina-de"), _PLAIN),
    **dict.fromkeys(("roberta-bpe", "modern-bert", "gigachat", "granite-docling", "mellum"), _PLAIN),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), _DIGITS),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2"), _LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez", "kormo"), _QWEN2),
    **dict.fromkeys(("stablelm2", "hunyuan", "grok-2", "solar-open"), Split((_modern(r"\p{N}"),))),
    "qwen35": Split((_modern(r"\p{N}", marks=r"\p{M}"),)),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe"), _DBRX),
    "glm4": Split((_modern(r"\p{N}{1,3}"),), whole_words=True),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense", "joyai-llm"), _DEEPSEEK3),
    "deepseek-coder": Split((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN_HANGUL, r"\p{N}")),
    "deepseek-llm": Split(
        (
            r"[\r\n]",
            rf"\s?[A-Za-z{_CASED_LETTERS}]+",
            r"\s?[!-/:-~\x{ff01}-\x{ff0f}\x{ff1a}-\x{ff5e}\x{2018}-\x{201f}\x{3000}-\x{3002}]+",
            r"\s+$",
            _HAN_HANGUL,
            r"\p{N}+",
        )
    ),
    "falcon": Split((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")),
    **dict.fromkeys(("bloom", "poro-chat", "gpt3-finnish"), Split((_POINTS,))),
    "viking": Split((_POINTS, r"\p{N}")),
    "tekken": Split((_cased("", r"\p{N}", r"[\r\n/]*"),), whole_words=True),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "minimax-m2"), _GPT4O),
    "superbpe": Split((r"\p{N}+", r"(?=(\d{3})+(?!\d))")),
    **dict.fromkeys(("bailingmoe", "bailingmoe2"), Split((_modern(r"\p{N}"),))),
    "seed-coder": Split((_modern(r"\p{N}"),)),
}
"""By `tokenizer.ggml.pre`."""
