"""What a quantised model is written as: a kind of file, and the schemes that such files hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cpuinfer import gguf
from cpuinfer.checkpoint import open_checkpoint
from cpuinfer.errors import InvalidRequest
from cpuinfer.loader import Blueprint
from cpuinfer.quantize import folder_output, gguf_keys, gguf_names, holding, placement
from cpuinfer.quantize.mixes import MIXES, ModelShape, fitting, is_encoded, tensor_types
from cpuinfer.quantize.placement import Placed
from cpuinfer.quantize.recipe import FLOATS, asked_for, assign
from cpuinfer.quantize.scheme import BLOCK_NAMES
from cpuinfer.weight import Weight
from cpuinfer.weights import Source

Kind = Literal["gguf", "gptq", "compressed-tensors", "cpuinfer"]
FORMATS: Mapping[str, Kind] = {
    "gguf": "gguf",
    "safetensors:gptq": "gptq",
    "safetensors:compressed-tensors": "compressed-tensors",
    "safetensors:cpuinfer": "cpuinfer",
}
OF_BITS: Mapping[int, str] = {2: "Q2_K", 3: "Q3_K_M", 4: "Q4_K_M", 5: "Q5_K_M", 6: "Q6_K", 8: "Q8_0"}
"""The mix of a GGUF file where only bits are asked for."""
GGUF_SIZES: Mapping[int, tuple[str, ...]] = {
    2: ("Q2_K",),
    3: ("Q3_K_S", "Q3_K_M", "Q3_K_L"),
    4: ("IQ4_XS", "Q4_0", "Q4_K_S", "Q4_K_M"),
    5: ("Q5_0", "Q5_K_S", "Q5_K_M"),
    6: ("Q6_K",),
    8: ("Q8_0",),
}
"""What a search tries, by bits, smallest first."""
GROUPS = (128, 64, 32)
PACKED_BITS: Mapping[Kind, tuple[int, ...]] = {
    "gptq": (4, 8),
    "compressed-tensors": (4, 8),
    "cpuinfer": (2, 3, 4, 5, 6, 8),
}
K_OF_BITS: Mapping[int, str] = {2: "Q2_K", 3: "Q3_K", 4: "Q4_K", 5: "Q5_K", 6: "Q6_K", 8: "Q8_0", 16: "F16", 32: "F32"}
"""What a number stands for in `keep`, of a GGUF file."""
NAMED_LIKE: Mapping[str, str] = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
"""The mix whose number stands for files of one type for all."""

NEAREST = "Q4_K_M"
"""The mix whose number stands for types chosen one by one: readers show it, and use nothing of it."""


@dataclass(frozen=True, slots=True)
class Target:
    """A kind of file, and the choices open to a search, smallest first."""

    kind: Kind
    labels: tuple[str, ...]
    """Mixes of GGUF, or schemes."""

    @property
    def is_fixed(self) -> bool:
        """Whether there is nothing to choose."""
        return len(self.labels) == 1


def choose(
    out: Path, form: str | None, *, bits: int | None, kind: str, group: int | None, symmetric: bool | None
) -> Target:
    """What command-line options ask for.

    form: "gguf", "gguf:Q4_K_M", "safetensors:gptq"; None: as the name of `out` ends.  bits: None leaves a search free.
    kind: "int" or a table's name; group: None leaves a search free; symmetric: likewise.
    Raises InvalidRequest for what is not known or does not go together.
    """
    form = form or (
        "gguf" if out.suffix == ".gguf" else "safetensors:gptq" if kind == "int" else "safetensors:cpuinfer"
    )
    family, _, label = form.partition(":") if form.startswith("gguf") else (form, "", "")
    if family not in FORMATS:
        raise InvalidRequest(f"format {form!r}: expected {', '.join(FORMATS)}, or gguf: and a type such as gguf:Q4_K_M")
    if FORMATS[family] == "gguf":
        if label:
            return Target("gguf", (label,))
        if kind.upper() in BLOCK_NAMES:
            return Target("gguf", (kind.upper(),))
        if kind != "int":
            raise InvalidRequest(
                f"type {kind}: GGUF has no such type: choose another type, or --format safetensors:cpuinfer"
            )
        return Target("gguf", tuple(name for b in sorted(GGUF_SIZES) if bits in (None, b) for name in GGUF_SIZES[b]))
    return Target(FORMATS[family], _packed(FORMATS[family], bits, kind, group, symmetric))


def usual(target: Target, bits: int | None) -> Target:
    """What one method takes where several sizes were left open: the first of these that fits the model."""
    if target.kind == "gguf":
        return Target("gguf", (OF_BITS.get(bits or 4, "Q4_K_M"),))
    wanted = [label for label in target.labels if not label.startswith("int") or label.startswith(f"int{bits or 4}:")]
    return Target(target.kind, tuple(wanted or target.labels))


def _packed(kind: Kind, bits: int | None, table: str, group: int | None, symmetric: bool | None) -> tuple[str, ...]:
    groups = GROUPS if group is None else (group,)
    if table != "int":
        if kind != "cpuinfer":
            raise InvalidRequest(f"type {table}: only --format safetensors:cpuinfer holds it")
        return tuple(f"{table}:g{each}" for each in groups)
    known = PACKED_BITS[kind]
    if bits is not None and bits not in known:
        raise InvalidRequest(f"{bits} bits: {kind} folders hold {', '.join(map(str, known))}")
    ways = ("sym", "asym") if symmetric is None else ("sym",) if symmetric else ("asym",)
    return tuple(f"int{b}:g{each}:{way}" for b in known if bits in (None, b) for each in groups for way in ways)


def encodings(
    target: Target, label: str, blueprint: Blueprint, keep: Sequence[tuple[str, str]], *, importance: bool
) -> dict[str, str]:
    """The encoding of every matrix, by our name.  importance: whether inputs are looked at, as mixes ask.

    keep: see ``recipe.asked_for``; a number stands for as many bits of the target's own kind.
    Raises InvalidRequest or UnsupportedFormat for what such a file cannot hold.
    """
    source = blueprint.source
    weights = source.weights
    kept = [(pattern, _meant(target, label, wanted)) for pattern, wanted in keep]
    if target.kind == "gguf":
        placed, architecture = _placed(source)
        tensors = {each.name: each.parts for each in placed}
        chosen = asked_for(mix_of(source, placed, architecture, label, importance=importance), weights, kept)
    else:
        tensors = tensors_of(target, source)
        packed = {part for parts in tensors.values() for part in parts}
        packed -= holding.refused_shapes(target.kind, label, weights, tensors)
        chosen = assign(weights, label, packed, one_type=target.kind == "gptq", keep=kept)
    holding.check(target.kind, chosen, weights, tensors)
    return chosen


def tensors_of(target: Target, source: Source) -> dict[str, tuple[str, ...]]:
    """The matrices of such a file that may be encoded, by name: our weights that each is made of."""
    if target.kind == "gguf":
        return {each.name: each.parts for each in _placed(source)[0]}
    return folder_output.tensors_of(source)


def _placed(source: Source) -> tuple[list[Placed], str]:
    """The matrices of a GGUF file of the source, and its architecture's name there."""
    if source.kind == "GGUF":
        checkpoint = open_checkpoint(source.path)
        names = gguf.find_architecture(checkpoint).gguf_names
        found = list(placement.find(gguf.stored_weights(checkpoint), names, source.config).values())
        architecture = checkpoint.require("general.architecture", str)
    else:
        found = gguf_names.place(source.config, source.weights)
        architecture = gguf_keys.architecture_of(source.config)
    return [each for each in found if len(each.shape) > 1], architecture


