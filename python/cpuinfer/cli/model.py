"""Opening the model a command names, and the arguments that say how."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from cpuinfer.cli.terminal import progress

if TYPE_CHECKING:
    from cpuinfer.description import Description
    from cpuinfer.llm import LLM

MODEL_HELP = (
    "a GGUF file, a Hugging Face folder, hf:owner/repo[:file-or-quant], or a built-in name (default: smollm2-135m)"
)


def add_quantize(parser: argparse._ActionsContainer) -> None:
    """Declare --quantize."""
    parser.add_argument(
        "--quantize",
        choices=("int4", "int8", "nf4", "none"),
        help="what the float weights of a Hugging Face folder become (default: int4)",
    )


def add_kv_cache(parser: argparse._ActionsContainer) -> None:
    """Declare --kv-cache."""
    parser.add_argument(
        "--kv-cache",
        choices=("f16", "int8", "int4"),
        default="f16",
        help="how keys and values are kept: int8 takes half the memory, int4 a quarter (default: f16)",
    )


def add_deterministic(parser: argparse._ActionsContainer) -> None:
    """Declare --deterministic."""
    parser.add_argument(
        "--deterministic",
        action="store_true",
        help="the same bits on every kernel set; slower prompts with AMX, but answers are reused in further turns",
    )


def add_cache_packed(parser: argparse._ActionsContainer) -> None:
    """Declare --cache-packed."""
    parser.add_argument(
        "--cache-packed",
        action="store_true",
        help="keep the packed weights in the cache folder, and start from there the next time",
    )


def describe_model(
    spec: str | None, context: int | None = None, *, quantize: str | None = None, kv_cache: str = "f16"
) -> Description:
    """Find, if need be download, and read the header."""
    from cpuinfer import store
    from cpuinfer.describe import describe

    return describe(store.resolve(spec, progress=True), context, quantize=quantize, kv_cache=kv_cache)


def open_model(
    spec: str | None,
    *,
    threads: int | None,
    context: int | None,
    isa: str | None,
    quantize: str | None = None,
    cache_packed: bool = False,
    prefix_cache: int | None = None,
    kv_cache: str = "f16",
    deterministic: bool = False,
) -> LLM:
    """Find, if need be download, and load a model."""
    from cpuinfer import store
    from cpuinfer.llm import LLM

    path = store.resolve(spec, progress=True)
    progress(f"loading {path.name} ...")
    try:
        return LLM(
            path,
            threads=threads,
            context=context,
            isa=isa,
            quantize=quantize,
            cache_packed=cache_packed,
            prefix_cache=prefix_cache,
            kv_cache=kv_cache,
            deterministic=deterministic,
        )
    finally:
        progress("")
