"""A start imports and holds no more than it needs: which modules each way in takes, and the memory while loading."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cpuinfer.errors import CheckpointError, InvalidRequest
from tiny_gguf import write_tiny_llama

SLOW = ("numpy", "jinja2", "rich", "prompt_toolkit", "sentencepiece", "huggingface_hub", "safetensors", "asyncio")
OFTEN_TAKEN_ALONG = ("concurrent.futures", "logging", "subprocess", "tempfile", "zipfile", "secrets")
"""Modules whose import shows in the time of a start."""
NATIVE = ("cpuinfer._core", "tokenizers")
"""Those that running a model needs, and nothing else."""


def imported(code: str, *arguments: str) -> set[str]:
    """The modules there are after this code."""
    shown = f"{code}\nimport sys; print(*sys.modules, file=sys.stderr)"
    command = [sys.executable, "-c", shown, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
    return set(run.stderr.splitlines()[-1].split())


@pytest.mark.parametrize(
    "code",
    [
        "import cpuinfer",
        "from cpuinfer.cli import main; main(['--version'])",
        "from cpuinfer.cli import main; main([])",
    ],
    ids=["import", "version", "help"],
)
def test_without_a_model_nothing_is_imported_for_one(code: str) -> None:
    found = imported(code)
    assert not found & {*SLOW, *OFTEN_TAKEN_ALONG, *NATIVE, "cpuinfer.llm"}


def test_the_front_door_by_itself_imports_nothing_slow() -> None:
    assert not imported("import cpuinfer; cpuinfer.LLM") & {*SLOW, *OFTEN_TAKEN_ALONG, *NATIVE}


@pytest.mark.parametrize(
    ("flags", "allowed"), [(["--raw"], set()), ([], {"jinja2", "asyncio", "concurrent.futures", "logging", "tempfile"})]
)
def test_a_run_imports_what_its_prompt_needs(tiny_model: Path, flags: list[str], allowed: set[str]) -> None:
    code = "import sys; from cpuinfer.cli import main; main(['run', *sys.argv[1:], '-p', 'The', '-n', '1'])"
    found = imported(code, "-m", str(tiny_model), *flags)
    assert "cpuinfer._core" in found
    assert not (found & {*SLOW, *OFTEN_TAKEN_ALONG}) - allowed


PEAK = """
import pathlib, re, sys
from cpuinfer import LLM

def resident(name):
    return int(re.search(rf"{name}:\\s*(\\d+) kB", pathlib.Path("/proc/self/status").read_text()).group(1)) * 1024

LLM(sys.argv[2], context=64, threads=2).close()  # what is imported, and the threads' stacks
before = resident("VmRSS")
llm = LLM(sys.argv[1], context=64, threads=2)
print(resident("VmHWM") - before)
"""


def test_loading_a_gguf_file_takes_its_size_and_little_more(tmp_path: Path, tiny_model: Path) -> None:
    path = write_tiny_llama(tmp_path / "wide.gguf", hidden=2048, heads=16, feed_forward=8192, layers=4)
    run = subprocess.run(
        [sys.executable, "-c", PEAK, str(path), str(tiny_model)], capture_output=True, text=True, check=True
    )
    size = path.stat().st_size
    assert size > 100e6
    assert int(run.stdout) <= 1.05 * size + 40e6


def test_packing_that_meets_a_fault_says_where(tmp_path: Path) -> None:
    path = write_tiny_llama(tmp_path / "cut.gguf", hidden=512, heads=8, feed_forward=2048)
    code = """
import os, sys
from cpuinfer import loader
from cpuinfer.errors import CheckpointError
blueprint = loader.open_model(sys.argv[1])
os.truncate(sys.argv[1], os.path.getsize(sys.argv[1]) // 2)
try:
    loader.load_program(blueprint, threads=2)
except CheckpointError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert str(path) in run.stdout
    assert "the file shrank" in run.stdout


@pytest.mark.parametrize("encoding", ["Q4_0", "Q4_1", "Q8_0", "F16", "BF16", "F32"])
def test_the_core_packs_a_tensor_as_its_rows_do(tmp_path: Path, encoding: str) -> None:
    from cpuinfer import _core, loader

    path = write_tiny_llama(tmp_path / "tiny.gguf", encoding=encoding)
    blueprint = loader.open_model(path)
    for name in ("model.layers.1.self_attn.k_proj", "model.layers.1.mlp.down_proj", "model.embed_tokens"):
        weight = blueprint.tensor(name)
        pool = _core.BufferPool(4 * weight.packed_bytes)
        ours, rows = weight.new_matrix(pool), weight.new_matrix(pool)
        reader = weight.rows.checkpoint.reader  # type: ignore[attr-defined]
        _core.Packing([(reader, weight.name, ours)], 3).wait()
        weight.rows(0, weight.shape[0]).pack(rows, 0)
        for row in range(weight.shape[0]):
            np.testing.assert_array_equal(ours.read_row(row), rows.read_row(row))


def test_a_job_that_does_not_fit_its_matrix_is_refused(tiny_model: Path) -> None:
    from cpuinfer import _core, loader

    weight = loader.open_model(tiny_model).tensor("model.layers.0.mlp.up_proj")
    reader = weight.rows.checkpoint.reader  # type: ignore[attr-defined]
    pool = _core.BufferPool(4 * weight.packed_bytes)
    rows, width = weight.shape
    shorter = replace(weight, shape=(rows - 1, width)).new_matrix(pool)
    for other in (shorter, _core.PackedMatrix("f32", rows, width)):
        with pytest.raises(InvalidRequest, match=rf"{rows} rows of \d+ bytes, expected \d+ of \d+ for a matrix of"):
            _core.Packing([(reader, weight.name, other)], 2)
    with pytest.raises(CheckpointError, match="tensor none: missing"):
        _core.Packing([(reader, "none", weight.new_matrix(pool))], 2)
