"""`cpuinfer run`: answer one prompt, or chat."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from cpuinfer.cli.answer import Answer, explain_length, print_stats, receive
from cpuinfer.cli.model import MODEL_HELP, add_cache_packed, add_deterministic, add_kv_cache, add_quantize, open_model
from cpuinfer.cli.parameters import kernel_set, positive, sampling, thread_count
from cpuinfer.cli.terminal import remark
from cpuinfer.errors import InvalidRequest
from cpuinfer.sampling import ORDERS, STAGES, SamplingParams

if TYPE_CHECKING:
    from cpuinfer.llm import LLM
    from cpuinfer.results import Chunk

HELP = "answer a prompt, or chat when there is none"

INTERRUPTED = 130

EPILOG = """\
A lone argument without -m is the model if it names one (a file, a folder, hf:owner/repo, a built-in
name), else the prompt.
Piped standard input is the prompt, or follows it after a blank line; its final newlines are dropped.
Without a prompt, on a terminal, this is a chat: /? there lists its commands.

examples:
  cpuinfer run "Why is the sky blue?"
  cpuinfer run model.gguf "Why is the sky blue?" --temp 0 -n 64 --stats
  cpuinfer run -m hf:owner/repo:Q4_0
  cpuinfer run "Summarise this:" < notes.txt
