"""Which tensor of a GGUF file gets which type in the mixes that llama.cpp's quantiser writes: Q4_K_M and its like.

The rules, and the numbers of `general.file_type`, are facts of llama.cpp (src/llama-quant.cpp, include/llama.h): values
of attention and the second matrix of feed-forward layers get more bits, all through or in the first and last eighth of
the layers and every third between; the output, or the embedding that serves as it, gets Q6_K; and rows that are no
multiple of 256 get a type of blocks of 32.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cpuinfer.errors import UnsupportedFormat

QUANTIZATION_VERSION = 2
"""`general.quantization_version` of files that have such types."""
K_ELEMENTS, ELEMENTS = 256, 32
NARROW = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "IQ4_XS": "IQ4_NL"}
"""Of blocks of 32, for rows that are no multiple of 256."""
MANY_SHARE = 4
"""Query heads to a key-value head, from which values are few enough to be worth more bits."""
LARGE_LAYERS = 80
"""Of the Llama whose few values always get Q5_K."""
EXPERTS = 8
"""Of Mixtral, which has rules of its own."""
NEVER = (
    "_norm.weight",
    "ffn_gate_inp.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "attn_rel_b.weight",
    "position_embd",
    "token_types",
)
"""Parts of names of matrices that stay as they are: small ones, of which much depends."""
VALUES = ("attn_v.weight", "attn_qkv.weight", "attn_kv_b.weight")
EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
OUTPUT = "output.weight"


FALCON = {
    "Q3_K_M": ("Q5_K", "Q4_K", "Q3_K"),
    "Q3_K_L": ("Q4_K", "Q4_K", "Q4_K"),
    "Q4_K_M": ("Q6_K", "Q5_K", "Q4_K"),
    "Q4_K_S": ("Q4_K", "Q4_K", "Q4_K"),
}
"""Of its second matrices: in the first sixteenth of the layers, where others get more bits, and elsewhere."""


@dataclass(frozen=True, slots=True)
class Mix:
    """One of llama.cpp's file types."""

    file_type: int
    """`general.file_type`."""
    base: str
    """The type of what no rule is about."""


MIXES: Mapping[str, Mix] = {
    "Q4_0": Mix(2, "Q4_0"),
    "Q4_1": Mix(3, "Q4_1"),
    "Q8_0": Mix(7, "Q8_0"),
    "Q5_0": Mix(8, "Q5_0"),
    "Q5_1": Mix(9, "Q5_1"),
    "Q2_K": Mix(10, "Q2_K"),
    "Q3_K_S": Mix(11, "Q3_K"),
    "Q3_K_M": Mix(12, "Q3_K"),
    "Q3_K_L": Mix(13, "Q3_K"),
    "Q4_K_S": Mix(14, "Q4_K"),
    "Q4_K_M": Mix(15, "Q4_K"),
    "Q5_K_S": Mix(16, "Q5_K"),
    "Q5_K_M": Mix(17, "Q5_K"),
    "Q6_K": Mix(18, "Q6_K"),
    "IQ4_NL": Mix(25, "IQ4_NL"),
    "IQ4_XS": Mix(30, "IQ4_XS"),
}


