"""Runs of `cpuinfer quantize`: killed ones end as others do, and files hold what was meant."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest

import killed_quantize
import tiny_folder
from cpuinfer import loader
from cpuinfer.quantize import flow, target
from cpuinfer.quantize.calibration import read_text
from cpuinfer.quantize.recipe import Recipe
from cpuinfer.quantize.work import folder_of
from cpuinfer.weight import Weight
from cpuinfer.weights import Source
from quantised_models import assert_holds, assert_runs, meant
from quantize_runs import FEW, TEXT, llama, mixtral, run
from test_cli import environment

Kill = tuple[str, int]
EVERY_KILL: list[Kill] = [("half", 1), ("after", 1), ("half", 2), ("after", 2), ("half", 3), ("after", 3), ("out", 3)]
"""Each of the next process, which goes on where the one before was killed."""
SOME_KILLS: list[Kill] = [("half", 4), ("out", 1)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama(tmp_path_factory.mktemp("source") / "tiny")


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mixtral(tmp_path_factory.mktemp("source") / "mixture")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def killed(kill: Kill, *words: object) -> int:
    when, number = kill
    command = [sys.executable, killed_quantize.__file__, when, str(number), *map(str, words)]
    return subprocess.run(command, check=False, env=environment(), timeout=120, stderr=subprocess.DEVNULL).returncode


def left(path: Path) -> list[str]:
    """What lies beside a target, hidden."""
    return sorted(each.name for each in path.parent.iterdir() if path.name in each.name and each != path)


@pytest.mark.parametrize(
    ("method", "kills"),
    [("gptq", EVERY_KILL), ("awq", SOME_KILLS), ("importance", SOME_KILLS), ("autoround", SOME_KILLS)],
)
def test_a_killed_run_that_is_started_again_writes_the_same_bytes(
    method: str, kills: list[Kill], folder: Path, text: Path, tmp_path: Path
) -> None:
    whole, out = tmp_path / "whole.gguf", tmp_path / "out.gguf"
    options = (folder, "--method", method, "--format", "gguf:Q4_0", "--no-measure", "--calibration", text, *FEW)
    assert run(*options, "-o", whole) == 0
    for kill in kills:
        assert killed(kill, *options, "-o", out) == -9
        assert not out.exists()
        assert folder_of(out).is_dir()
    assert run(*options, "-o", out) == 0
    assert out.read_bytes() == whole.read_bytes()
    assert left(out) == []


def test_finished_stages_are_not_done_again(
    folder: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cpuinfer.quantize import calibrated

    out, done = tmp_path / "out.gguf", []
    options = (folder, "--method", "gptq", "--format", "gguf:Q4_0", "--no-measure", "--calibration", text, *FEW)
    advance = calibrated.Calibrated._advance

    def watched(self: Any, graph: Any, stage: Any, *others: Any, **more: Any) -> Any:
        done.append(stage.name)
        if stage.name == "model.layers.1" and done.count(stage.name) == 1:
            raise KeyboardInterrupt
        return advance(self, graph, stage, *others, **more)

    monkeypatch.setattr(calibrated.Calibrated, "_advance", watched)
    assert run(*options, "-o", out) == 130
    assert not out.exists()
    assert run(*options, "-o", out) == 0
    first, again = done[:3], done[3:]
    assert first[1:] == ["model.layers.0", "model.layers.1"]
    assert again[0] == "model.layers.1"
    assert len(again) == 2


@pytest.mark.parametrize("changed", [("--windows", 2), ("--method", "awq"), ("text", 0)])
def test_other_options_do_not_take_over_what_a_killed_run_left(
    changed: tuple[str, object], folder: Path, text: Path, tmp_path: Path
) -> None:
    whole, out = tmp_path / "whole.gguf", tmp_path / "out.gguf"
    options: tuple[object, ...] = (folder, "--method", "gptq", "--format", "gguf:Q4_0", "--no-measure", *FEW)
    options = (*options, "--calibration", text)
    leave_work_of(folder, text, out)
    if changed[0] == "text":
        text.write_text(TEXT.replace("hall", "wall"))
    else:
        options = (*options, *changed)
    assert run(*options, "-o", out) == 0
    assert run(*options, "-o", whole) == 0
    assert out.read_bytes() == whole.read_bytes()
    assert left(out) == []


def leave_work_of(folder: Path, text: Path, out: Path, *, stages: int = 3) -> None:
    """What a run of GPTQ leaves that is stopped after some stages."""
    with pytest.MonkeyPatch.context() as patch:
        from cpuinfer.quantize.work import Work

        save = Work.save

        def stopping(self: Work, index: int, *others: Any) -> None:
            save(self, index, *others)
            if index + 1 == stages:
                raise KeyboardInterrupt

        patch.setattr(Work, "save", stopping)
        options = (folder, "--method", "gptq", "--format", "gguf:Q4_0", "--no-measure", *FEW)
        assert run(*options, "--calibration", text, "-o", out) == 130


def test_damaged_work_is_one_line_that_names_it(
    folder: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.gguf"
    leave_work_of(folder, text, out)
    options = (folder, "--method", "gptq", "--format", "gguf:Q4_0", "--no-measure", "--calibration", text, *FEW)
    (work,) = folder_of(out).iterdir()
    files = sorted(file for file in work.iterdir() if file.stat().st_size > 1000)
    assert files
    rng = np.random.default_rng(2)
    for file in files:
        sound = file.read_bytes()
        flipped = bytearray(sound)
        for at in rng.integers(0, len(sound), 200):
            flipped[at] ^= 0xFF
        for damaged in (sound[: len(sound) // 2], bytes(flipped), b"\x80\x04K\x01."):
            file.write_bytes(damaged)
            capsys.readouterr()
            assert run(*options, "-o", out) == 2, (file, len(damaged))
            found = capsys.readouterr()
            assert found.out == ""
            (line,) = found.err.splitlines()
            assert str(work) in line
            assert not out.exists()
        file.write_bytes(sound)
    assert run(*options, "-o", out) == 0


def made(folder: Path, text: Path, out: Path, form: str, method: str) -> Any:
    """(source, weights) of one recipe, its file written."""
    blueprint = loader.open_model(folder, quantize="none" if folder.is_dir() else None)
    model = flow.Model(blueprint=blueprint, text=read_text(text), count=3, length=48, threads=1)
    chosen = target.choose(out, form, bits=4, kind="int", group=32, symmetric=None)
    label = target.usual(chosen, 4).labels[0]
    encodings = target.encodings(chosen, label, blueprint, (), importance=True)
    recipe = Recipe(method=method, encodings=encodings, label=label, iterations=3)
    outcome, _ = flow.quantise(model, recipe, out, lambda _what, _share: None)
    target.write(out, chosen, label, blueprint.source, outcome.weights, overwrite=False, threads=2, progress=None)
    return blueprint.source, outcome.weights


def as_written(source: Source, weights: Mapping[str, Weight]) -> dict[str, Weight]:
    return {name: weight for name, weight in weights.items() if weight is not source.weights[name]}


@pytest.mark.parametrize(
    ("form", "method"),
    [
        *(("gguf:Q4_0", method) for method in ("rtn", "hqq", "awq", "gptq")),
        *(("gguf:Q5_K_M", method) for method in ("opt-rtn", "autoround")),
        *(("safetensors:gptq", method) for method in ("gptq", "awq")),
        *(("safetensors:compressed-tensors", method) for method in ("hqq", "importance")),
        *(("safetensors:cpuinfer", method) for method in ("rtn", "gptq")),
    ],
)
def test_what_is_written_has_and_computes_the_weights_made(
    form: str, method: str, folder: Path, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / ("out.gguf" if form.startswith("gguf") else "out")
    source, weights = made(folder, text, out, form, method)
    if form.startswith("gguf"):
        assert_dequantised(out, weights)
        return
    assert_runs(out, source, as_written(source, weights))
    assert_holds(out, source, as_written(source, weights))


def assert_dequantised(out: Path, weights: Mapping[str, Weight]) -> None:
    """The gguf package reads the values meant, to the bit."""
    found = {}
    for tensor in gguf.GGUFReader(out).tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        stem = tensor.name.removesuffix(".weight")
        layer, kind = (f"model.layers.{stem.split('.')[1]}.", stem.split(".")[2]) if "blk." in stem else ("", stem)
        if kind in ("attn_q", "attn_k"):
            values = tiny_folder._unpermuted(values, tiny_folder.HEADS if kind == "attn_q" else tiny_folder.KV_HEADS)
        found[layer + tiny_folder.NAMES[kind]] = values
    assert found.keys() == weights.keys()
    for name, values in found.items():
        np.testing.assert_array_equal(values, meant(weights[name]).astype(np.float32), err_msg=name)


@pytest.mark.parametrize(
    ("form", "method"),
    [("safetensors:gptq", "gptq"), ("safetensors:compressed-tensors", "awq"), ("safetensors:cpuinfer", "importance")],
)
def test_a_mixture_of_experts_is_written_with_its_router_in_fp32(
    form: str, method: str, mixture: Path, text: Path, tmp_path: Path
) -> None:
    source, weights = made(mixture, text, tmp_path / "out", form, method)
    for i in range(2):
        assert weights[f"model.layers.{i}.mlp.gate"].encoding == "F32"
        assert weights[f"model.layers.{i}.mlp.experts.down_proj"].encoding.startswith("int4")
    assert_runs(tmp_path / "out", source, as_written(source, weights))


def test_a_gguf_file_becomes_another(tiny_model: Path, text: Path, tmp_path: Path) -> None:
    source, weights = made(tiny_model, text, tmp_path / "out.gguf", "gguf:Q4_1", "awq")
    assert_holds(tmp_path / "out.gguf", source, as_written(source, weights))


@pytest.mark.parametrize(
    ("layers", "width", "inner", "expected"),
    [
        (12, 768, 3072, 128),  # 85M weights
        (24, 1024, 4096, 54),  # 400M: what the time allows
        (16, 2048, 8192, 24),  # 1.1G: 1.5 tokens for each of 8,192 inputs
        (32, 4096, 11008, 33),  # 6.5G: 1.5 tokens for each of 11,008 inputs
    ],
)
def test_large_models_have_fewer_stretches_of_text(layers: int, width: int, inner: int, expected: int) -> None:
    shapes = {f"{i}.{name}": shape for i in range(layers) for name, shape in [("qkvo", (4 * width, width))]}
    shapes |= {f"{i}.gate_up": (2 * inner, width) for i in range(layers)}
    shapes |= {f"{i}.down": (width, inner) for i in range(layers)} | {"norm": (width,)}
    weights = {name: SimpleNamespace(shape=shape) for name, shape in shapes.items()}
    graph = SimpleNamespace(used=shapes, ops=())
    blueprint: Any = SimpleNamespace(graph=graph, source=SimpleNamespace(weights=weights))
    found = flow.window_count(blueprint, 512)
    assert found == expected
    assert flow.window_count(blueprint, 256) >= 2 * found - 1 or found == flow.WINDOWS


@pytest.mark.parametrize("method", ["importance", "gptq", "opt-rtn"])
def test_what_is_kept_is_rounded_once(
    method: str, folder: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The judge and the writer take what was kept, and the file is that of a run without a judge."""
    from cpuinfer.quantize.blocks import BlockScheme

    rows: list[int] = []
    encode = BlockScheme.encode

    def counting(self: BlockScheme, w: Any, *others: Any, **more: Any) -> Any:
        rows.append(len(w))
        return encode(self, w, *others, **more)

    monkeypatch.setattr(BlockScheme, "encode", counting)
    options = (folder, "--method", method, "--format", "gguf:Q4_0", "--calibration", text, *FEW)
    assert run(*options, "--no-measure", "-o", tmp_path / "plain.gguf") == 0
    once = sum(rows)
    rows.clear()
    assert run(*options, "-o", tmp_path / "judged.gguf") == 0
    if method != "gptq":  # whose table is rounded as it is read
        assert sum(rows) == once
    assert (tmp_path / "judged.gguf").read_bytes() == (tmp_path / "plain.gguf").read_bytes()


