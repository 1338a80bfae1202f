"""`cpuinfer quantize`: writes a model in fewer bits, measures what that changed, and refuses what changed too much."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpuinfer.cli.model import MODEL_HELP
from cpuinfer.cli.parameters import integer, positive, thread_count
from cpuinfer.cli.terminal import progress, progress_bar, remark, share_bar
from cpuinfer.errors import InvalidRequest

if TYPE_CHECKING:
    from cpuinfer.loader import Blueprint
    from cpuinfer.quantize.auto import Search
    from cpuinfer.quantize.calibration import Text
    from cpuinfer.quantize.flow import Made, Model
    from cpuinfer.quantize.judge import Judge
    from cpuinfer.quantize.recipe import Recipe
    from cpuinfer.quantize.target import Target

HELP = "write a model in fewer bits, and measure what that changed"
METHODS = ("auto", "rtn", "opt-rtn", "hqq", "importance", "awq", "gptq", "autoround")
TYPES = ("int", "nf4", "fp4", "af4", "iq4_nl", "dynamic4")
GOAL_NOT_MET = 3
EPILOG = """\
SOURCE: a Hugging Face folder, or a GGUF file.  OUT: a new GGUF file (of either), or a new folder (of a folder).

auto tries sizes from the smallest on, and on each the methods opt-rtn, importance and gptq (with --thorough, autoround
too).  With --goal 1% it keeps the first that raises the perplexity of held-out text, and lowers the accuracy of
--questions, by at most one per cent; if none does, nothing is written, and the exit code is 3.  Without a goal it tries
them all on the size that --format or --bits name (else Q4_K_M), and keeps the least divergence from the source.

Calibration reads 128 stretches of 512 tokens; for models of more than 170M weights fewer, as long as there are 1.5
tokens for each input of the widest matrix.  Of those, importance reads 8, whatever their number.  For gptq in 3 bits
and less, more (--windows 128) are worth the time.

A run that was stopped goes on where it was when it is started again with the same options.

examples:
  cpuinfer quantize model-folder -o model.gguf --goal 1%
  cpuinfer quantize model-folder -o model.gguf --method gptq --format gguf:Q4_K_M --calibration text.txt
  cpuinfer quantize model-folder -o model-int4 --format safetensors:gptq --bits 4 --group 128"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = EPILOG
    parser.add_argument("source", metavar="SOURCE", help=MODEL_HELP)
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help="the file or folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    parser.add_argument("--method", choices=METHODS, default="auto", help="default auto")
    parser.add_argument("--goal", type=_share, metavar="SHARE", help="of auto: the most that may be lost, such as 1%%")
    parser.add_argument("--thorough", action="store_true", help="of auto: try autoround too, which takes long")
    parser.add_argument("--bits", type=integer(2, 8), metavar="N", help="bits of most weights (default: as auto finds)")
    parser.add_argument(
        "--bpw", type=_bits, metavar="N", help="bits a weight on average, shared out by what each matrix suffers"
    )
    parser.add_argument("--type", choices=TYPES, default="int", help="numbers or a table of 16 (default int)")
    parser.add_argument("--group", type=int, choices=(32, 64, 128, 256, -1), help="weights to a scale; -1: a row")
    parser.add_argument("--sym", action=argparse.BooleanOptionalAction, help="no zero points (default: both are tried)")
    parser.add_argument(
        "--format", metavar="FORM", help="gguf:TYPE, or safetensors:gptq, :compressed-tensors or :cpuinfer"
    )
    parser.add_argument("--keep", type=_keep, default=[], metavar="NAME=BITS,...", help="others for some: lm_head=6")
    parser.add_argument("--calibration", type=Path, metavar="FILE", help="text (default: Python's own documentation)")
    parser.add_argument(
        "--windows", type=positive, metavar="N", help="stretches of it (default: 128, fewer of large models)"
    )
    parser.add_argument("--length", type=positive, default=512, metavar="N", help="tokens of each (default 512)")
    parser.add_argument(
        "--no-measure", action="store_true", help="of a method other than auto: only write, compare nothing"
    )
    parser.add_argument("--questions", type=Path, metavar="FILE", help="multiple choice to judge by: see eval choice")
    parser.add_argument("--iterations", type=positive, default=200, metavar="N", help="autoround: steps (default 200)")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write what was found: .html, or JSON")
    parser.add_argument("-t", "--threads", type=thread_count, metavar="N", help="default: the fast cores")


