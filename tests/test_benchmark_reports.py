"""Tables, plots and reports of benchmarks say what was measured."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import comparison
import kernels
import machine_limits
import plots
import report
import startup
import tables
from machine_limits import Limits
from measurement import Sample, Task
from model_files import Model
from runtimes import Measured, Runtime
from startup import Start

PNG = b"\x89PNG\r\n\x1a\n"
LIMITS = Limits(2, 50e9, {"avx2": 100e9, "amx_int8": 4000e9})
MODEL = Model("m", Path("m.gguf"), file_bytes=600_000_000, read_bytes=500_000_000, weights=1_000_000_000)


def measured(runtime: str, sample: Sample | None, task: Task, **values: object) -> Measured:
    found = Measured("m", runtime, (task,), 2, [sample])
    for name, value in values.items():
        setattr(found, name, value)
    return found


def test_a_percentile_is_the_least_value_that_so_many_do_not_exceed() -> None:
    values = [float(i) for i in range(100, 0, -1)]
    assert [tables.percentile(values, share) for share in (0.9, 0.99, 1.0, 0.0)] == [90.0, 99.0, 100.0, 1.0]
    assert tables.percentile([3.0], 0.9) == 3.0
    assert tables.percentile([1.0, 2.0, 3.0, 4.0], 0.75) == 3.0


def test_spread_is_a_share_of_the_median() -> None:
    assert tables.spread([1.0, 1.25, 1.5]) == "40%"
    assert tables.spread([1.0]) == tables.UNKNOWN
    assert tables.quartiles([1.0, 2.0, 3.0, 4.0]) == "80%"


def test_rows_of_answers_hold_others_against_the_first_runtime_and_all_against_the_bandwidth() -> None:
    task = comparison.ANSWER
    ours = Sample([0.25, 0.125, 0.375], [0.02] * 9 + [0.04], [1.5, 2.5])
    theirs = Sample([1.0], [0.05] * 4)
    rows = tables.answers(
        MODEL,
        [
            measured("cpuinfer", ours, task, peaks=[10**6, 2 * 10**6]),
            measured("other", theirs, task, peaks=[10**6], single_steps=False),
            measured("third", None, task, failure="exit code 1: no such architecture"),
        ],
        task,
        LIMITS,
    )
    one = ["m", "cpuinfer", "250.0", "20.00", "20.00", "40.00", "50.0", "0%", "1.00", "50%", "2.00", "2"]
    two = ["m", "other", "1,000.0", "50.00", "-", "-", "20.0", "0%", "2.50", "20%", "not readable", "1"]
    assert rows == [one, two, ["m", "third", "exit code 1: no such architecture", *[""] * 9]]
    assert {len(row) for row in rows} == {len(tables.ANSWERS)}


def test_rows_of_prompts_hold_each_against_the_peak_of_its_instruction_set() -> None:
    task = Task(500, 0)
    rows = tables.prompts(
        MODEL,
        [
            measured("cpuinfer", Sample([1.0, 1.0]), task, starts=[0.5, 1.5]),
            measured("other", Sample([20.0]), task),
        ],
        task,
        LIMITS,
        {"cpuinfer": None, "other": "avx2"},
    )
    assert rows == [
        ["m", "cpuinfer", "500", "0%", "1.00", "1,000", "25.0% of amx_int8", "1.00"],
        ["m", "other", "25", "-", "20.00", "50", "50.0% of avx2", "-"],
    ]
    assert {len(row) for row in rows} == {len(tables.PROMPTS)}


def test_a_table_is_markdown_whose_numbers_stand_to_the_right() -> None:
    lines = tables.table(("model", "runtime", "rate"), [["m", "r", "1"]]).splitlines()
    assert lines == ["| model | runtime | rate |", "|---|---|--:|", "| m | r | 1 |"]


def test_limits_are_read_from_what_the_program_prints() -> None:
    assert machine_limits.parse("avx2 100\namx_int8 4000\n") == {"avx2": 100.0, "amx_int8": 4000.0}
    assert "50.0 GB/s" in report.limits_text(LIMITS) and "amx_int8 4,000 GOP/s" in report.limits_text(LIMITS)
    assert Limits(1, 1.0, {}).fastest == ""


def test_each_kernel_set_is_held_against_the_peak_of_its_instructions() -> None:
    lines = [
        ["read", "int4", "1", "1000000", "0", "0.0001", "0"],
        ["amx", "int4", "512", "1000000", "2000000", "0.002", "0.0002"],
        ["avx2", "int4", "1", "1000000", "2000000", "0.0002", "0"],
    ]
    _, _, tiles, vectors, *_ = kernels.table(lines, {"amx_bf16": 2048e9, "avx2": 100e9}).splitlines()
    assert tiles == "| amx | int4 | 1.00 | 512 | 0.5 | 5% | 1024.0 | 50% | 10% |"
    assert vectors == "| avx2 | int4 | 1.00 | 1 | 5.0 | 50% | 20.0 | 20% | 0% |"


def test_threads_are_doubled_up_to_the_most() -> None:
    assert [comparison.thread_counts(most) for most in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]


def test_start_up_is_that_of_whole_processes(tmp_path: Path) -> None:
    found = startup.measure({"nothing": [sys.executable, "-c", "pass"]}, 2, tmp_path)
    assert len(found["nothing"]) == 2
    assert all(min(start.wall, start.processor) > 0 and start.peak > 1e6 for start in found["nothing"])
    starts = [Start(1.0, 0.5, 10**7), Start(1.5, 0.75, 2 * 10**7), Start(1.25, 2.0, 10**7)]
    assert startup.rows({"nothing": starts}) == [["nothing", "1.250", "40%", "0.750", "20", "3"]]
    with pytest.raises(SystemExit, match="exit code 3"):
        startup.run([sys.executable, "-c", "raise SystemExit(3)"], tmp_path)
    assert "`cpuinfer run m -n 1 --raw -p x`" in startup.commands([MODEL])


@pytest.mark.parametrize("peaks", [LIMITS.peaks, {}])
def test_a_roofline_is_a_picture(peaks: dict[str, float], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    points = [plots.Point("a", "m decoding", 4.0, 1e11), plots.Point("b", "m prompt", 2000.0, 1e12)]
    plots.roofline(tmp_path / "roofline.png", Limits(2, 50e9, peaks), points)
    assert (tmp_path / "roofline.png").read_bytes().startswith(PNG)


def test_a_report_names_what_was_measured_and_shows_pictures_that_are_there(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    results = comparison.Results()
    names = ("cpuinfer", "other")
    for name in names:
        answer, prompt = Sample([0.1], [0.01] * 31), Sample([1.0])
        both = (comparison.ANSWER, comparison.PROMPT)
        row = Measured("m", name, both, 2, [answer, prompt], [10**6], [0.5], f"{name} says")
        results.table.setdefault("m", []).append(row)
        for threads in (1, 2):
            results.threads.append(Measured("m", name, comparison.THREADS, threads, [Sample([1.0]), answer]))
        sweep = [Sample([0.1], [0.01] * 16) for _ in comparison.LENGTHS]
        results.lengths.append(Measured("m", name, comparison.LENGTHS, 2, [*sweep]))
        sweep = [Sample([0.1], [0.01] * 16) if name == "cpuinfer" else None for _ in comparison.BATCHES]
        results.batches.append(Measured("m", name, comparison.BATCHES, 2, [*sweep]))
        results.quiet.append(measured(name, Sample([0.1], [0.01] * 24), comparison.STEPS))
        results.busy.append(measured(name, Sample([0.1], [0.02] * 24), comparison.STEPS))
    results.startup["`cpuinfer --version`"] = [Start(0.1, 0.1, 10**7), Start(0.2, 0.1, 10**7)]
    cast = [Runtime(name, (), built=f"{name} built") for name in names]
    text = report.write(tmp_path, "# A title", results, {"m": MODEL}, runtimes=cast, limits=LIMITS).read_text()
    pictures = re.findall(r"\]\((.*?)\)", text)
    assert pictures == ["roofline.png", "threads.png", "prompt.png", "depth.png", "sequences.png"]
    assert all((tmp_path / picture).read_bytes().startswith(PNG) for picture in pictures)
    assert "| m | other | 100.0 | 50.0 | 50% |" in text
    assert "- other: other built. It says: `other says`." in text
    assert json.loads((tmp_path / "measurements.json").read_text())["limits"]["bandwidth"] == 50e9


def test_a_busy_table_says_why_a_rate_is_missing() -> None:
    results = comparison.Results()
    results.quiet.append(measured("other", None, comparison.STEPS, failure="exit code 1"))
    results.busy.append(measured("other", None, comparison.STEPS))
    assert report.busy_table(results).splitlines()[-1] == "| m | other | exit code 1 |  |  |"
