"""`cpuinfer bench`: how fast a model reads prompts and writes answers."""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal

from cpuinfer.cli.model import MODEL_HELP, add_deterministic, add_kv_cache, add_quantize, describe_model, open_model
from cpuinfer.cli.parameters import integer, kernel_set, positive, thread_count
from cpuinfer.cli.terminal import megabytes, printable, progress
from cpuinfer.errors import CpuInferError, InvalidRequest
from cpuinfer.sampling import SamplingParams

if TYPE_CHECKING:
    from cpuinfer.description import Description
    from cpuinfer.llm import LLM

HELP = "measure the speed of prompts (pp) and of generation (tg)"

EPILOG = """\
ppN is the speed of a prompt of N tokens, tgN that of generating N tokens after the first one.
ppN@dD is the speed of N tokens of prompt that follow D others: the time of a prompt of D+N tokens minus that of its
first D tokens, both measured in the same repetition.  tgN@dD generates after a prompt of D tokens.
Each repetition has fresh random tokens; one more before them warms up and is not counted.

examples:
  cpuinfer bench
  cpuinfer bench model.gguf -p 512 -n 128 -d 0,4096 -t 1,2 -o json
  cpuinfer bench model.gguf --isa avx2,avx512_vnni -r 10
"""


@dataclass(frozen=True, slots=True)
class Test:
    """One thing to measure."""

    kind: Literal["pp", "tg"]
    tokens: int
    depth: int

    @property
    def name(self) -> str:
        """`pp512`, `tg128@d4096`."""
        return f"{self.kind}{self.tokens}" + (f"@d{self.depth}" if self.depth else "")

    @property
    def positions(self) -> int:
        """The context it takes; generation starts from one token at least."""
        return self.tokens + (self.depth if self.kind == "pp" else max(1, self.depth))


@dataclass(frozen=True, slots=True)
class Row:
    """The speeds of one test, in tokens per second."""

    model: str
    size_bytes: int
    isa: str
    threads: int
    test: str
    mean: float
    standard_deviation: float
    median: float
    samples: list[float] = field(default_factory=list)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = EPILOG
    parser.add_argument("model", metavar="MODEL", nargs="?", help=MODEL_HELP)
    parser.add_argument("-p", "--prompt-tokens", type=_count, default=512, metavar="N", help="default 512; 0: no pp")
    parser.add_argument("-n", "--generate-tokens", type=_count, default=128, metavar="N", help="default 128; 0: no tg")
    parser.add_argument(
        "-d", "--depth", type=_counts, default=[0], metavar="D,...", help="tokens already there (default 0)"
    )
    parser.add_argument(
        "-t", "--threads", type=_thread_counts, default=[None], metavar="N,...", help="default: the fast cores"
    )
    parser.add_argument("-r", "--repetitions", type=positive, default=5, metavar="N", help="default 5")
    parser.add_argument(
        "--isa",
        type=_kernel_sets,
        default=[None],
        metavar="NAME,...",
        help="kernel sets (default: the best this machine runs)",
    )
    add_quantize(parser)
    add_kv_cache(parser)
    add_deterministic(parser)
    parser.add_argument("-o", "--output", choices=list(_WRITERS), default="md", help="default md")


def run(args: argparse.Namespace) -> int:
    """Measure, printing each row as it is known."""
    tests = make_tests(args.prompt_tokens, args.generate_tokens, args.depth)
    if not tests:
        raise InvalidRequest("nothing to measure: both -p and -n are 0")
    description = describe_model(args.model, quantize=args.quantize)
    context = max(test.positions for test in tests)
    for test in tests:
        if test.positions > description.context:
            raise InvalidRequest(
                f"{test.name} takes {test.positions} positions, the context of {description.name} is "
                f"{description.context}: choose smaller -p, -n or -d"
            )
    _WRITERS[args.output](_measure_all(args, tests, description, context))
    return 0


