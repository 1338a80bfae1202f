"""`cpuinfer eval`: perplexity, divergence, multiple choice, and comparisons of their results."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cpuinfer.cli.model import MODEL_HELP, add_cache_packed, add_kv_cache, add_quantize, describe_model, open_model
from cpuinfer.cli.parameters import integer, kernel_set, positive, thread_count
from cpuinfer.cli.terminal import progress_bar

if TYPE_CHECKING:
    from cpuinfer.llm import LLM

HELP = "measure a model: perplexity, divergence from another, multiple choice"
EPILOG = """
examples:
  cpuinfer eval perplexity smollm2-135m text.txt
  cpuinfer eval choice model.gguf questions.jsonl --output a.json
  cpuinfer eval compare a.json b.json"""
NORMALISATIONS = ("sum", "token", "byte", "letter")


@dataclass(frozen=True, slots=True)
class Subcommand:
    """One of the measures."""

    HELP: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def _perplexity_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "The text is cut into windows that each begin as the tokenizer begins a text; every token is scored once.\n"
        "Intervals (95 %) take windows as independent, but not the tokens within one."
    )
    _add_model_and_text(parser)
    _add_windows(parser)
    _add_opening(parser)
    _add_output(parser)


def _perplexity(args: argparse.Namespace) -> int:
    from cpuinfer.evaluate import perplexity

    _check_output(args)
    with _open(args, context=_window(args)) as llm, progress_bar("tokens") as progress:
        result = perplexity(llm, args.text, window=args.window, stride=args.stride, batch=args.batch, progress=progress)
    return _report(args, result)


def _kld_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "KL(reference || MODEL) of each token, over the whole vocabulary, which must be the reference's.\n"
        "examples:\n"
        "  cpuinfer eval kld q4.gguf text.txt --reference f16.gguf\n"
        "  cpuinfer eval kld f16.gguf text.txt --save-logits f16.logits\n"
        "  cpuinfer eval kld q4.gguf text.txt --logits f16.logits"
    )
    _add_model_and_text(parser)
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--reference", metavar="MODEL", help="the model to compare with; a folder runs as it is stored")
    group.add_argument("--logits", type=Path, metavar="FILE", help="what --save-logits wrote of the reference")
    group.add_argument(
        "--save-logits",
        type=Path,
        metavar="FILE",
        help="only write MODEL's log-probabilities: 2 bytes each, all of them",
    )
    _add_windows(parser)
    _add_opening(parser)
    _add_output(parser)


def _kld(args: argparse.Namespace) -> int:
    from cpuinfer.evaluate import divergence, save_logits
    from cpuinfer.evaluate.logits_file import LogitsFile

    _check_output(args)
    options = {"window": args.window, "stride": args.stride}
    result: object
    if args.logits is not None:
        context = LogitsFile(args.logits).windows.window  # refused, if it is, before a model is loaded
        with _open(args, context=context) as llm, progress_bar("tokens") as progress:
            result = divergence(llm, args.text, args.logits, **options, progress=progress)
    elif args.save_logits is not None:
        with _open(args, context=_window(args)) as llm, progress_bar("tokens") as progress:
            result = save_logits(llm, args.text, args.save_logits, **options, progress=progress)
    else:
        context = _window(args)
        with (
            _open(args, context=context) as llm,
            _open_reference(args, context) as reference,
            progress_bar("tokens") as progress,
        ):
            result = divergence(llm, args.text, reference, **options, progress=progress)
    return _report(args, result)


def _choice_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        'FILE has a JSON object a line: {"context": "...", "choices": ["...", "..."], "answer": 0}, or the fields of\n'
        "ARC, HellaSwag, MMLU, OpenBookQA, PIQA or TruthfulQA (see cpuinfer.evaluate.questions).\n"
        "sum: the log-probability of a choice; token, byte: that by its length; letter: that of its letter, below\n"
        "the question and all choices.  Intervals (95 %) are Wilson's."
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("file", metavar="FILE.jsonl", type=Path, help="the questions")
    parser.add_argument("--normalise", choices=NORMALISATIONS, default="sum", help="the headline (default: sum)")
    parser.add_argument("--no-letters", action="store_true", help="do not ask for letters, which doubles the work")
    parser.add_argument(
        "-c", "--context", type=positive, metavar="N", help="default: the model's own, as memory allows"
    )
    _add_opening(parser)
    _add_output(parser)


def _choice(args: argparse.Namespace) -> int:
    from cpuinfer.evaluate import choices, read_questions

    _check_output(args)
    read_questions(args.file)  # before a model is loaded in vain
    with _open(args, context=args.context) as llm, progress_bar("questions") as progress:
        result = choices(
            llm,
            args.file,
            normalise=args.normalise,
            letters=not args.no_letters,
            batch=args.batch,
            progress=progress,
        )
    return _report(args, result)


def _compare_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "A and B are results that --output or -o json wrote.  The same items, as of two models, are compared in\n"
        "pairs; different ones, as of a public set and its private twin, as two samples.  p-values are two-sided."
    )
    parser.add_argument("a", metavar="A", type=Path, help="a result")
    parser.add_argument("b", metavar="B", type=Path, help="another; differences are B - A")
    parser.add_argument("--resamples", type=integer(100), default=10_000, metavar="N", help="default 10000")
    parser.add_argument("--seed", type=integer(0), default=0, metavar="N", help="of the resampling (default 0)")
    _add_output(parser)


def _compare(args: argparse.Namespace) -> int:
    from cpuinfer.evaluate import compare

    _check_output(args)
    return _report(args, compare(args.a, args.b, resamples=args.resamples, seed=args.seed))


SUBCOMMANDS = {
    "perplexity": Subcommand("how likely a model takes a text to be", _perplexity_arguments, _perplexity),
    "kld": Subcommand("how far a model's predictions are from a reference's", _kld_arguments, _kld),
    "choice": Subcommand("answer multiple-choice questions by likelihood", _choice_arguments, _choice),
    "compare": Subcommand("whether two results differ by more than chance", _compare_arguments, _compare),
}


def _add_model_and_text(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("text", metavar="TEXT.txt", type=Path, help="any text in UTF-8")


def _add_windows(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--window", type=positive, metavar="N", help="positions (default: 512, or the context if less)")
    parser.add_argument("--stride", type=positive, metavar="N", help="tokens scored by each (default: half the window)")


def _add_opening(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-t", "--threads", type=thread_count, metavar="N", help="default: the fast cores")
    parser.add_argument("--isa", type=kernel_set, metavar="NAME", help="kernel set (default: the best there is)")
    parser.add_argument(
        "--batch", type=positive, default=8, metavar="N", help="windows or questions at a time (default 8)"
    )
    parser.add_argument(
        "--fast", action="store_true", help="let tile units (AMX) compute: quicker, but other bits than elsewhere"
    )
    add_quantize(parser)
    add_kv_cache(parser)
    add_cache_packed(parser)


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--format", choices=("table", "json"), default="table", help="default table")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the result, with every item, as JSON too")


def _window(args: argparse.Namespace) -> int:
    """Positions that the model is to have: a window asked for is checked when it is used."""
    from cpuinfer.evaluate.windows import WINDOW

    context = describe_model(args.model, quantize=args.quantize).context
    if getattr(args, "reference", None) is not None:
        context = min(context, describe_model(args.reference, quantize=_as_stored(args.reference)).context)
    return min(WINDOW if args.window is None else args.window, context)


def _as_stored(spec: str) -> str | None:
    """The `quantize` that leaves a model's weights as they are."""
    from cpuinfer import store

    return "none" if store.resolve(spec, progress=True).is_dir() else None


def _open(args: argparse.Namespace, *, context: int | None) -> LLM:
    return open_model(
        args.model,
        threads=args.threads,
        context=context,
        isa=args.isa,
        quantize=args.quantize,
        cache_packed=args.cache_packed,
        kv_cache=args.kv_cache,
        deterministic=not args.fast,
    )


def _open_reference(args: argparse.Namespace, context: int) -> LLM:
    return open_model(
        args.reference,
        threads=args.threads,
        context=context,
        isa=args.isa,
        quantize=_as_stored(args.reference),
        deterministic=not args.fast,
    )


def _check_output(args: argparse.Namespace) -> None:
    """Before the work, whether its result can be written."""
    from cpuinfer.evaluate.records import AtomicFile

    if args.output is not None:
        AtomicFile(args.output).discard()


def _report(args: argparse.Namespace, result: object) -> int:
    from cpuinfer.cli.eval_tables import tables_of
    from cpuinfer.cli.tables import print_tables
    from cpuinfer.evaluate.records import to_json, write_record

    if args.output is not None:
        write_record(result, args.output)
    if args.format == "json":
        sys.stdout.write(to_json(result) + "\n")
    else:
        print_tables(*tables_of(result))
    return 0