def run(args: argparse.Namespace) -> int:
    """Search or do what is asked for, write it, and print what was found."""
    import tempfile

    from cpuinfer import machine
    from cpuinfer.quantize import calibration, flow, work
    from cpuinfer.quantize.recipe import DATA_FREE

    _check(args)
    args.threads = args.threads or machine.default_threads().threads
    blueprint = _open(args.source)
    _check_places(args, blueprint.source.path)
    if (already := flow.is_quantised(blueprint)) is not None:
        remark(f"{blueprint.source.path.name}: its weights are {already} already: what that lost stays lost")
    text = calibration.read_text(args.calibration)
    args.windows = args.windows or flow.window_count(blueprint, args.length)
    model = flow.Model(blueprint=blueprint, text=text, count=args.windows, length=args.length, threads=args.threads)
    if args.method not in DATA_FREE:
        model.texts()  # refused now if it is too short, not after the methods that do without
    chosen = _target(args)
    if args.no_measure:
        recipes = _recipes(args, model, chosen)
        recipe = recipes(_labels(args, chosen, recipes)[0], args.method)
        with _bar() as bar:
            made = flow.quantise(model, recipe, args.out, bar)
        _write(args, model, chosen, recipe, made)
        return 0
    with tempfile.TemporaryDirectory(prefix="cpuinfer-") as folder, _judge(args, model, Path(folder)) as judge:
        search = _search(args, model, chosen, judge)
    if search.kept is not None:
        _write(args, model, chosen, search.kept.recipe, search.kept.made)
    else:
        work.delete_all(args.out)
    _print(args, blueprint, search)
    return 0 if search.kept is not None else GOAL_NOT_MET


def _check(args: argparse.Namespace) -> None:
    """Before hours of work, whether it can be written."""
    from cpuinfer.quantize import replacing

    replacing.refuse_existing(args.out, overwrite=args.overwrite)
    for path in (args.out, *([] if args.report is None else [args.report])):
        if not path.parent.is_dir():
            raise InvalidRequest(f"{path.parent}: no such folder")
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise InvalidRequest(f"{path.parent}: cannot be written")
    if args.report is not None and (args.report.is_dir() or args.report.resolve() == args.out.resolve()):
        raise InvalidRequest(f"--report {args.report}: is a folder, or OUT: expected a file of its own")
    if args.goal is not None and args.method != "auto":
        raise InvalidRequest(f"--goal: of --method auto, which chooses; {args.method} is one method")
    if args.bpw is not None and (args.bits is not None or args.goal is not None):
        raise InvalidRequest("--bpw: is one size, without --bits and --goal")
    if args.no_measure and args.method == "auto":
        raise InvalidRequest("--no-measure: auto chooses by what it measures: name a --method")


def _check_places(args: argparse.Namespace, source: Path) -> None:
    """Neither result may take the source's place."""
    own = source.resolve()
    for flag, path in (("OUT", args.out), ("--report", args.report)):
        if path is not None and (path.resolve() == own or own in path.resolve().parents):
            raise InvalidRequest(f"{path}: {flag} is the source, or inside it: expected another place")


def _open(spec: str) -> Blueprint:
    from cpuinfer import loader, store

    path = store.resolve(spec, progress=True)
    return loader.open_model(path, quantize="none" if path.is_dir() else None)


def _judge(args: argparse.Namespace, model: Model, folder: Path) -> AbstractContextManager[Judge]:
    from cpuinfer.evaluate import read_questions
    from cpuinfer.quantize.judge import Judge

    questions = read_questions(args.questions) if args.questions else ()
    progress("the source on held-out text ...")
    return Judge(model.blueprint, model.text.held_out, folder, threads=args.threads, questions=questions)


def _target(args: argparse.Namespace) -> Target:
    from cpuinfer.quantize import target

    options = {"bits": args.bits, "kind": args.type, "group": args.group, "symmetric": args.sym}
    chosen = target.choose(args.out, args.format, **options)
    return chosen if _is_searched(args) or chosen.is_fixed else target.usual(chosen, args.bits)


def _is_searched(args: argparse.Namespace) -> bool:
    """Whether several sizes are tried."""
    return args.method == "auto" and (args.goal is not None or args.bits is not None)


def _labels(args: argparse.Namespace, chosen: Target, recipes: Callable[[str, str], Recipe]) -> Sequence[str]:
    from cpuinfer.quantize import auto

    found = auto.fitting(chosen.labels, recipes, "opt-rtn" if args.method == "auto" else args.method)
    return found if _is_searched(args) else found[:1]