"""

# Flags, field of SamplingParams, type, help.
_SAMPLING: tuple[tuple[tuple[str, ...], str, Callable[[str], object], str], ...] = (
    (("-n", "--max-tokens", "--n-predict"), "max_tokens", int, "most tokens to generate (default: until it ends)"),
    (("-s", "--seed"), "seed", int, "of the random numbers (default: drawn, shown by --json)"),
    (("--temp", "--temperature"), "temperature", float, "0 is greedy"),
    (("--top-k",), "top_k", int, "keep the K likeliest tokens; 0 keeps all"),
    (("--top-p",), "top_p", float, "keep the likeliest tokens that together reach P; 1 keeps all"),
    (("--min-p",), "min_p", float, "keep tokens of at least P times the likeliest; 0 keeps all"),
    (("--repeat-penalty",), "repetition_penalty", float, "divides the logits of tokens seen before; 1 is none"),
    (("--presence-penalty",), "presence_penalty", float, "subtracted from tokens already generated"),
    (("--frequency-penalty",), "frequency_penalty", float, "subtracted for each time a token was generated"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.usage = "cpuinfer run [MODEL] [PROMPT] [OPTIONS]"
    parser.epilog = EPILOG
    parser.add_argument("first", metavar="MODEL", nargs="?", help=MODEL_HELP)
    parser.add_argument("second", metavar="PROMPT", nargs="?", help="what to answer")
    parser.add_argument("-m", "--model", help="the model, so that a lone argument is the prompt")
    parser.add_argument("-p", "--prompt", help="the prompt, so that a lone argument is the model")
    parser.add_argument("--system", metavar="TEXT", help="the system message")
    parser.add_argument("--raw", action="store_true", help="continue the prompt itself, without the chat template")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end instead of text")
    parser.add_argument("--stats", action="store_true", help="print speed and memory on standard error")
    machine = parser.add_argument_group("machine")
    machine.add_argument(
        "-c", "--context", "--ctx-size", type=positive, metavar="N", help="most tokens of prompt and answer"
    )
    machine.add_argument("-t", "--threads", type=thread_count, metavar="N", help="default: the fast cores")
    machine.add_argument(
        "--isa", type=kernel_set, metavar="NAME", help="a kernel set (default: the best this machine runs)"
    )
    add_quantize(machine)
    add_kv_cache(machine)
    add_deterministic(machine)
    add_cache_packed(machine)
    group = parser.add_argument_group("sampling")
    for flags, name, kind, text in _SAMPLING:
        default = getattr(SamplingParams(), name)
        shown = text if default is None else f"{text} (default: {default})"
        metavar = "N" if kind is int else "X"
        group.add_argument(*flags, dest=name, type=sampling(name, kind), metavar=metavar, help=shown)
    group.add_argument(
        "--stop", type=sampling("stop", str), action="append", metavar="TEXT", help="ends the answer; may be repeated"
    )
    group.add_argument(
        "--sampler-order",
        dest="order",
        type=sampling("order", _order),
        metavar="ORDER",
        help=f"{', '.join(ORDERS)}, or stages joined by commas: {','.join(STAGES)}",
    )


def _order(text: str) -> str | list[str]:
    return text if text in ORDERS else text.split(",")


def run(args: argparse.Namespace) -> int:
    """Answer the prompt, or chat."""
    params = sampling_params(args)
    if args.raw and args.system is not None:
        raise InvalidRequest("--system has no place with --raw, which continues the prompt as it is")
    model, prompt = choose_model_and_prompt(args)
    prompt = _with_piped_input(model, prompt)
    if prompt is None:
        _check_can_chat(args)
    for text in (prompt, args.system):
        _check_text(text)
    with open_model(
        model,
        threads=args.threads,
        context=args.context,
        isa=args.isa,
        quantize=args.quantize,
        cache_packed=args.cache_packed,
        kv_cache=args.kv_cache,
        deterministic=args.deterministic,
    ) as llm:
        if llm.context > llm.config.context:
            remark(f"a context of {llm.context}: the model was trained for {llm.config.context}")
        if prompt is None:
            from cpuinfer.cli import repl

            return repl.chat(llm, params, system=args.system, stats=args.stats)
        return _answer_once(llm, prompt, params, args)


def sampling_params(args: argparse.Namespace) -> SamplingParams:
    """What the flags ask for; defaults stay those of SamplingParams."""
    names = [*(name for _, name, _, _ in _SAMPLING), "stop", "order"]
    return SamplingParams(**{name: getattr(args, name) for name in names if getattr(args, name) is not None})


def choose_model_and_prompt(args: argparse.Namespace) -> tuple[str | None, str | None]:
    """(model, prompt) from the flags and the positional arguments."""
    model, prompt = args.model, args.prompt
    words = [word for word in (args.first, args.second) if word is not None]
    if model is None and words and (len(words) == 2 or prompt is not None or _is_spec(words[0])):
        model = words.pop(0)
    if prompt is None and words:
        prompt = words.pop(0)
    if words:
        raise InvalidRequest(f"{words[0]!r} is one argument too many: there is a model and a prompt already")
    if prompt == "":
        raise InvalidRequest("the prompt is empty")
    return model, prompt


def _is_spec(text: str) -> bool:
    from cpuinfer import store

    return store.is_spec(text)


def _with_piped_input(model: str | None, prompt: str | None) -> str | None:
    if sys.stdin is None or sys.stdin.isatty():
        return prompt
    try:
        piped = sys.stdin.buffer.read().decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"standard input: byte {error.start} is not UTF-8 text") from None
    if prompt is None and not piped:
        from cpuinfer import store

        if model is not None:
            store.is_local(model)  # raises where the word is no model, most likely a file that does not exist
        raise InvalidRequest("no prompt: standard input is empty, give one as an argument")
    return "\n\n".join(part for part in (prompt, piped) if part)


def _check_can_chat(args: argparse.Namespace) -> None:
    for flag in ("json", "raw"):
        if getattr(args, flag):
            raise InvalidRequest(f"--{flag} needs a prompt")
    if sys.stdin is None or not sys.stdout.isatty():
        raise InvalidRequest("no prompt, and no terminal to chat on")


def _check_text(text: str | None) -> None:
    """Refuse what the shell passed on of bytes that are not UTF-8."""
    if text is not None and any("\ud800" <= character <= "\udfff" for character in text):
        raise InvalidRequest("the prompt is not UTF-8 text")


def _answer_once(llm: LLM, prompt: str, params: SamplingParams, args: argparse.Namespace) -> int:
    def chunks() -> Iterator[Chunk]:
        if args.raw:
            return llm.stream(prompt, params)
        system = [] if args.system is None else [{"role": "system", "content": args.system}]
        return llm.stream_chat([*system, {"role": "user", "content": prompt}], params)

    answer = receive(llm, chunks, None if args.json else sys.stdout)
    if args.json:
        print(json.dumps(_as_json(llm, answer), ensure_ascii=False))
    else:
        explain_length(answer, params, llm.context)
    if args.stats:
        print_stats(answer.timings)
    return INTERRUPTED if answer.finish_reason == "cancelled" else 0


def _as_json(llm: LLM, answer: Answer) -> dict[str, object]:
    timings = answer.timings
    return {
        "model": str(llm.path),
        "text": answer.text,
        "token_ids": answer.token_ids,
        "finish_reason": answer.finish_reason,
        "seed": answer.seed,
        "prompt_tokens": timings and timings.prompt_tokens,
        "timings": timings
        and {**asdict(timings), "prompt_rate": timings.prompt_rate, "generate_rate": timings.generate_rate},
    }