def mix_of(
    source: Source, placed: Sequence[Placed], architecture: str, label: str, *, importance: bool
) -> dict[str, str]:
    """The type of every matrix in a mix of llama.cpp's, or in one type for all, by our name."""
    shapes = [(each.name, each.shape) for each in placed]
    if label in MIXES:
        config = source.config
        model = ModelShape(
            layers=config.layers,
            heads=config.heads,
            kv_heads=config.kv_heads,
            experts=config.integer("experts") if "experts" in config.options else 0,
            architecture=architecture,
        )
        types = tensor_types(label, shapes, model, importance=importance)
    elif label in BLOCK_NAMES:
        types = {name: fitting(label, shape[-1]) for name, shape in shapes if is_encoded(name, shape)}
    else:
        raise InvalidRequest(f"gguf type {label!r}: expected {', '.join(MIXES)}, or one of {', '.join(BLOCK_NAMES)}")
    return {part: types.get(each.name, "F32") for each in placed for part in each.parts}


def _meant(target: Target, label: str, wanted: str) -> str:
    if not wanted.isdigit():
        return wanted if wanted in FLOATS else wanted.upper() if wanted.upper() in BLOCK_NAMES else wanted
    bits = int(wanted)
    if target.kind == "gguf":
        if bits not in K_OF_BITS:
            raise InvalidRequest(f"keep: {bits} bits, expected {', '.join(map(str, K_OF_BITS))}, or a type's name")
        return K_OF_BITS[bits]
    if bits in (16, 32):
        return f"F{bits}"
    _, _, rest = label.partition(":")
    return f"int{bits}:{rest}" if label.startswith("int") else f"int{bits}:g32:sym"


def write(
    out: Path,
    target: Target,
    label: str,
    source: Source,
    weights: Mapping[str, Weight],
    *,
    overwrite: bool,
    threads: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """The file or folder, whole or not at all."""
    if target.kind == "gguf":
        from cpuinfer.quantize.gguf_output import write_gguf

        number = MIXES.get(NAMED_LIKE.get(label, label), MIXES[NEAREST]).file_type
        write_gguf(out, source, weights, file_type=number, overwrite=overwrite, threads=threads, progress=progress)
        return
    from cpuinfer.quantize import compressed_output, gptq_output, own_output

    module = {"gptq": gptq_output, "compressed-tensors": compressed_output, "cpuinfer": own_output}[target.kind]
    module.write_folder(out, source, weights, overwrite=overwrite, threads=threads, progress=progress)
