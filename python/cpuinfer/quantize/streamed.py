"""A model of any size on some texts: every stage reads its weights, takes all texts through them, and lets them go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from cpuinfer.evaluate.scoring import Model, Tokens
from cpuinfer.loader import Blueprint
from cpuinfer.ops import Linears, inputs
from cpuinfer.quantize.forward import Floats, State, read_matrix, read_stage, run_stage
from cpuinfer.quantize.operators import Forward
from cpuinfer.quantize.stages import cut

HEAD_BYTES = 64 << 20
"""Of the head in fp32, read at once."""
LOGIT_BYTES = 64 << 20
"""Of logits held."""


class Streamed(Model):
    """Logits in float32 from the numbers that the weights mean, by the oracle's ops.

    Memory beside the texts' values: one stage in fp32, and of the head a slice.
    """

    def __init__(self, blueprint: Blueprint, *, context: int, threads: int | None) -> None:
        """`context`: most positions of a text."""
        self._blueprint = blueprint
        self._threads = threads
        self.path = blueprint.source.path
        self.tokenizer = blueprint.source.tokenizer()
        self.vocabulary = blueprint.config.vocabulary
        self.context = context
        self.isa, self.kv_cache, self.deterministic = "numpy", "f32", True

    def logits_before(self, pairs: Sequence[tuple[Tokens, Tokens]]) -> Iterator[Iterator[Floats]]:
        """All texts go through the layers before the first row comes."""
        texts = [[*context, *continuation[:-1]] for context, continuation in pairs]
        *layers, _ = cut(self._blueprint.graph)
        states: list[State] = [{} for _ in texts]
        with ThreadPoolExecutor(self._threads) as executor:
            for stage in layers:
                values = read_stage(stage, self._blueprint.source.weights)
                states = run_stage(self._blueprint.graph, stage, values, states, texts, executor=executor)
        return (
            self._rows(state, text, len(context) - 1)
            for state, text, (context, _) in zip(states, texts, pairs, strict=True)
        )

    def _rows(self, state: State, text: Tokens, first: int) -> Iterator[Floats]:
        """Rows of logits, from the one after token `first` on."""
        *others, head = cut(self._blueprint.graph)[-1].ops
        graph, known, step = self._blueprint.graph, dict(state), max(1, LOGIT_BYTES // (4 * self.vocabulary))
        forward = Forward(graph, _Lazy(self._blueprint))
        for op in others:
            known.update(forward.apply(op, known, text))
        for begin in range(first, len(text), step):
            end = min(begin + step, len(text))
            some = {value: known[value][begin:end] for value in inputs(head)}
            if isinstance(head, Linears) and len(head.weights) == 1:
                yield from self._head(head, some, text[begin:end])
            else:
                yield from next(iter(forward.apply(head, some, text[begin:end]).values()))

    def _head(self, head: Linears, state: State, tokens: Tokens) -> Floats:
        """Some rows of logits, by slices of the vocabulary."""
        (name,), (bias,) = head.weights, head.biases
        out = np.empty((len(tokens), self.vocabulary), np.float32)
        weight, values = self._blueprint.tensor(name), _Lazy(self._blueprint)
        whole = read_matrix(weight) if weight.whole or weight.input_order is not None else None
        step = max(1, HEAD_BYTES // (4 * weight.shape[1]))
        for begin in range(0, self.vocabulary, step):
            end = min(begin + step, self.vocabulary)
            part = weight.rows(begin, end).to_float(np.float32) if whole is None else whole[begin:end]
            replaced = {name: part} if bias is None else {name: part, bias: values[bias][begin:end]}
            forward = Forward(self._blueprint.graph, _Lazy(self._blueprint, replaced))
            out[:, begin:end] = forward.apply(head, state, tokens)[head.outs[0]]
        return out


class _Lazy(dict[str, Floats]):
    """Weights read when they are asked for, but those given."""

    def __init__(self, blueprint: Blueprint, given: dict[str, Floats] | None = None) -> None:
        super().__init__(given or {})
        self._blueprint = blueprint

    def __missing__(self, name: str) -> Floats:
        return read_matrix(self._blueprint.tensor(name))
