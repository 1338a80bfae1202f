"""The command line: what reaches the model, what is printed where, and exit codes."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import cpuinfer
from cpuinfer.cli import bench, main, show
from cpuinfer.cli import run as run_command
from cpuinfer.description import Description, MemoryEstimate, TensorKind
from cpuinfer.errors import ModelNotFound
from fake_llm import FakeLLM, open_fake

DESCRIPTION = Description(
    name="Tiny [bold]model\x1b[31m",
    format="GGUF",
    architecture="llama",
    parameters=134_500_000,
    layers=30,
    hidden=576,
    heads=9,
    kv_heads=3,
    head_dim=64,
    feed_forward=1536,
    vocabulary=49152,
    context=2048,
    tied=True,
    rope="interleaved, base 100000",
    tokenizer="gpt2 (smollm)",
    has_chat_template=True,
    file_bytes=98_000_000,
    tensors=(TensorKind("self_attn.q_proj", "Q4_1", "int4", 30, (576, 576), 5.0, 5.0, 6_220_800),),
    memory=MemoryEstimate(84_000_000, 47_000_000, 15_000_000, 90_000_000),
    bytes_per_token=84_000_000,
)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class Piped:
    """Standard input from a pipe."""

    def __init__(self, data: bytes) -> None:
        self.buffer = io.BytesIO(data)

    def isatty(self) -> bool:
        return False


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[FakeLLM]:
    """The fakes that commands open, standard input being a terminal."""
    models: list[FakeLLM] = []

    def open_model(spec: str | None, **options: object) -> FakeLLM:
        models.append(open_fake(spec, **options))
        return models[-1]

    monkeypatch.setattr(run_command, "open_model", open_model)
    monkeypatch.setattr(run_command, "_is_spec", lambda text: text.endswith(".gguf"))
    monkeypatch.setattr(bench, "open_model", open_model)
    monkeypatch.setattr(bench, "describe_model", lambda _spec, **_: DESCRIPTION)
    monkeypatch.setattr(show, "describe_model", lambda _spec, _context, **_: DESCRIPTION)
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.delenv("CPUINFER_DEBUG", raising=False)
    return models


def python(*arguments: str, **options: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, *arguments], env=environment(), timeout=60, check=False, **options)  # type: ignore[call-overload]


def environment() -> dict[str, str]:
    folders = [str(Path(__file__).parent), str(Path(cpuinfer.__file__).parents[1])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(folders), "PYTHONIOENCODING": "latin-1"}


FAKE_RUN = """
import sys
from cpuinfer.cli import main, run
from fake_llm import open_fake
run.open_model = open_fake
sys.exit(main(["run", "-m", "fake.gguf", *sys.argv[1:]]))
"""


@pytest.mark.parametrize(
    ("arguments", "model", "prompt"),
    [
        (["hello"], None, "hello"),
        (["x.gguf", "hello"], "x.gguf", "hello"),
        (["not a spec", "hello"], "not a spec", "hello"),
        (["-m", "x.gguf", "hello"], "x.gguf", "hello"),
        (["-m", "x.gguf", "y.gguf"], "x.gguf", "y.gguf"),
        (["-p", "hello"], None, "hello"),
        (["x.gguf", "-p", "hello"], "x.gguf", "hello"),
        (["-p", "hello", "name"], "name", "hello"),
        (["-m", "x.gguf", "-p", "hello"], "x.gguf", "hello"),
        (["x.gguf", "--temp", "0", "hello"], "x.gguf", "hello"),
        (["--prompt=-x"], None, "-x"),
        (["--", "-x"], None, "-x"),
        (["-m", "x.gguf", "-n", "9", "--", "-x"], "x.gguf", "-x"),
    ],
)
def test_run_tells_the_model_from_the_prompt(
    opened: list[FakeLLM],
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    model: str | None,
    prompt: str,
) -> None:
    assert main(["run", *arguments]) == 0
    assert opened[0].opened == {
        "spec": model,
        "threads": None,
        "context": None,
        "isa": None,
        "quantize": None,
        "cache_packed": False,
        "kv_cache": "f16",
        "deterministic": False,
    }
    assert opened[0].asked == [[{"role": "user", "content": prompt}]]
    assert capsys.readouterr().out == f"You said: {prompt}\n"


@pytest.mark.parametrize(
    ("data", "arguments", "prompt"),
    [
        (b"piped\n", [], "piped"),
        (b"two\nlines\r\n", ["Sum up:"], "Sum up:\n\ntwo\nlines"),
        (b"", ["only this"], "only this"),
        ("größe 🙂".encode(), [], "größe 🙂"),
        (b"data", ["x.gguf"], "data"),
    ],
)
def test_piped_input_is_the_prompt_or_follows_it(
    opened: list[FakeLLM],
    monkeypatch: pytest.MonkeyPatch,
    data: bytes,
    arguments: list[str],
    prompt: str,
) -> None:
    monkeypatch.setattr(sys, "stdin", Piped(data))
    assert main(["run", *arguments]) == 0
    assert opened[0].asked == [[{"role": "user", "content": prompt}]]


def test_every_flag_of_run_reaches_the_model(opened: list[FakeLLM]) -> None:
    sampling = "-n 5 -s 3 --temp 0.5 --top-k 7 --top-p 0.9 --min-p 0.1 --repeat-penalty 1.2 --presence-penalty 0.3"
    more = "--frequency-penalty 0.4 --stop END --stop STOP --sampler-order min_p,temperature"
    machine = "-c 64 -t 3 --isa scalar --quantize nf4 --cache-packed --kv-cache int8 --deterministic"
    assert main(["run", *f"{sampling} {more} {machine} --system Be hi".split()]) == 0
    assert opened[0].opened == {
        "spec": None,
        "threads": 3,
        "context": 64,
        "isa": "scalar",
        "quantize": "nf4",
        "cache_packed": True,
        "kv_cache": "int8",
        "deterministic": True,
    }
    assert opened[0].asked == [[{"role": "system", "content": "Be"}, {"role": "user", "content": "hi"}]]
    assert opened[0].params == [
        cpuinfer.SamplingParams(
            max_tokens=5,
            seed=3,
            temperature=0.5,
            top_k=7,
            top_p=0.9,
            min_p=0.1,
            repetition_penalty=1.2,
            presence_penalty=0.3,
            frequency_penalty=0.4,
            stop=["END", "STOP"],
            order=["min_p", "temperature"],
        )
    ]


def test_the_other_names_of_flags_mean_the_same(opened: list[FakeLLM]) -> None:
    assert (
        main(["run", "--n-predict", "5", "--temperature", "0", "--ctx-size", "9", "--sampler-order", "hf", "hi"]) == 0
    )
    assert opened[0].opened["context"] == 9
    assert opened[0].params == [cpuinfer.SamplingParams(max_tokens=5, temperature=0, order="hf")]


def test_without_flags_the_defaults_are_those_of_sampling_params(opened: list[FakeLLM]) -> None:
    main(["run", "hi"])
    assert opened[0].params == [cpuinfer.SamplingParams()]


def test_raw_continues_the_prompt_itself(opened: list[FakeLLM]) -> None:
    assert main(["run", "--raw", "Once upon"]) == 0
    assert opened[0].asked == ["Once upon"]


def test_json_is_one_object_with_the_whole_answer(opened: list[FakeLLM], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--json", "größe"]) == 0
    assert opened
    printed = capsys.readouterr()
    answer = json.loads(printed.out)
    assert printed.err == ""
    assert {**answer, "timings": None} == {
        "model": "fake.gguf",
        "text": "You said: größe",
        "token_ids": [0, 1, 2],
        "finish_reason": "stop",
        "seed": 7,
        "prompt_tokens": 3,
        "timings": None,
    }
    assert answer["timings"]["prompt_rate"] == 6
    assert answer["timings"]["generate_rate"] == 8


def test_stats_go_to_standard_error(opened: list[FakeLLM], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--stats", "hi"]) == 0
    assert opened
    printed = capsys.readouterr()
    assert printed.out == "You said: hi\n"
    rows = [line.split() for line in printed.err.splitlines()]
    assert rows[:3] == [
        ["prompt", "3", "tokens", "6.0", "tokens/s"],
        ["first", "token", "0.500", "s"],
        ["generated", "3", "tokens", "8.0", "tokens/s"],
    ]
    assert rows[3][:2] == ["peak", "memory"]
    assert float(rows[3][2].replace(",", "")) > 1


def test_an_answer_cut_for_its_length_says_so(opened: list[FakeLLM], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "-n", "2", "hi"]) == 0
    assert opened
    printed = capsys.readouterr()
    assert printed.out == "You said: \n"
    assert printed.err == "[cut at max_tokens 2]\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--no-such-flag", "hi"], "unrecognized arguments: --no-such-flag"),
        (["--no-such-flag"], "unrecognized arguments: --no-such-flag"),
        (["no-such-command"], "no command 'no-such-command', expected one of run, pull, list, rm, show, bench"),
        (["run", "-n", "0", "hi"], "-n/--max-tokens/--n-predict: '0', expected an integer of at least 1"),
        (["run", "-n", "many", "hi"], "'many', expected an integer of at least 1"),
        (["run", "--temp", "-1", "hi"], "--temp/--temperature: '-1', expected 0 to 100"),
        (["run", "--temp", "nan", "hi"], "--temp/--temperature: 'nan'"),
        (["run", "--min-p", "1.5", "hi"], "--min-p: '1.5', expected 0 to 1"),
        (["run", "--tem", "1", "hi"], "unrecognized arguments: --tem"),
        (["run", "-t", "0", "hi"], "-t/--threads: '0', expected an integer of 1 to 1024"),
        (["run", "--sampler-order", "top_q", "hi"], "--sampler-order: 'top_q', expected one of default, hf, vllm, or"),
        (["run", "-m", "m.gguf", "-p", "x", "hi"], "'hi' is one argument too many"),
        (["run", "a.gguf", "b", "c"], "unrecognized arguments: c"),
        (["run", ""], "the prompt is empty"),
        (["run", "\udcff"], "not UTF-8"),
        (["run"], "no prompt, and no terminal"),
        (["run", "--json"], "--json needs a prompt"),
        (["pull"], "required: MODEL"),
        (["run", "--raw", "x", "--system", "y"], "--system has no place with --raw"),
        (["bench", "--isa", "scalar,none-such"], "none-such"),
        (["pull", "."], "on this machine already"),
        (["rm", "none-such"], "not a model fetched before"),
        (["bench", "-d", "4096"], "pp512@d4096 takes 4608 positions, the context of"),
        (["bench", "-p", "0", "-n", "0"], "nothing to measure"),
        (["bench", "-t", "1,x"], "-t/--threads: 'x', expected an integer of 1 to 1024"),
        (["bench", "-o", "xml"], "invalid choice: 'xml'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    opened: list[FakeLLM], capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert printed.err.startswith("cpuinfer: error: ")
    assert printed.err.count("\n") == 1
    assert not opened, "found before a model is loaded"


def fail_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_model(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(run_command, "open_model", open_model)


@pytest.mark.usefixtures("opened")
@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ModelNotFound("x.gguf: no\nsuch\x1b file"), 2, "x.gguf: no such file"),
        (PermissionError(13, "Permission denied", "x.gguf"), 2, "x.gguf: Permission denied"),
        (MemoryError(), 2, "out of memory"),
        (RuntimeError("odd"), 1, "internal: RuntimeError: odd (CPUINFER_DEBUG=1 shows where)"),
    ],
)
def test_what_goes_wrong_inside_is_one_line_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, code: int, line: str
) -> None:
    fail_with(error, monkeypatch)
    assert main(["run", "hi"]) == code
    assert " ".join(capsys.readouterr().err.split()) == f"cpuinfer: error: {line}"


@pytest.mark.usefixtures("opened")
def test_debug_shows_where_as_well(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fail_with(ModelNotFound("x"), monkeypatch)
    monkeypatch.setenv("CPUINFER_DEBUG", "1")
    assert main(["run", "hi"]) == 2
    first, *_, last = capsys.readouterr().err.splitlines()
    assert (first, last) == ("Traceback (most recent call last):", "cpuinfer: error: x")


@pytest.mark.usefixtures("opened")
def test_ctrl_c_while_loading_leaves_quietly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_with(KeyboardInterrupt(), monkeypatch)
    assert main(["run", "hi"]) == 130
    assert capsys.readouterr().err == ""


def test_ctrl_c_stops_a_one_shot_answer() -> None:
    command = [sys.executable, "-c", FAKE_RUN, "forever"]
    with subprocess.Popen(
        command, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout and process.stderr
        start = process.stdout.read(20)
        process.send_signal(signal.SIGINT)
        rest, errors = process.stdout.read(), process.stderr.read()
        assert process.wait(60) == 130
    assert (start + rest).startswith(b"You said: forever more")
    assert (start + rest).endswith(b"more\n")
    assert errors == b""


def test_a_closed_pipe_ends_an_answer_quietly() -> None:
    command = [sys.executable, "-c", FAKE_RUN, "forever"]
    with subprocess.Popen(
        command, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout and process.stderr
        assert process.stdout.read(3) == b"You"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 141


def test_text_is_utf8_whatever_the_locale() -> None:
    done = python("-c", FAKE_RUN, input="größe 🙂".encode(), capture_output=True)
    assert done.stdout.decode("utf-8") == "You said: größe 🙂\n"


def test_input_that_is_no_utf8_is_refused() -> None:
    done = python("-c", FAKE_RUN, input=b"ab\xff", capture_output=True)
    assert done.returncode == 2
    assert done.stderr == b"cpuinfer: error: standard input: byte 2 is not UTF-8 text\n"


def test_version_imports_nothing_heavy() -> None:
    script = """