def find_mix(name: str) -> Mix:
    """A mix by llama.cpp's name, UnsupportedFormat lists those there are."""
    if name not in MIXES:
        raise UnsupportedFormat(f"mix {name!r}: expected one of {', '.join(MIXES)}")
    return MIXES[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What the rules ask of a model."""

    layers: int
    heads: int
    kv_heads: int
    experts: int = 0
    architecture: str = "llama"

    @property
    def share(self) -> int:
        """Query heads to a key-value head."""
        return self.heads // self.kv_heads


def tensor_types(
    mix: str, tensors: Iterable[tuple[str, Sequence[int]]], model: ModelShape, *, importance: bool = False
) -> dict[str, str]:
    """The types of the tensors that a mix encodes; what is left out stays as it is.

    tensors: GGUF's names and row-major shapes, all of the model.  importance: whether there will be importance weights,
    which changes some rules.  F16 stands for rows that no type fits.
    """
    base = find_mix(mix).base
    found = dict(tensors)
    rules = _Rules(mix, base, model, importance)
    output = OUTPUT if OUTPUT in found else EMBEDDINGS[0]
    values = sorted((name for name in found if name.endswith(VALUES)), key=_layer)
    types = {}
    for name, shape in found.items():
        if not is_encoded(name, shape):
            continue
        if name == output or (output in EMBEDDINGS and name in EMBEDDINGS):
            wanted = rules.output(shape[-1])
        elif name.endswith(VALUES):
            wanted = rules.values(values.index(name), len(values))
        else:
            wanted = rules.other(name)
        types[name] = fitting(wanted, shape[-1])
    return types


def is_encoded(name: str, shape: Sequence[int]) -> bool:
    """Whether quantisers touch a tensor: matrices of weights, but for some small ones."""
    return len(shape) > 1 and name.endswith("weight") and not any(part in name for part in NEVER)


def fitting(encoding: str, k: int) -> str:
    """The type itself, or what takes its place where rows of `k` are no multiple of its blocks."""
    if k % K_ELEMENTS:
        encoding = NARROW.get(encoding, encoding)
    return "F16" if k % ELEMENTS else encoding


def _layer(name: str) -> int:
    found = re.match(r"blk\.(\d+)\.", name)
    return int(found.group(1)) if found else 0


def more_bits(layer: int, layers: int) -> bool:
    """Of the first and the last eighth, and every third of those between."""
    first = layers // 8
    return layer < first or layer >= 7 * layers // 8 or (layer - first) % 3 == 2


@dataclass(frozen=True, slots=True)
class _Rules:
    mix: str
    base: str
    model: ModelShape
    importance: bool

    @property
    def _falcon(self) -> bool:
        return self.model.architecture == "falcon"

    def output(self, k: int) -> str:
        whole = ELEMENTS if self.base in {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL"} else K_ELEMENTS
        return "Q8_0" if k % whole or self.base == "Q8_0" or self._falcon else "Q6_K"

    def values(self, place: int, count: int) -> str:
        """`place`: how many of its kind came before, of `count`."""
        many = self.model.share >= MANY_SHARE
        wanted = self.base
        match self.mix:
            case "Q2_K":
                wanted = "Q4_K" if many else "Q3_K"
            case "Q3_K_M":
                wanted = "Q5_K" if place < 2 else "Q4_K"
            case "Q3_K_L":
                wanted = "Q5_K"
            case "IQ4_NL" | "IQ4_XS":
                wanted = "Q5_K" if many else self.base
            case "Q4_K_M" | "Q5_K_M":
                wanted = "Q6_K" if more_bits(place, count) else self.base
            case "Q4_K_S":
                wanted = "Q5_K" if place < 4 else self.base
        large = self.model.architecture == "llama" and self.model.layers == LARGE_LAYERS and self.model.share > 1
        if large and wanted in {"Q3_K", "Q4_K"}:
            wanted = "Q5_K"
        return "Q8_0" if self.model.experts == EXPERTS else wanted

    def other(self, name: str) -> str:
        if "ffn_down" in name:
            return self._feed_forward(_layer(name), self.model.layers)
        if name.endswith("attn_k.weight") and self.model.experts == EXPERTS:
            return "Q8_0"
        if name.endswith("attn_output.weight"):
            return self._attention_output()
        return self.base

    def _feed_forward(self, layer: int, layers: int) -> str:
        early = layer < layers // 8
        if self._falcon and self.mix in FALCON:
            first, more, rest = FALCON[self.mix]
            return first if layer < layers // 16 else more if more_bits(layer, layers) else rest
        match self.mix:
            case "Q2_K":
                return "Q3_K"
            case "Q3_K_M":
                return "Q5_K" if layer < layers // 16 else "Q4_K"
            case "Q3_K_L":
                return "Q5_K"
            case "Q4_K_M" | "Q5_K_M":
                return "Q6_K" if more_bits(layer, layers) else self.base
            case "Q4_K_S":
                return "Q5_K" if early else self.base
            case "IQ4_NL" | "IQ4_XS":
                return "Q5_K" if early and not self.importance else self.base
            case "Q4_0" | "Q5_0":
                return self.base.replace("_0", "_1") if early and self.importance else self.base
        return self.base

    def _attention_output(self) -> str:
        if self._falcon:
            return "Q4_K" if self.mix == "Q3_K_L" else self.base
        if self.model.experts == EXPERTS:
            five = {"Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M", "IQ4_NL", "IQ4_XS"}
            return "Q5_K" if self.mix in five else self.base
        return {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(self.mix, self.base)