def make_tests(prompt_tokens: int, generate_tokens: int, depths: Sequence[int]) -> list[Test]:
    """The rows of a table, those of no tokens left out."""
    kinds: tuple[tuple[Literal["pp", "tg"], int], ...] = (("pp", prompt_tokens), ("tg", generate_tokens))
    return [Test(kind, tokens, depth) for depth in depths for kind, tokens in kinds if tokens]


def measure(llm: LLM, test: Test) -> float:
    """Tokens per second, once."""
    generator = random.Random()
    ids = [generator.randrange(llm.vocabulary) for _ in range(test.positions)]
    if test.kind == "tg":
        steps = test.tokens
        timings = llm.generate(ids[: test.positions - steps], _greedy(steps + 1)).timings
        return timings.generate_rate
    before = llm.generate(ids[: test.depth], _greedy(1)).timings.prompt_seconds if test.depth else 0.0
    seconds = llm.generate(ids, _greedy(1)).timings.prompt_seconds - before
    if seconds <= 0:
        raise CpuInferError(f"{test.name}: its time is lost in the noise of the {test.depth} tokens before: raise -p")
    return test.tokens / seconds


def _greedy(max_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)


def _measure_all(
    args: argparse.Namespace, tests: Sequence[Test], description: Description, context: int
) -> Iterator[Row]:
    for isa in args.isa:
        for threads in args.threads:
            with open_model(
                args.model,
                threads=threads,
                context=context,
                isa=isa,
                quantize=args.quantize,
                prefix_cache=0,
                kv_cache=args.kv_cache,
                deterministic=args.deterministic,
            ) as llm:
                for test in tests:
                    yield _measure_row(llm, test, args.repetitions, description)


def _measure_row(llm: LLM, test: Test, repetitions: int, description: Description) -> Row:
    progress(f"{test.name}: warm-up")
    measure(llm, test)
    samples = []
    for i in range(repetitions):
        progress(f"{test.name}: {i + 1} of {repetitions}")
        samples.append(measure(llm, test))
    progress("")
    return Row(
        model=description.name,
        size_bytes=description.file_bytes,
        isa=llm.isa,
        threads=llm.threads,
        test=test.name,
        mean=statistics.fmean(samples),
        standard_deviation=statistics.stdev(samples) if repetitions > 1 else 0.0,
        median=statistics.median(samples),
        samples=samples,
    )


def _write_markdown(rows: Iterator[Row]) -> None:
    """The model above the table, which then fits 80 columns."""
    layout = "| {:<11} | {:>7} | {:<13} | {:>20} | {:>10} |"
    header = layout.format("isa", "threads", "test", "t/s", "median")
    for i, row in enumerate(rows):
        if i == 0:
            print(f"{printable(row.model)}, {megabytes(row.size_bytes)}\n")
            print(header, "".join(c if c == "|" else "-" for c in header), sep="\n")
        speed = f"{row.mean:.2f} ± {row.standard_deviation:.2f}"
        print(layout.format(row.isa, row.threads, row.test, speed, f"{row.median:.2f}"), flush=True)


def _write_csv(rows: Iterator[Row]) -> None:
    import csv

    names = ("model", "size_bytes", "isa", "threads", "test", "mean", "standard_deviation", "median")
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        writer.writerow([getattr(row, name) for name in names])
        sys.stdout.flush()


def _write_json(rows: Iterator[Row]) -> None:
    print(json.dumps([asdict(row) for row in rows], indent=2, ensure_ascii=False))


_WRITERS = {"md": _write_markdown, "csv": _write_csv, "json": _write_json}


_count = integer(0)


def _counts(text: str) -> list[int]:
    return [_count(part) for part in text.split(",")]


def _thread_counts(text: str) -> list[int]:
    return [thread_count(part) for part in text.split(",")]


def _kernel_sets(text: str) -> list[str]:
    return [kernel_set(part) for part in text.split(",")]
