"""Small random models of transformers, and the same files run by the oracle: both in float64."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file, save_file

from cpuinfer import _core, huggingface, loader, models
from cpuinfer.config import Config
from cpuinfer.graph import Graph
from cpuinfer.loader import Blueprint
from cpuinfer.naming import arrange
from cpuinfer.reference import Reference
from cpuinfer.weight import Weight

Array = npt.NDArray[np.float64]
Options = dict[str, Any]
VOCABULARY = 96
SMALL: Options = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}
ENCODER: Options = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}


class _Float64:
    """PyTorch, but for the name of its float32."""

    def __getattr__(self, name: str) -> Any:
        import torch

        return torch.float64 if name in {"float32", "float"} else getattr(torch, name)


@contextmanager
def in_float64(kind: str) -> Iterator[None]:
    """Let a model of transformers compute in float64 throughout: norms, ropes and routers ask for float32 by name."""
    import torch
    import transformers

    model = getattr(transformers, kind).__module__.replace(".configuration_", ".modeling_")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name in (model, "transformers.modeling_rope_utils"):
                patch.setattr(importlib.import_module(name), "torch", _Float64())
            patch.setattr(torch.Tensor, "float", torch.Tensor.double)
            yield
    finally:
        torch.set_default_dtype(before)


def configuration(kind: str, options: Options) -> Any:
    """A configuration; beside an image encoder, the options are those of the text part."""
    import transformers

    if kind == "Gemma3Config":
        beside = {"vision_config": ENCODER, "tie_word_embeddings": options.get("tie_word_embeddings", True)}
        options = {"text_config": options, **beside}
    return getattr(transformers, kind)(**options)


def save(folder: Path, kind: str, options: Options) -> Any:
    """A random model of a configuration class, saved to a folder; its weights are large enough for all to matter.

    They are numbers of float32, as which they are saved.
    """
    import torch
    import transformers

    torch.manual_seed(len(kind) + len(options))
    config = configuration(kind, {**SMALL, **options})
    attention = "sdpa" if options.get("alibi") else "eager"  # Falcon's eager path adds ALiBi twice
    model = (
        transformers.AutoModelForCausalLM.from_config(
            config, attn_implementation=attention, experts_implementation="eager"
        )
        .double()
        .eval()
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "norm" in name and "bias" not in name else 0.0
            parameter.copy_((centre + 0.3 * torch.randn_like(parameter)).to(torch.float32))
    model.save_pretrained(folder)
    file = folder / "model.safetensors"
    save_file({name: values.astype(np.float32) for name, values in load_file(file).items()}, file)
    (folder / "tokenizer.json").write_text("{}")
    return model


def saved_logits(folder: Path, kind: str, options: Options, tokens: Sequence[int]) -> Array:
    """Logits of a model that is then in the folder, after each token, without a cache."""
    import torch

    with in_float64(kind), torch.no_grad():
        logits: Array = save(folder, kind, options)(torch.tensor([list(tokens)]), use_cache=False).logits[0].numpy()
    return logits


def assert_close(found: Array, expected: Array) -> None:
    """Both computed in float64: off by far more of its roundings than there are, and far less than one of float32."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9 * np.abs(expected).max())


def settings_of(folder: Path) -> dict[str, Any]:
    """config.json, as saved."""
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def read_config(settings: Options, *, context: int | None = None) -> Config:
    """A config.json in our terms."""
    return huggingface.read_config(settings, models.find(settings["model_type"]), context=context)


def our_weights(folder: Path, config: Config) -> dict[str, Array]:
    """The folder's tensors by our names."""
    return arranged(load_file(folder / "model.safetensors"), config)


def arranged(tensors: Mapping[str, npt.NDArray[Any]], config: Config) -> dict[str, Array]:
    """A folder's tensors by our names."""
    architecture = models.find(config.model_type)
    stored = {
        name.removesuffix(".weight"): exact(name, values.astype(np.float64))
        for name, values in tensors.items()
        if not name.startswith(architecture.hf_left_out)
    }
    return {name: weight.floats() for name, weight in arrange(stored, architecture.hf_names, config).items()}


def exact(name: str, values: Array) -> Weight:
    """A weight that is these numbers, and rows of them where it has more than two dimensions."""
    shape = values.shape if values.ndim < 2 else (int(np.prod(values.shape[:-1])), values.shape[-1])
    return Weight(
        name=name,
        shape=shape,
        encoding="F64",
        layout="f32",
        file_bytes=values.nbytes,
        rows=lambda _begin, _end: pytest.fail("the oracle reads whole weights"),
        floats=lambda: values.reshape(shape),
    )


def our_graph(config: Config, weights: dict[str, Array]) -> Graph:
    """The recorded forward pass; every weight must have a part in it."""
    graph = Graph({name: values.shape for name, values in weights.items()})
    models.find(config.model_type).build(graph, config)
    assert set(graph.used) == set(weights)
    return graph


def our_logits(config: Config, weights: dict[str, Array], tokens: Sequence[int]) -> Array:
    """Logits after each token, by the oracle."""
    return Reference(our_graph(config, weights), weights.__getitem__).logits(tokens)


def native_logits(blueprint: Blueprint, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
    """Logits after each token, by the native core in steps of 16."""
    program = loader.load_program(blueprint, threads=2)
    session = _core.Session(program, threads=2, batch=64, context=256, cache_pages=64)
    sequence = session.open()
    starts = range(0, len(tokens), 16)
    pieces = [session.step([(sequence, tokens[at : at + 16], "logits", None)])[0] for at in starts]
    return np.concatenate(pieces)


def random_tokens(count: int) -> list[int]:
    found: list[int] = np.random.default_rng(7).integers(1, VOCABULARY, count).tolist()
    return found
