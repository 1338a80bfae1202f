"""LLM: the front door.  Load a model, generate, stream, chat, score."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from numbers import Integral
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, overload

from cpuinfer import loader, machine, store
from cpuinfer.describe import BATCH, PAGE_TOKENS, check_kv_cache, page_bytes, part_bytes
from cpuinfer.engine import Engine
from cpuinfer.errors import InvalidRequest, MemoryLimit, UnsupportedModel
from cpuinfer.request import Generation, Logits, Request, Scoring
from cpuinfer.results import Chunk, Completion, Score, TokenLogprob
from cpuinfer.sampling import SamplingParams

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from cpuinfer.chat import ChatTemplate
    from cpuinfer.config import Config
    from cpuinfer.graph import Graph
    from cpuinfer.profiling import OperatorTime

Prompt = str | Sequence[int]
"""Text, or token ids taken as they are."""
Message = Mapping[str, Any]
"""A chat message: role and content."""

CACHE_SHARE = 0.5
"""Of the memory free at load, at most, for keys and values."""


class LLM:
    """A loaded model.

    Threads may share it: their requests run together, step by step.  The same seed gives the same tokens whatever else
    runs, on any number of threads; and, if `deterministic`, on any instruction set.

    Args:
        model: a path to a GGUF file or a Hugging Face folder, `hf:owner/repo[:file-or-quant]`, or a built-in name; or
            what `loader.open_model` gives, perhaps with other weights in it.
        threads: worker threads; None takes as many as the machine has fast cores for this process.
        context: most positions of a sequence; None takes the model's own, or less where memory is short.
        isa: a kernel set by name; None takes CPUINFER_ISA, or the best this machine runs.
        quantize: what the float weights of a Hugging Face folder become: int4 (None), int8, nf4, or none to stay as
            they are; of those that are rounded, embeddings and the head get 8 bits.
        cache_packed: keep the packed weights in the cache folder (as much again as the model is large), from where the
            next start reads them instead of packing: worth it where packing takes long, above all with `quantize`.
        deterministic: compute prompts as answers are: results are the same, bit by bit, whatever the kernel set.
            Otherwise tile units, where the kernel set has them (`amx`), take the whole pages (32 tokens) of a prompt,
            several times as fast and rounded another way; still the same whatever the threads, whatever else runs and
            whatever was computed before.
        prefix_cache: positions whose keys and values are kept while no request uses them, so that a prompt that begins
            as an earlier one did computes only the rest; in pages of 32.  None keeps as many as the context has, which
            is what one long request would take; 0 none.  Of answers only with `deterministic` or without tile units.
        kv_cache: how keys and values are kept: f16, int8 (about half the memory, faster far into a context), or int4
            (about a quarter, at some cost of quality).
        keep_values: keep every value of a step for a look at them (`_core.Session.value`); takes much more memory.
        profile: measure every operator, for `profile()`.  With CPUINFER_PROFILE=1 in the environment every LLM does,
            and prints it on standard error as it is closed.
    """

    def __init__(
        self,
        model: str | Path | loader.Blueprint | None = None,
        *,
        threads: int | None = None,
        context: int | None = None,
        isa: str | None = None,
        quantize: str | None = None,
        cache_packed: bool = False,
        deterministic: bool = False,
        prefix_cache: int | None = None,
        kv_cache: str = "f16",
        keep_values: bool = False,
        profile: bool = False,
    ) -> None:
        from cpuinfer import _core

        start = time.perf_counter()
        self._prints_profile = os.environ.get("CPUINFER_PROFILE", "") not in ("", "0")
        self._profiles = profile or self._prints_profile
        if model is not None and not isinstance(model, (str, Path, loader.Blueprint)):
            raise InvalidRequest(f"model: {model!r}, expected a path or a name")
        _check_switches(
            cache_packed=cache_packed, deterministic=deterministic, keep_values=keep_values, profile=profile
        )
        if isa is not None and not isinstance(isa, str):
            raise InvalidRequest(f"isa: {isa!r}, expected the name of a kernel set")
        self.isa: str = _core.select_kernels(isa)
        check_kv_cache(kv_cache)
        blueprint = _opened(model, context, quantize)
        self.path = blueprint.source.path
        self.config: Config = blueprint.config
        self.graph: Graph = blueprint.graph
        self.threads = machine.default_threads().threads if threads is None else _check_threads(threads)
        self.kv_cache, self.deterministic = kv_cache, deterministic
        page = page_bytes(self.config, kv_cache)
        self.context, cache_pages = _fit_context(self.config, context, self.threads, page)
        kept = self.context if prefix_cache is None else _check_prefix_cache(prefix_cache)
        with loader.Loading(blueprint, threads=self.threads, cache_packed=cache_packed) as loading:
            self.tokenizer = blueprint.source.tokenizer()  # while the weights are packed
            if self.tokenizer.vocabulary > self.config.vocabulary:
                raise UnsupportedModel(
                    f"{self.path}: the tokenizer has {self.tokenizer.vocabulary} tokens, "
                    f"the model {self.config.vocabulary}"
                )
            self._compile_template = blueprint.source.chat_template
            program = loading.program()
        self._session = _core.Session(
            program,
            isa=self.isa,
            threads=self.threads,
            batch=BATCH,
            context=self.context,
            cache_pages=cache_pages,
            cache=kv_cache,
            kept_pages=min(cache_pages, -(-kept // PAGE_TOKENS)),
            keep_values=keep_values,
            profile=self._profiles,
            tiles=not deterministic,
        )
        self._engine: Engine | None = Engine(self._session, batch=BATCH, context=self.context, cache_pages=cache_pages)
        self.load_seconds = time.perf_counter() - start

    @property
    def vocabulary(self) -> int:
        """Logits per token."""
        return self.config.vocabulary

    @property
    def has_chat_template(self) -> bool:
        """Whether the file says how to write a conversation."""
        return self._compile_template is not None

    @cached_property
    def _template(self) -> ChatTemplate | None:
        """Compiled when it is first needed: that takes longer than all else of a small model's start."""
        return None if self._compile_template is None else self._compile_template(self.tokenizer)

    @overload  # a str is a sequence of str too: the first signature wins
    def generate(  # type: ignore[overload-overlap]
        self, prompts: Prompt, params: SamplingParams | None = None
    ) -> Completion: ...
    @overload
    def generate(self, prompts: Sequence[Prompt], params: SamplingParams | None = None) -> list[Completion]: ...
    def generate(
        self, prompts: Prompt | Sequence[Prompt], params: SamplingParams | None = None
    ) -> Completion | list[Completion]:
        """Continue a prompt, or each of a list: the list is decoded as one batch, its results in its order.

        Raises ContextFull for a prompt longer than the context, NumericalError if the model yields NaN.
        """
        if isinstance(prompts, (str, bytes)) or not isinstance(prompts, Sequence) or _are_tokens(prompts):
            return self._complete([self._encode(prompts)], params)[0]  # type: ignore[arg-type]
        return self._complete([self._encode(prompt, f"prompt {i}") for i, prompt in enumerate(prompts)], params)  # type: ignore[arg-type]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[Chunk]:
        """Continue a prompt piece by piece; the texts of the chunks, joined, are generate's.

        The last chunk carries the finish reason and timings.  Leaving the loop early ends the generation.
        """
        return self._stream(self._encode(prompt), params)

    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> Completion:
        """The assistant's next message, for messages of role and content, through the model's own template."""
        return self._complete([self._encode_chat(messages, tools)], params)[0]

    def stream_chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> Iterator[Chunk]:
        """As chat, piece by piece."""
        return self._stream(self._encode_chat(messages, tools), params)

    @overload
    def score(self, texts: str) -> Score: ...  # type: ignore[overload-overlap]
    @overload
    def score(self, texts: Sequence[Prompt]) -> list[Score]: ...
    def score(self, texts: str | Sequence[Prompt]) -> Score | list[Score]:
        """Natural log-probability of every token of each text given those before it; the first token has none."""
        single = isinstance(texts, (str, bytes))
        if single or not isinstance(texts, Sequence):
            tokens = [self._encode(texts, "the text")]  # type: ignore[arg-type]
        else:
            tokens = [self._encode(text, f"text {i}") for i, text in enumerate(texts)]
        requests = [Scoring(ids, [*ids[1:], -1]) for ids in tokens]
        self.run(requests)
        scores = [Score(request.prompt, [None, *request.scores[:-1]]) for request in requests]
        return scores[0] if single else scores

    def logits(self, prompt: Prompt) -> npt.NDArray[np.float32]:
        """Logits after every token of a prompt, [tokens, vocabulary]."""
        import numpy as np

        request = Logits(self._encode(prompt))
        self.run([request])
        return np.concatenate(request.rows)

    def run(self, requests: Sequence[Request]) -> None:
        """Run work of your own, subclasses of cpuinfer.request.Request, together to its end."""
        engine = self._alive()
        try:
            for request in requests:
                engine.submit(request)
            for request in requests:
                engine.finish(request)
        finally:
            engine.drop(*requests)

    def follow(self, request: Request) -> Iterator[None]:
        """As run, and comes back whenever there is something to take, which is then to be taken."""
        engine = self._alive()
        try:
            engine.submit(request)
            while True:
                engine.advance(request)
                done = request.done
                yield
                if done:
                    return
        finally:
            engine.drop(request)

    def cancel(self) -> None:
        """From any thread: running answers end with their text so far, as "cancelled"; other calls raise Cancelled."""
        engine = self._engine
        if engine is not None:
            engine.cancel()

    def profile(self) -> list[OperatorTime]:
        """Time, bytes and operations of every operator in all steps so far.

        Raises InvalidRequest unless the LLM was made with `profile`, or once it is closed.
        """
        self._alive()
        if not self._profiles:
            raise InvalidRequest("nothing was measured: make the LLM with profile=True")
        from cpuinfer.profiling import collect

        return collect(self._session, self.graph.ops)

    def close(self) -> None:
        """Free the weights and threads.  The LLM cannot be used after."""
        if self._engine is not None:
            if self._prints_profile:
                self._print_profile()
            self._engine = None
            del self._session

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"LLM({str(self.path)!r}, threads={self.threads}, context={self.context}, isa={self.isa!r})"

    def _print_profile(self) -> None:
        from cpuinfer import _core
        from cpuinfer.profiling import report

        if times := self.profile():
            bandwidth = _core.read_bandwidth(self._session.weight_bytes, self.threads)
            print(report(times, read_bandwidth=bandwidth), file=sys.stderr)

    def _encode(self, prompt: Prompt, which: str = "the prompt") -> list[int]:
        if isinstance(prompt, (bytes, bytearray)) or not isinstance(prompt, (str, Iterable)):
            raise InvalidRequest(f"{which} is {prompt!r}, expected text or token ids")
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        if not ids:
            raise InvalidRequest(f"{which} is empty: it has no tokens to continue")
        for token in ids:
            if isinstance(token, bool) or not isinstance(token, Integral) or not 0 <= token < self.vocabulary:
                raise InvalidRequest(f"token id {token!r}, expected an integer of 0 to {self.vocabulary - 1}")
        return [int(token) for token in ids]

    def _encode_chat(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None) -> list[int]:
        if self._template is None:
            raise UnsupportedModel(f"{self.path}: has no chat template: use generate, or `cpuinfer run --raw`")
        return self._encode(self._template.render(messages, tools=tools))

    def _generation(self, prompt: list[int], params: SamplingParams | None) -> Generation:
        from cpuinfer import _core

        params = SamplingParams() if params is None else params
        if not isinstance(params, SamplingParams):
            raise InvalidRequest(f"params: {params!r}, expected SamplingParams")
        seed = int.from_bytes(os.urandom(8), sys.byteorder) if params.seed is None else params.seed
        sampler = _core.Sampler(vocabulary=self.vocabulary, **params.native_options(seed))
        sampler.see_prompt(prompt)
        return Generation(prompt, params, seed=seed, sampler=sampler, tokenizer=self.tokenizer, context=self.context)

    def _complete(self, prompts: list[list[int]], params: SamplingParams | None) -> list[Completion]:
        requests = [self._generation(prompt, params) for prompt in prompts]
        self.run(requests)
        return [_completion(request) for request in requests]

    def _stream(self, prompt: list[int], params: SamplingParams | None) -> Iterator[Chunk]:
        engine = self._alive()
        request = self._generation(prompt, params)
        try:
            engine.submit(request)
            while not request.done or request.chunks or request.error is not None:
                engine.advance(request)
                while request.chunks:
                    yield request.chunks.popleft()
        finally:
            engine.drop(request)

    def _alive(self) -> Engine:
        if self._engine is None:
            raise InvalidRequest("this LLM is closed")
        return self._engine


