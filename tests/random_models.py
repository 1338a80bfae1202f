"""Small models of every architecture, recorded from its description alone, with random weights in memory."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from cpuinfer.config import Config, Rope
from cpuinfer.graph import Graph
from cpuinfer.reference import Reference

Array = npt.NDArray[np.float64]
CONFIG = Config(
    model_type="llama",
    layers=2,
    hidden=32,
    heads=4,
    kv_heads=2,
    head_dim=8,
    feed_forward=48,
    vocabulary=40,
    context=64,
    norm_eps=1e-5,
    tied=False,
    rope=Rope(8, 10000.0, "halves"),
)
EXPERTS = 4


class Shapes(Mapping[str, tuple[int, ...]]):
    """The shape of any name an architecture asks for."""

    def __init__(self, config: Config, *, biases: bool) -> None:
        self._config, self._biases = config, biases

    def __getitem__(self, name: str) -> tuple[int, ...]:
        c = self._config
        if name.endswith(".bias"):
            if not self._biases:
                raise KeyError(name)
            return self[name.removesuffix(".bias")][:1]
        last = name.rpartition(".")[2]
        wide, narrow = c.heads * c.head_dim, c.kv_heads * c.head_dim
        if "experts." in name:
            size = c.feed_forward
            return (EXPERTS * c.hidden, size) if last == "down_proj" else (EXPERTS * size, c.hidden)
        if last in {"q_norm", "k_norm"}:
            whole = wide if last == "q_norm" else narrow
            return (whole,) if c.model_type in {"olmo2", "olmo3"} else (c.head_dim,)
        named = {
            "embed_tokens": (c.vocabulary, c.hidden),
            "embed_positions": (c.context, c.hidden),
            "lm_head": (c.vocabulary, c.hidden),
            "q_proj": (wide, c.hidden),
            "k_proj": (narrow, c.hidden),
            "v_proj": (narrow, c.hidden),
            "o_proj": (c.hidden, wide),
            "up_proj": (c.feed_forward, c.hidden),
            "gate_proj": (c.feed_forward, c.hidden),
            "down_proj": (c.hidden, c.feed_forward),
            "gate": (EXPERTS, c.hidden),
            "shared_expert_gate": (1, c.hidden),
        }
        return named.get(last, (c.hidden,))

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (self._biases or not name.endswith(".bias"))

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


@dataclass(frozen=True)
class RandomModel:
    """A graph and its tensors."""

    graph: Graph
    tensors: dict[str, Array]

    @classmethod
    def of(cls, model_type: str, *, biases: bool = False, seed: int = 0, **options: object) -> RandomModel:
        """options: fields of Config, and the architecture's own where they are not as its file has them."""
        module = importlib.import_module(f"cpuinfer.models.{model_type}")
        fields = {name: value for name, value in options.items() if hasattr(CONFIG, name)}
        own = {name: option.default for name, option in module.OPTIONS.items()}
        own |= {name: value for name, value in options.items() if name not in fields}
        config = replace(CONFIG, model_type=model_type, options=own, **fields)  # type: ignore[arg-type]
        graph = Graph(Shapes(config, biases=biases))
        module.build(graph, config)
        rng = np.random.default_rng(seed)
        tensors = {}
        for name in graph.used:
            shape = graph.shapes[name]
            scale = 0.3 if len(shape) == 1 else 1 / np.sqrt(shape[1])
            centre = 1.0 if len(shape) == 1 and not name.endswith(".bias") else 0.0
            tensors[name] = centre + scale * rng.normal(size=shape)
        return cls(graph, tensors)

    def logits(self, tokens: list[int], changed: Mapping[str, Array] | None = None) -> Array:
        """By the oracle, with some tensors replaced."""
        tensors = {**self.tensors, **(changed or {})}
        return Reference(self.graph, lambda name: tensors[name]).logits(tokens)
