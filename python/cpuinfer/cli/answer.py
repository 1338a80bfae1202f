"""Writing an answer as it is decoded, stopping it on Ctrl-C, and what is said of it afterwards."""

from __future__ import annotations

import queue
import resource
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

from cpuinfer.cli.terminal import megabytes, printable, remark
from cpuinfer.results import Chunk

if TYPE_CHECKING:
    from cpuinfer.llm import LLM
    from cpuinfer.results import FinishReason, Timings
    from cpuinfer.sampling import SamplingParams


@dataclass(slots=True)
class Answer:
    """What has been received of an answer."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason = "cancelled"
    seed: int = 0
    timings: Timings | None = None


def receive(llm: LLM, chunks: Callable[[], Iterator[Chunk]], output: TextIO | None) -> Answer:
    """Take an answer to its end, or to Ctrl-C, writing its text to `output` as it comes, then a newline."""
    answer, texts, terminal = Answer(), [], output is not None and output.isatty()
    with closing(_interruptible(chunks, llm.cancel)) as pieces:
        for chunk in pieces:
            texts.append(chunk.text)
            answer.token_ids += chunk.token_ids
            answer.seed = chunk.seed
            if chunk.finish_reason is not None:
                answer.finish_reason, answer.timings = chunk.finish_reason, chunk.timings
            if output is not None and chunk.text:
                output.write(printable(chunk.text) if terminal else chunk.text)
                output.flush()
    answer.text = "".join(texts)
    if output is not None and not answer.text.endswith("\n"):
        output.write("\n")
        output.flush()
    return answer


def _interruptible(chunks: Callable[[], Iterator[Chunk]], cancel: Callable[[], None]) -> Generator[Chunk, None, None]:
    """The chunks, made in a thread of their own: a native step does not keep Ctrl-C waiting, which calls `cancel`."""
    pieces: queue.SimpleQueue[Chunk | BaseException | None] = queue.SimpleQueue()
    stopped = threading.Event()

    def work() -> None:
        try:
            for chunk in chunks():
                pieces.put(chunk)
                if stopped.is_set():  # also when it was set before there was anything to cancel
                    cancel()
            pieces.put(None)
        except BaseException as error:
            pieces.put(error)

    def stop() -> None:
        stopped.set()
        cancel()

    worker = threading.Thread(target=work, name="cpuinfer-answer", daemon=True)
    with _on_interrupt(stop):
        worker.start()
        try:
            while isinstance(piece := pieces.get(), Chunk):
                yield piece
        except BaseException:  # the reader left
            stop()
            raise
        finally:
            worker.join()
    if piece is not None:
        raise piece


@contextmanager
def _on_interrupt(call: Callable[[], None]) -> Iterator[None]:
    """Within, Ctrl-C calls this function instead of raising KeyboardInterrupt."""
    before = signal.signal(signal.SIGINT, lambda *_: call())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def explain_length(answer: Answer, params: SamplingParams, context: int) -> None:
    """Say on standard error why an answer was cut, if it was."""
    if answer.finish_reason == "length":
        at_limit = params.max_tokens is not None and len(answer.token_ids) >= params.max_tokens
        remark(f"[cut at max_tokens {params.max_tokens}]" if at_limit else f"[cut: the context of {context} is full]")


def print_stats(timings: Timings | None) -> None:
    """The speed of an answer and the memory of this process, on standard error."""
    lines = []
    if timings is not None:
        reused = f", {timings.reused_tokens} reused" if timings.reused_tokens else ""
        lines = [
            f"prompt        {timings.prompt_tokens:>6} tokens  {timings.prompt_rate:10.1f} tokens/s{reused}",
            f"first token   {timings.first_token_seconds:10.3f} s",
            f"generated     {timings.generated_tokens:>6} tokens  {timings.generate_rate:10.1f} tokens/s",
        ]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB
    print(*lines, f"peak memory   {megabytes(peak):>13}", sep="\n", file=sys.stderr, flush=True)
