"""The methods of `cpuinfer quantize` side by side, and llama.cpp's own quantiser with the same importance.

    python benchmarks/quantisers.py MODEL_FOLDER... --calibration TEXT --held-out TEXT --questions FILE.jsonl \\
        --ggml libggml-base.so > results/NAME.md                 (models and texts of tests/train_tiny.py)

Models of one type have the same types of tensors, so the same bits.  KL is to the folder as it is, in nats a token of
the held-out text, with 95 % intervals that take windows as independent.  llama.cpp's quantiser is the
function its command line calls for each tensor (`ggml_quantize_chunk`), given the same mean squares of the inputs.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import gguf
import numpy as np
import numpy.typing as npt

from cpuinfer import loader, machine
from cpuinfer.evaluate import read_questions
from cpuinfer.formats.canonical import BlockRows
from cpuinfer.loader import Blueprint
from cpuinfer.ops import Embed
from cpuinfer.quantize import flow, target
from cpuinfer.quantize.blocks import BlockScheme
from cpuinfer.quantize.calibration import Text
from cpuinfer.quantize.forward import Table, read_matrix, read_stage, run_stage
from cpuinfer.quantize.judge import Judge, Verdict
from cpuinfer.quantize.recipe import CALIBRATED, FLOATS, Recipe
from cpuinfer.quantize.result import as_scheme, plain
from cpuinfer.quantize.stages import cut
from cpuinfer.quantize.statistics import Statistics
from cpuinfer.quantize.work import sliced
from cpuinfer.weight import Weight

METHODS = ("rtn", "opt-rtn", "importance", "awq", "gptq", "autoround")
LABELS = ("Q4_0", "Q4_K_S")
Encode = Callable[[str, npt.NDArray[np.float32], npt.NDArray[np.float32] | None], npt.NDArray[np.uint8]]


def llama_cpp(library: Path) -> Encode:
    """llama.cpp's function: (type, weights [n, k], importance [k]) -> bytes of rows."""
    chunk = ctypes.CDLL(str(library)).ggml_quantize_chunk
    chunk.restype = ctypes.c_size_t
    chunk.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]

    def encode(
        name: str, w: npt.NDArray[np.float32], importance: npt.NDArray[np.float32] | None
    ) -> npt.NDArray[np.uint8]:
        kind = gguf.GGMLQuantizationType[name]
        elements, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        n, k = w.shape
        w, out = np.ascontiguousarray(w), np.empty((n, k // elements * block_bytes), np.uint8)
        given = None if importance is None else importance.ctypes.data
        chunk(int(kind), w.ctypes.data, out.ctypes.data, 0, n, k, given)
        return out

    return encode


def mean_squares(model: flow.Model) -> dict[str, npt.NDArray[np.float32]]:
    """Of what each matrix reads, the model as it is: an importance matrix."""
    graph, weights = model.blueprint.graph, model.blueprint.source.weights
    texts = model.texts()
    states = [{} for _ in texts]
    found: dict[str, Statistics] = {}

    def observe(name: str, x: npt.NDArray[np.float32]) -> None:
        found.setdefault(name, Statistics.empty(x.shape[-1], hessian=False)).add(x.reshape(-1, x.shape[-1]))

    for stage in cut(graph):
        tables = frozenset(op.table for op in stage.ops if isinstance(op, Embed))
        values = {**read_stage(stage, weights, tables), **{name: Table(weights[name]) for name in tables}}
        states = run_stage(graph, stage, values, states, texts, observe=observe)
    return {name: each.mean_square for name, each in found.items()}


def by_llama_cpp(
    blueprint: Blueprint,
    encodings: Mapping[str, str],
    squares: Mapping[str, npt.NDArray[np.float32]],
    encode: Encode,
) -> dict[str, Weight]:
    """The weights as llama.cpp rounds them."""
    weights: dict[str, Weight] = {}
    for name, weight in blueprint.source.weights.items():
        encoding = encodings.get(name)
        if encoding is None or encoding in FLOATS:
            weights[name] = plain(weight, encoding, "rtn")
            continue
        scheme = BlockScheme.of(encoding)
        raw = encode(encoding, read_matrix(weight), squares.get(name))
        rows = BlockRows(raw, scheme.form, weight.shape[1])
        weights[name] = as_scheme(weight, scheme, lambda begin, end, rows=rows: sliced(rows, begin, end))
    return weights


def row(names: Sequence[str], weights: Mapping[str, Weight], seconds: float, verdict: Verdict) -> str:
    """Of the table; names: of the model, the type and the method."""
    found = verdict.divergence
    half = 0.0 if found.divergence.high is None else found.divergence.high - found.divergence.value
    accuracy = "" if verdict.accuracy is None else f"{verdict.accuracy:.1%} of {verdict.source_accuracy:.1%}"
    return (
        f"| {' | '.join(names)} | {flow.bits(weights):.3f} | {found.divergence.value:.5f} | {half:.5f} | "
        f"{found.perplexity_ratio.value:.4f} | {found.same_top.value:.1%} | {accuracy} | {seconds:.0f} |"
    )


def compare(folder: Path, args: argparse.Namespace) -> None:
    """A model's rows, printed as they are known."""
    blueprint = loader.open_model(folder, quantize="none")
    threads = machine.default_threads().threads
    text = Text("text", args.calibration.read_text(), args.held_out.read_text())
    model = flow.Model(blueprint=blueprint, text=text, count=args.windows, length=256, threads=threads)
    questions = read_questions(args.questions)[: args.most_questions] if args.questions else ()
    encode = None if args.ggml is None else llama_cpp(args.ggml)
    squares = mean_squares(model)
    with (
        TemporaryDirectory() as scratch,
        Judge(blueprint, text.held_out, Path(scratch), threads=threads, questions=questions) as judge,
    ):
        for label in args.types:
            kind = target.Target("gguf", (label,))
            encodings = target.encodings(kind, label, blueprint, (), importance=True)
            for method in args.methods:
                recipe = Recipe(method=method, encodings=encodings, label=label, iterations=args.iterations)
                began = time.perf_counter()
                made, work = flow.quantise(model, recipe, Path(scratch) / "out", lambda _what, _share: None)
                verdict = judge.verdict(made.weights)
                took = time.perf_counter() - began
                name = method if method in CALIBRATED else f"{method} (no text)"
                print(row((folder.name, label, name), made.weights, took, verdict), flush=True)
                if work is not None:
                    work.delete()
            if encode is not None:
                for name, given in (("llama.cpp", {}), ("llama.cpp with importance", squares)):
                    began = time.perf_counter()
                    weights = by_llama_cpp(blueprint, encodings, given, encode)
                    verdict = judge.verdict(weights)
                    took = time.perf_counter() - began
                    print(row((folder.name, label, name), weights, took, verdict), flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="MODEL_FOLDER")
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--questions", type=Path)
    parser.add_argument("--most-questions", type=int, default=400)
    parser.add_argument("--ggml", type=Path, help="llama.cpp's libggml-base.so")
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--types", nargs="+", default=LABELS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    args = parser.parse_args(arguments)
    print("| model | type | method | bits | KL, nats | +- | perplexity x source | same top | accuracy | s |")
    print("|---|---|---|--:|--:|--:|--:|--:|--:|--:|")
    for folder in args.folders:
        compare(folder, args)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
