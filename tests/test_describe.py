"""What a description says of memory is what a session takes."""

from __future__ import annotations

import pytest

from cpuinfer import _core, describe, loader
from cpuinfer.loader import Blueprint
from published_models import write_published_llama
from tiny_gguf import write_tiny_llama

RANGES = 20
"""Parts of an arena that all workers share: each may be rounded up to a cache line of 64 bytes."""
TILES = [False, *(kernels["tiles"] for kernels in _core.kernel_sets() if kernels["usable"] and kernels["tiles"])]


@pytest.fixture(scope="module", params=["dense", "mixture"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Blueprint:
    folder = tmp_path_factory.mktemp("describe")
    if request.param == "mixture":
        write_published_llama(folder, "gptq", experts=4)
        return loader.open_model(folder)
    write_tiny_llama(folder / "model.gguf", seed=4, context=4096)
    return loader.open_model(folder / "model.gguf")


@pytest.mark.parametrize("tiles", TILES)
def test_scratch_is_what_the_arena_of_a_session_takes(model: Blueprint, tiles: bool) -> None:
    program = loader.load_program(model, threads=2)
    for threads in (1, 2, 64):
        for context in (512, 2048):
            session = _core.Session(
                program, threads=threads, batch=describe.BATCH, context=context, cache_pages=64, tiles=tiles
            )
            stated = describe.scratch_bytes(model, context, threads=threads, tiles=tiles)
            assert 0 <= session.arena_bytes - stated < 64 * RANGES, f"{threads} threads, {context} positions"


def test_partial_results_of_attention_grow_with_the_context_as_stated(model: Blueprint) -> None:
    program = loader.load_program(model, threads=2)
    for threads in (1, 2, 64):
        sizes = {"threads": threads, "batch": describe.BATCH, "cache_pages": 64}
        short, long = (_core.Session(program, context=context, **sizes).arena_bytes for context in (1024, 4096))
        pages = (4096 - 1024) // describe.PAGE_TOKENS
        assert abs(long - short - pages * describe.part_bytes(model.config, threads)) <= 64