def test_importance_is_measured_once_for_all_sizes(
    folder: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cpuinfer.quantize import measured

    stages: list[str] = []
    measure, mean_squares = measured.Inputs._measure, measured.Inputs.mean_squares
    asked: list[object] = []

    def counting(self: Any, stage: Any, *others: Any, **more: Any) -> Any:
        stages.append(stage.name)
        return measure(self, stage, *others, **more)

    def asking(self: Any, *others: Any) -> Any:
        asked.append(others)
        return mean_squares(self, *others)

    monkeypatch.setattr(measured.Inputs, "_measure", counting)
    monkeypatch.setattr(measured.Inputs, "mean_squares", asking)
    monkeypatch.setattr("cpuinfer.quantize.auto.METHODS", ("importance",))
    options = (folder, "--goal", "0.001%", "--format", "gguf", "--bits", 4, "--calibration", text, *FEW)
    assert run(*options, "-o", tmp_path / "out.gguf") in (0, 3)
    assert len(asked) > 1
    assert stages == ["model.embed_tokens", "model.layers.0", "model.layers.1", "model.embed_tokens"]


def test_threads_change_no_bit(folder: Path, text: Path, tmp_path: Path) -> None:
    options = (folder, "--method", "importance", "--format", "gguf:Q4_K_M", "--no-measure", "--calibration", text, *FEW)
    assert run(*options, "-o", tmp_path / "one.gguf", "-t", 1) == 0
    assert run(*options, "-o", tmp_path / "two.gguf", "-t", 2) == 0
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "two.gguf").read_bytes()


@pytest.mark.parametrize("method", ["rtn", "importance"])
def test_rows_come_in_any_stretches(method: str, folder: Path, text: Path, tmp_path: Path) -> None:
    blueprint = loader.open_model(folder, quantize="none")
    model = flow.Model(blueprint=blueprint, text=read_text(text), count=3, length=48, threads=1)
    encodings = target.encodings(target.Target("gguf", ("Q4_0",)), "Q4_0", blueprint, (), importance=True)
    recipe = Recipe(method=method, encodings=encodings, label="Q4_0")
    outcome, _ = flow.quantise(model, recipe, tmp_path / "out", lambda _what, _share: None)
    for name, weight in outcome.weights.items():
        if len(weight.shape) == 2:
            whole = weight.rows(0, weight.shape[0]).to_float(np.float64)
            assert np.array_equal(weight.rows(5, 21).to_float(np.float64), whole[5:21]), name
