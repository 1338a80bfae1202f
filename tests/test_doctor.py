"""`cpuinfer doctor`: what is measured, what is predicted from it, and how both are shown."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cpuinfer import describe, machine
from cpuinfer.errors import InvalidRequest

_core = pytest.importorskip("cpuinfer._core")
doctor = pytest.importorskip("cpuinfer.cli.doctor")

GB = 10**9
KERNELS = [
    {
        "name": "avx512_vnni",
        "usable": False,
        "missing": "this processor lacks avx512",
        "selected": False,
        "tiles": False,
    },
    {"name": "avx2", "usable": True, "missing": "", "selected": True, "tiles": False},
    {"name": "scalar", "usable": True, "missing": "", "selected": False, "tiles": False},
]


def a_machine(**changes: Any) -> machine.Machine:
    known: dict[str, Any] = {
        "cpus": frozenset(range(16)),
        "affinity": frozenset({0, 1, 2, 3, 8}),
        "quota": 2.5,
        "physical_cores": 5,
        "performance_cores": 4,
        "numa_nodes": (machine.NumaNode(0, frozenset(range(16)), 64 << 30),),
        "caches": (machine.Cache(2, "unified", 1 << 20, 4), machine.Cache(3, "unified", 32 << 20, 1)),
        "memory": machine.Memory(64 << 30, 32 << 30),
    }
    return machine.Machine(**{**known, **changes})


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """A known machine that reads 10 GB/s a thread; gives back the sizes and threads measured."""
    calls: list[tuple[int, int]] = []

    def read_bandwidth(size: int, threads: int) -> float:
        calls.append((size, threads))
        return 10.0 * GB * threads

    monkeypatch.delenv("CPUINFER_ISA", raising=False)
    monkeypatch.setattr(_core, "read_bandwidth", read_bandwidth)
    monkeypatch.setattr(_core, "kernel_sets", lambda: KERNELS)
    monkeypatch.setattr(_core, "cpu_features", lambda: {"brand": "Some CPU", "usable": ["avx2"], "present": ["avx2"]})
    monkeypatch.setattr(machine, "inspect", a_machine)
    monkeypatch.setattr(machine, "default_threads", lambda: machine.ThreadChoice(2, "2: because"))
    return calls


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A file described as a model that reads 100 MB a token."""
    description = SimpleNamespace(
        name="a [bold]\x1b[2Jmodel", bytes_per_token=100_000_000, memory=SimpleNamespace(weights=120_000_000)
    )
    monkeypatch.setattr(describe, "describe", lambda _path, **_: description)
    path = tmp_path / "model.gguf"
    path.touch()
    return str(path)


def run(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    doctor.add_arguments(parser)
    return int(doctor.run(parser.parse_args(argv)))


def test_every_working_set_is_measured_with_one_thread_and_with_the_default(measured: list[tuple[int, int]]) -> None:
    doctor.examine()
    sizes = [512 << 10, 16 << 20, 92_000_000, 1 << 30]
    assert measured == [(size, threads) for size in sizes for threads in (1, 2)]


def test_working_sets_beyond_half_of_the_free_memory_are_left_out() -> None:
    poor = a_machine(memory=machine.Memory(2 << 30, 3 << 29))
    assert doctor.working_sets(poor) == [
        ("half of L2", 512 << 10),
        ("half of L3", 16 << 20),
        ("a small model", 92_000_000),
    ]


def test_unknown_caches_are_left_out() -> None:
    assert [label for label, _ in doctor.working_sets(a_machine(caches=()))] == ["a small model", "a larger model"]


def test_many_threads_get_a_share_that_can_be_measured(measured: list[tuple[int, int]]) -> None:
    list(doctor.measure_bandwidths(a_machine(), 512))
    assert all(size // threads >= 4096 for size, threads in measured)


def test_the_roof_is_the_bandwidth_at_the_models_size_over_its_bytes_per_token(
    measured: list[tuple[int, int]], model: str
) -> None:
    roof = doctor.examine(model).roof
    assert measured[-1] == (100_000_000, 2)
    assert roof.tokens_per_second == 20 * GB / 100_000_000
    assert roof.achieved is None


def test_a_model_larger_than_memory_is_predicted_from_as_much_as_fits(
    measured: list[tuple[int, int]], model: str
) -> None:
    poor = a_machine(memory=machine.Memory(1 << 30, 50_000_000))
    roof = doctor.predict(Path(model), poor, 2, achieved=False)
    assert measured == [(25_000_000, 2)]
    assert roof.tokens_per_second == 20 * GB / 100_000_000


def test_the_text_says_what_is_used_and_why(
    measured: list[tuple[int, int]], model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(model) == 0
    assert measured
    out = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    for expected in (
        "processor Some CPU",
        "cores 5 physical, 1 of them of a slower kind",
        "CPUs 16 online, affinity 0-3,8",
        "cgroup quota 2.5 CPUs",
        "L2 unified 4 x 1 MiB",
        "memory 64.0 GiB, available 32.0 GiB",
        "default threads 2: because",
        "avx512_vnni not usable: this processor lacks avx512",
        "avx2 used: the best this processor and system run",
        "scalar usable",
        "half of L3 16 MiB 10.0 20.0",
        "roof 200.0 tokens/s",
    ):
        assert expected in lines
    assert "\x1b" not in out
    assert "a [bold]" in out


def test_a_forced_kernel_set_is_named_as_the_reason(
    measured: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CPUINFER_ISA", "avx2")
    assert doctor.examine().kernels_reason == "set by CPUINFER_ISA=avx2"
    assert measured


def test_json_holds_the_same_report(
    measured: list[tuple[int, int]], model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(model, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["machine"]["affinity"] == [0, 1, 2, 3, 8]
    assert report["threads"] == {"threads": 2, "reason": "2: because"}
    assert report["kernels"] == KERNELS
    assert len(report["bandwidths"]) == 8 == len(measured) - 1
    assert report["roof"]["tokens_per_second"] == 200.0


def test_achieved_needs_a_model() -> None:
    with pytest.raises(InvalidRequest, match="--achieved: needs a MODEL"):
        run("--achieved")


def test_achieved_decodes_and_compares_with_the_roof(
    tiny_model: Path, measured: list[tuple[int, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    measured.clear()
    assert run(str(tiny_model), "--achieved", "--json") == 0
    roof = json.loads(capsys.readouterr().out)["roof"]
    assert roof["achieved"] > 0
    assert len(roof["shares"]) == 7 == measured.count(measured[-1])
    rate_of_the_roof = roof["achieved"] / roof["tokens_per_second"]
    assert roof["shares"][3] == pytest.approx(rate_of_the_roof)  # every reading here is 20 GB/s
    assert roof["bytes_per_token"] == describe.describe(tiny_model).bytes_per_token


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1 << 10, "1 KiB"), (92_000_000, "87.74 MiB"), (3 << 40, "3,072.0 GiB")],
)
def test_sizes_are_shown_with_binary_units(size: int, text: str) -> None:
    assert doctor._size(size) == text