def _are_tokens(prompts: Sequence[object]) -> bool:
    return len(prompts) > 0 and isinstance(prompts[0], Integral)


def _opened(model: str | Path | loader.Blueprint | None, context: int | None, quantize: str | None) -> loader.Blueprint:
    if not isinstance(model, loader.Blueprint):
        path = model if isinstance(model, Path) else store.resolve(model, progress=False)
        return loader.open_model(path, context=context, quantize=quantize)
    if quantize is not None:
        raise InvalidRequest("quantize: was chosen when the model was opened")
    return model


def _check_threads(threads: int) -> int:
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= machine.MOST_THREADS:
        raise InvalidRequest(f"threads: {threads!r}, expected an integer of 1 to {machine.MOST_THREADS}")
    return threads


def _check_switches(**switches: object) -> None:
    """A text such as "no" would count as yes."""
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise InvalidRequest(f"{name}: {value!r}, expected True or False")


def _check_prefix_cache(positions: int) -> int:
    if isinstance(positions, bool) or not isinstance(positions, int) or positions < 0:
        raise InvalidRequest(f"prefix_cache: {positions!r}, expected a number of positions, 0 for none")
    return positions


def _fit_context(config: Config, asked: int | None, threads: int, page: int) -> tuple[int, int]:
    """(context, cache pages of so many bytes): what was asked, or the model's own context as far as memory goes."""
    if asked is not None and (isinstance(asked, bool) or not isinstance(asked, int) or asked < 1):
        raise InvalidRequest(f"context: {asked!r}, expected a positive integer")
    budget = int(machine.available_memory() * CACHE_SHARE)
    parts = part_bytes(config, threads)
    most = budget // (page + parts) * PAGE_TOKENS
    context = min(config.context, max(PAGE_TOKENS, most)) if asked is None else asked
    if most < context:
        need = -(-context // PAGE_TOKENS) * (page + parts)
        raise MemoryLimit(
            f"a context of {context} needs {need / 2**20:.0f} MiB for keys, values and scratch, "
            f"half of the free memory is {budget / 2**20:.0f} MiB: ask for a smaller context (-c)"
        )
    return context, (budget - -(-context // PAGE_TOKENS) * parts) // page


def _completion(request: Generation) -> Completion:
    chunks = list(request.chunks)
    logprobs: list[TokenLogprob] = [entry for chunk in chunks for entry in chunk.logprobs or ()]
    return Completion(
        text="".join(chunk.text for chunk in chunks),
        token_ids=[token for chunk in chunks for token in chunk.token_ids],
        finish_reason=request.finish_reason or "cancelled",
        prompt_token_ids=request.prompt,
        seed=request.seed,
        timings=request.timings(),
        logprobs=None if request.params.logprobs is None else logprobs,
    )
