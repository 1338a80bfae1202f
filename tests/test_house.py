"""The house keeps its shape: imports point one way, files stay small, importing cpuinfer costs nothing."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cpuinfer import describe, machine, reference, weight
from cpuinfer.formats import canonical

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "python" / "cpuinfer"
CSRC = ROOT / "csrc"

# Lowest first.  A module imports from lines above its own, or from its own part; a new part needs a place here.
PYTHON_LAYERS = (
    {"errors", "description", "results", "_core", "__init__"},
    {"config", "machine", "sampling", "store", "template_bounds"},
    {"template_calls"},
    {"template_sandbox"},
    {"ops", "checkpoint", "chat", "rope", "tokenizer"},
    {"graph"},
    {"models", "formats", "program", "reference", "safetensors_folder", "streaming"},
    {"weight", "profiling"},
    {"published", "request"},
    {"weights"},
    {"naming"},
    {"gguf", "huggingface"},
    {"loader"},
    {"describe"},
    {"engine"},
    {"llm"},
    {"server", "evaluate"},
    {"quantize"},
    {"cli"},
    {"__main__"},
)
WITHOUT_EXTENSION = ("ops", "graph", "models", "formats", "reference")
CSRC_LAYERS = {
    "core": set(),
    "checkpoint": {"core"},
    "tokenizer": {"core"},
    "kernels": {"core"},
    "quantize": {"core", "kernels"},
    "load": {"core", "checkpoint", "kernels"},
    "plan": {"core", "kernels"},
    "runtime": {"core", "kernels", "plan"},
    "bindings": {"core", "checkpoint", "tokenizer", "kernels", "quantize", "load", "plan", "runtime"},
}
MOST_LINES = 400

SOURCES = sorted(PACKAGE.rglob("*.py"))
NATIVE = sorted(path for path in CSRC.rglob("*") if path.suffix in {".cpp", ".h"})


def part(path: Path) -> str:
    """The module or folder of the package a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def layer(name: str) -> int:
    return next((number for number, names in enumerate(PYTHON_LAYERS) if name in names), -1)


def imported_parts(path: Path) -> Iterator[tuple[int, str]]:
    """Line and part of every import of our own, those inside functions and for types included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import; name the module in full"
            module = node.module or ""
            names = [f"cpuinfer.{alias.name}" for alias in node.names] if module == "cpuinfer" else [module]
        for name in names:
            head, _, rest = name.partition(".")
            if head == "cpuinfer" and rest:
                # Names such as `LLM`, which the package itself offers, belong to the front door.
                first = rest.split(".")[0]
                yield node.lineno, first if (PACKAGE / first).is_dir() or layer(first) >= 0 else "llm"


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    start = f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r})\n"
    return subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    own = part(path)
    if own == "__init__":
        return  # the public names, which it imports when they are used
    assert layer(own) >= 0, f"{own}: has no place in PYTHON_LAYERS"
    upward = [
        f"{path}:{line}: {own} imports {name}"
        for line, name in imported_parts(path)
        if name != own and layer(name) >= layer(own)
    ]
    assert not upward, upward


@pytest.mark.parametrize("path", NATIVE, ids=lambda path: str(path.relative_to(CSRC)))
def test_includes_point_down(path: Path) -> None:
    own = path.relative_to(CSRC).parts[0]
    text = path.read_text(encoding="utf-8")
    included = set(re.findall(r'^\s*#\s*include\s+"([^"/]+)/', text, re.MULTILINE))
    assert included <= CSRC_LAYERS[own] | {own}
    assert own == "bindings" or not re.search(r"#\s*include\s+[<\"](pybind11|Python\.h)", text)


@pytest.mark.parametrize("path", [*SOURCES, *NATIVE], ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_small(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < MOST_LINES


@pytest.mark.parametrize(
    ("header", "constant", "value"),
    [
        ("kernels/kernels.h", "kLanes", weight.PANEL),
        ("kernels/kernels.h", "kGroup", canonical.GROUP),
        ("kernels/kernels.h", "kGroup", reference.GROUP),
        ("kernels/kernels.h", "kPageTokens", describe.PAGE_TOKENS),
        ("kernels/kernels.h", "kSegment", describe.SEGMENT),
        ("kernels/kernels.h", "kGroup", describe.GROUP),
        ("kernels/kernels.h", "kHalf", describe.HALF),
        ("kernels/kernels.h", "kTileRows", describe.TILE_ROWS),
        ("plan/plan.h", "kHeadRows", describe.HEAD_ROWS),
        ("plan/plan.h", "kSharedItems", describe.SHARED_ITEMS),
        ("core/worker_team.h", "kMostWorkers", machine.MOST_THREADS),
    ],
)
def test_a_number_both_languages_name_is_the_same(header: str, constant: str, value: int) -> None:
    found = re.findall(rf"\b{constant} = (\d+);", (CSRC / header).read_text(encoding="utf-8"))
    assert found == [str(value)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_is_checked_with_assert(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]


@pytest.mark.parametrize("name", WITHOUT_EXTENSION)
def test_descriptions_of_models_import_without_the_extension(name: str) -> None:
    blocked = f"""
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name == "cpuinfer._core":
            raise ImportError("the extension was asked for")
sys.meta_path.insert(0, Blocker())
import importlib, pkgutil
module = importlib.import_module("cpuinfer.{name}")
for found in pkgutil.iter_modules(getattr(module, "__path__", []), module.__name__ + "."):
    importlib.import_module(found.name)
"""
    run = run_python(blocked)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("name", ["cpuinfer", "cpuinfer.machine", "cpuinfer.cli"])
def test_importing_the_front_costs_no_numpy(name: str) -> None:
    if name != "cpuinfer" and not (PACKAGE / name.partition(".")[2] / "__init__.py").exists():
        pytest.skip(f"{name} is not there")
    run = run_python(f"import {name}; print('numpy' in sys.modules)")
    assert run.stdout == "False\n", run.stderr