import sys
from cpuinfer.cli import main
assert main(["--version"]) == 0
print(*sorted({"numpy", "rich", "prompt_toolkit", "jinja2", "tokenizers", "cpuinfer.llm"} & set(sys.modules)))
"""
    done = python("-c", script, capture_output=True)
    assert done.stdout.decode() == f"cpuinfer {cpuinfer.__version__}\n\n"


def test_python_dash_m_runs_the_command_line() -> None:
    done = python("-m", "cpuinfer", "no-such-command", capture_output=True)
    assert done.returncode == 2


@pytest.mark.parametrize("command", ["run", "pull", "list", "ls", "rm", "show", "bench"])
def test_every_command_has_help(capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert main([command, "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: cpuinfer ")


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    for command in ("run", "pull", "list, ls", "rm", "show", "bench", "doctor"):
        assert f"\n  {command} " in printed


def test_pull_list_and_rm_speak_to_the_store(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = SimpleNamespace(name="tiny", path=Path("/cache/tiny.gguf"), size_bytes=1_500_000, source="pip")
    store = SimpleNamespace(
        is_local=lambda _: False,
        pull=lambda spec, *, progress: Path(f"/cache/{spec}.gguf"),  # noqa: ARG005
        list_models=lambda: [model],
        remove=lambda spec: [Path(f"/cache/{spec}.gguf")],
    )
    monkeypatch.setattr(cpuinfer, "store", store, raising=False)
    for arguments in (["pull", "tiny"], ["ls"], ["rm", "tiny"]):
        assert main(arguments) == 0
    pulled, _, row, removed = capsys.readouterr().out.splitlines()
    assert pulled == "/cache/tiny.gguf"
    assert row.split() == ["tiny", "1.5", "MB", "pip", "/cache/tiny.gguf"]
    assert removed == "deleted /cache/tiny.gguf"


@pytest.mark.usefixtures("opened")
def test_show_prints_the_description_as_plain_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "x.gguf"]) == 0
    printed = capsys.readouterr().out
    assert "Tiny [bold]model\ufffd[31m" in printed
    assert "\x1b" not in printed
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    assert "self_attn.q_proj Q4_1 int4 30 576 x 576 5.000 5.000 6.2" in lines
    assert "total 236.0 MB" in lines


@pytest.mark.usefixtures("opened")
def test_show_prints_the_description_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "x.gguf", "--json"]) == 0
    description = json.loads(capsys.readouterr().out)
    assert description["memory"]["total"] == 236_000_000
    assert description["tensors"][0]["shape"] == [576, 576]


def test_bench_measures_prompts_after_others_by_difference(
    opened: list[FakeLLM], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "-p", "16", "-n", "4", "-d", "0,32", "-r", "2", "-o", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["test"] for row in rows] == ["pp16", "tg4", "pp16@d32", "tg4@d32"]
    for row, speed in zip(rows, (1000, 100, 1000, 100), strict=True):
        assert row["samples"] == pytest.approx([speed, speed])
        assert row["mean"] == pytest.approx(speed)
        assert row["standard_deviation"] == pytest.approx(0, abs=1e-6)
    assert opened[0].opened["context"] == 48
    lengths = [len(prompt) for prompt in opened[0].asked]  # type: ignore[arg-type]
    assert lengths == [16] * 3 + [1] * 3 + [32, 48] * 3 + [32] * 3
    deep = opened[0].asked[6:12]
    assert all(whole[:32] == first for first, whole in zip(deep[::2], deep[1::2], strict=True))  # type: ignore[index]
    assert len({tuple(prompt) for prompt in deep}) == 6, "fresh tokens each time"  # type: ignore[arg-type]


def test_bench_opens_the_model_for_every_kernel_set_and_thread_count(
    opened: list[FakeLLM], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "-n", "0", "-t", "1,2", "--isa", "avx2,scalar", "-r", "1", "-o", "csv"]) == 0
    ways = [(model.opened["isa"], model.opened["threads"]) for model in opened]
    assert ways == [("avx2", 1), ("avx2", 2), ("scalar", 1), ("scalar", 2)]
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["test"] for row in rows] == ["pp512"] * 4
    assert rows[0]["size_bytes"] == "98000000"


@pytest.mark.usefixtures("opened")
def test_bench_prints_an_aligned_markdown_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "-r", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(", 98.0 MB")
    assert lines[1] == ""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert cells[0] == ["isa", "threads", "test", "t/s", "median"]
    assert cells[2] == ["scalar", "2", "pp512", "1000.00 ± 0.00", "1000.00"]
    assert {len(line) for line in lines[2:]} == {77}


def test_rates_of_any_size_stay_in_their_columns(capsys: pytest.CaptureFixture[str]) -> None:
    row = bench.Row("a", 1, "avx512_vnni", 128, "pp8192@d8192", 123456.78, 6543.21, 123456.78, [])
    bench._write_markdown(iter([row]))
    assert {len(line) for line in capsys.readouterr().out.splitlines()[2:]} == {77}