def _search(args: argparse.Namespace, model: Model, chosen: Target, judge: Judge) -> Search:
    from cpuinfer.quantize import auto

    methods: tuple[str, ...] = (args.method,)
    if args.method == "auto":
        methods = auto.THOROUGH if args.thorough else auto.METHODS
    recipes = _recipes(args, model, chosen)
    labels = _labels(args, chosen, recipes)
    with _bar() as bar:
        return auto.search(
            model,
            labels,
            recipes,
            judge,
            args.out,
            goal=args.goal,
            methods=methods,
            progress=bar,
            found=_tell,
        )


def _recipes(args: argparse.Namespace, model: Model, chosen: Target) -> Callable[[str, str], Recipe]:
    from cpuinfer.quantize import report, target
    from cpuinfer.quantize.recipe import CALIBRATED, Recipe

    text: Text = model.text
    facts = report.facts_of(model.blueprint, text.calibration, text.name)
    facts |= {"windows": f"{args.windows} of {args.length}", "threads": str(args.threads)}

    shared: list[dict[str, str]] = []

    @cache
    def recipe(label: str, method: str) -> Recipe:
        importance = method in CALIBRATED
        if args.bpw is not None:
            if not shared:
                shared.append(_share_out(args, model, chosen, label, facts))
            encodings, label = shared[0], f"{args.bpw:g} bpw"
        else:
            encodings = target.encodings(chosen, label, model.blueprint, args.keep, importance=importance)
        return Recipe(method=method, encodings=encodings, label=label, iterations=args.iterations, facts=facts)

    return recipe


def _share_out(
    args: argparse.Namespace, model: Model, chosen: Target, label: str, facts: dict[str, str]
) -> dict[str, str]:
    """The encodings of --bpw; what was measured for them stays beside OUT until that is written."""
    from cpuinfer.quantize import target
    from cpuinfer.quantize.budget import Budget, share
    from cpuinfer.quantize.recipe import named
    from cpuinfer.quantize.work import Work

    encodings = target.encodings(chosen, label, model.blueprint, args.keep, importance=True)
    budget = Budget(
        kind=chosen.kind,
        bits=args.bpw,
        chosen=encodings,
        fixed=frozenset(named(encodings, args.keep)),
        tensors=target.tensors_of(chosen, model.blueprint.source),
        facts=facts,
    )
    model.texts()
    with _bar() as bar:
        return share(budget, model, Work(args.out, budget.key), bar)


def _write(args: argparse.Namespace, model: Model, chosen: Target, recipe: Recipe, made: Made) -> None:
    from cpuinfer.quantize import target, work

    with progress_bar("bytes") as bar:
        target.write(
            args.out,
            chosen,
            recipe.label,
            model.blueprint.source,
            made[0].weights,
            overwrite=args.overwrite,
            threads=args.threads,
            progress=bar,
        )
    work.delete_all(args.out)


def _tell(candidate: Any) -> None:
    found = candidate.verdict.divergence
    remark(
        f"{candidate.recipe.label} {candidate.recipe.method}: {candidate.bits:.2f} bits, "
        f"KL {found.divergence.value:.4f}, perplexity x {found.perplexity_ratio.value:.4f}"
    )


def _print(args: argparse.Namespace, blueprint: Blueprint, search: Search) -> None:
    from cpuinfer.cli.quantize_tables import tables_of
    from cpuinfer.cli.tables import print_tables
    from cpuinfer.evaluate.records import write_record
    from cpuinfer.quantize import report

    found = report.report_of(blueprint, args.out, search, goal=args.goal, threads=args.threads)
    if args.report is not None and args.report.suffix == ".html":
        from cpuinfer.quantize.page import write_page

        write_page(found, args.report)
    elif args.report is not None:
        write_record(found, args.report)
    print_tables(*tables_of(found))
    if search.kept is None:
        print(f"cpuinfer: nothing meets the goal of {100 * args.goal:g}%: nothing is written", file=sys.stderr)


def _bar() -> AbstractContextManager[Callable[[str, float], None]]:
    progress("")
    return share_bar()


def _share(text: str) -> float:
    """A share of 1, as "1%" or "0.01"."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a share such as 1%")
    return value


def _bits(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 2 <= value <= 16:
        raise argparse.ArgumentTypeError(f"{text!r}, expected 2 to 16 bits, such as 4.25")
    return value


def _keep(text: str) -> list[tuple[str, str]]:
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(name and mark and value for name, mark, value in pairs):
        raise argparse.ArgumentTypeError(f"{text!r}, expected NAME=BITS or NAME=TYPE, such as lm_head=6")
    return [(name, value) for name, _, value in pairs]
