"""Models of the Hub: which files a spec means, when the Hub is asked, and what its failures are called."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cpuinfer import store
from cpuinfer.errors import DownloadError, ModelNotFound
from fixtures.fake_hub import FakeHub, GatedRepoError

FILES = {
    "README.md": b"-",
    "mmproj-F16.gguf": b"m",
    "model-Q4_K.gguf": b"1",
    "model-Q4_K_M.gguf": b"2",
    "model-BF16.gguf": b"3",
    "model-Q8_0.gguf": b"4",
    "big/model-IQ4_XS-00001-of-00002.gguf": b"5",
    "big/model-IQ4_XS-00002-of-00002.gguf": b"6",
    "UD-Q8_0.gguf": b"7",
    "torn-Q6_K-00001-of-00002.gguf": b"8",
}


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """A Hub with one model alone (`o/one`) and many in one repository (`o/many`)."""
    monkeypatch.setenv("CPUINFER_CACHE", str(tmp_path / "ours"))
    hub = FakeHub(tmp_path / "hub", {"o/one": {"a.gguf": b"a", "config.json": b"c"}, "o/many": FILES})
    hub.install(monkeypatch)
    return hub


FOLDER = {
    "config.json": b"c",
    "tokenizer.json": b"t",
    "model-00001-of-00002.safetensors": b"1",
    "model-00002-of-00002.safetensors": b"2",
    "model.safetensors.index.json": b"i",
    "consolidated.safetensors": b"all again",
    "onnx/config.json": b"o",
    "onnx/model.safetensors": b"o",
    "pytorch_model.bin": b"p",
}


def names_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(
    ("spec", "content"),
    [
        ("hf:o/one", b"a"),
        ("hf:o/many:Q4_K", b"1"),
        ("hf:o/many:q4_k_m", b"2"),
        ("hf:o/many:BF16", b"3"),
        ("hf:o/many:model-Q8_0.gguf", b"4"),
        ("hf:o/many:UD-Q8_0", b"7"),
        ("hf:o/many:model-IQ4_XS-00002-of-00002.gguf", b"5"),
    ],
)
def test_a_spec_means_the_one_model_that_fits(spec: str, content: bytes) -> None:
    assert store.resolve(spec, progress=False).read_bytes() == content


@pytest.mark.usefixtures("fake")
def test_all_parts_of_a_split_model_are_fetched_and_the_first_is_named() -> None:
    path = store.resolve("hf:o/many:IQ4_XS", progress=False)
    assert path.name == "model-IQ4_XS-00001-of-00002.gguf"
    assert sorted(part.read_bytes() for part in path.parent.iterdir()) == [b"5", b"6"]


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(
    ("spec", "said", "listed", "unlisted"),
    [
        ("hf:o/many:Q8_0", "fits 2 models", ["model-Q8_0.gguf", "UD-Q8_0.gguf"], ["BF16"]),
        ("hf:o/many:F16", "fits none of", ["model-BF16.gguf", "big/model-IQ4_XS.gguf (2 parts)"], ["mmproj"]),
        ("hf:o/many", "fits 7 models", ["model-Q4_K.gguf"], ["README"]),
    ],
)
def test_a_quant_of_none_or_several_is_refused_with_the_candidates(
    spec: str, said: str, listed: list[str], unlisted: list[str]
) -> None:
    with pytest.raises(ModelNotFound, match=f"{spec}: {said}") as caught:
        store.resolve(spec, progress=False)
    assert all(name in str(caught.value) for name in listed)
    assert not any(name in str(caught.value) for name in unlisted)


@pytest.mark.usefixtures("fake")
def test_a_model_with_parts_missing_is_refused() -> None:
    with pytest.raises(DownloadError, match="has 1 of the 2 parts"):
        store.resolve("hf:o/many:Q6_K", progress=False)


def test_a_cached_model_is_used_without_asking_and_pull_asks_for_the_newest(fake: FakeHub) -> None:
    store.resolve("hf:o/one", progress=False)
    store.resolve("hf:o/one", progress=False)
    assert fake.asked == 1
    fake.sha, fake.repositories["o/one"]["a.gguf"] = "b" * 40, b"newer"
    assert store.resolve("hf:o/one", progress=False).read_bytes() == b"a"
    assert store.pull("hf:o/one", progress=False).read_bytes() == b"newer"


def test_offline_the_cache_alone_serves_a_pull(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    store.pull("hf:o/one", progress=False)
    fake.install(monkeypatch, offline=True)
    fake.error = ConnectionError("offline mode is enabled")
    assert store.pull("hf:o/one", progress=False).read_bytes() == b"a"
    with pytest.raises(
        DownloadError,
        match="hf:o/many:Q4_K: not fetched from the Hugging Face Hub: ConnectionError: offline mode is enabled",
    ):
        store.pull("hf:o/many:Q4_K", progress=False)


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (GatedRepoError("gated"), DownloadError, "hf auth login"),
        (RuntimeError("first\nsecond"), DownloadError, "hf:o/one: not fetched .*Hub: RuntimeError: first$"),
    ],
)
def test_a_failure_of_the_hub_is_one_of_ours(fake: FakeHub, error: Exception, kind: type[Exception], said: str) -> None:
    fake.error = error
    with pytest.raises(kind, match=said):
        store.resolve("hf:o/one", progress=False)


@pytest.mark.usefixtures("fake")
def test_a_repository_that_is_not_there_is_a_model_not_found() -> None:
    with pytest.raises(ModelNotFound, match="hf:o/none: the Hub has no such repository"):
        store.resolve("hf:o/none", progress=False)


@pytest.mark.parametrize("spec", ["hf:", "hf:repo", "hf:a/b/c", "hf:o/one:", "hf:o/one:a:b"])
def test_a_malformed_hub_spec_is_told_its_form(spec: str) -> None:
    with pytest.raises(ModelNotFound, match="expected hf:owner/repo"):
        store.resolve(spec, progress=False)


def test_without_the_library_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CPUINFER_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DownloadError, match=r"pip install 'cpuinfer\[hub\]'"):
        store.resolve("hf:o/one", progress=False)
    assert store.list_models() == []


@pytest.mark.usefixtures("fake")
def test_cached_models_are_listed_by_specs_that_resolve_to_them_until_removed() -> None:
    assert store.list_models() == []
    for spec in ("hf:o/one", "hf:o/many:IQ4_XS", "hf:o/many:BF16"):
        store.resolve(spec, progress=False)
    listed = store.list_models()
    assert [(model.size_bytes, model.source) for model in listed] == [(2, "hub"), (1, "hub"), (1, "hub")]
    assert [store.resolve(model.name, progress=False) for model in listed] == [model.path for model in listed]
    blobs = [part.resolve() for part in listed[0].path.parent.iterdir()]
    assert len(store.remove("hf:o/many:IQ4_XS")) == 2
    assert not any(blob.exists() for blob in blobs)
    assert store.list_models() == listed[1:]
    with pytest.raises(ModelNotFound, match="hf:o/many:IQ4_XS: fits none of"):
        store.remove("hf:o/many:IQ4_XS")


def test_contents_that_another_cached_file_shares_stay(fake: FakeHub) -> None:
    fake.repositories["o/one"]["b.gguf"] = b"a"
    removed, kept = (store.resolve(f"hf:o/one:{name}.gguf", progress=False) for name in ("a", "b"))
    assert store.remove("hf:o/one:a.gguf") == [removed]
    assert kept.read_bytes() == b"a"


def test_a_repository_of_safetensors_is_fetched_as_a_folder_without_what_nobody_reads(fake: FakeHub) -> None:
    fake.repositories["o/folder"] = FOLDER
    folder = store.resolve("hf:o/folder", progress=False)
    assert names_in(folder) == set(list(FOLDER)[:5])
    assert store.resolve("hf:o/folder:safetensors", progress=False) == folder
    assert fake.asked == 1


def test_a_single_safetensors_file_is_taken_rather_than_shards_that_lie_beside_it(fake: FakeHub) -> None:
    fake.repositories["o/single"] = {"config.json": b"c", "model.safetensors": b"1"}
    fake.repositories["o/single"]["model-00001-of-00002.safetensors"] = b"2"
    assert names_in(store.resolve("hf:o/single", progress=False)) == {"config.json", "model.safetensors"}


def test_beside_gguf_files_a_folder_is_taken_only_when_asked_for(fake: FakeHub) -> None:
    fake.repositories["o/both"] = {"a.gguf": b"a", **FOLDER}
    assert store.resolve("hf:o/both", progress=False).name == "a.gguf"
    assert (store.resolve("hf:o/both:safetensors", progress=False) / "config.json").read_bytes() == b"c"


@pytest.mark.parametrize("missing", ["model-00002-of-00002.safetensors", "model.safetensors.index.json"])
def test_a_folder_with_weights_missing_is_refused(fake: FakeHub, missing: str) -> None:
    fake.repositories["o/torn"] = {name: content for name, content in FOLDER.items() if name != missing}
    with pytest.raises(DownloadError, match=r"hf:o/torn: the repository has 4 of the 5 files of model\.safetensors"):
        store.resolve("hf:o/torn", progress=False)


def test_a_folder_half_fetched_is_not_taken_from_the_cache(fake: FakeHub) -> None:
    fake.repositories["o/folder"] = FOLDER
    folder = store.resolve("hf:o/folder", progress=False)
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert names_in(store.resolve("hf:o/folder", progress=False)) == set(list(FOLDER)[:5])
    assert fake.asked == 2


def test_a_repository_without_any_weights_known_here_says_what_is_looked_for(fake: FakeHub) -> None:
    fake.repositories["o/torch"] = {"config.json": b"c", "pytorch_model.bin": b"p"}
    with pytest.raises(ModelNotFound, match=r"hf:o/torch: no GGUF file there, nor config\.json with safetensors files"):
        store.resolve("hf:o/torch", progress=False)


def test_a_cached_folder_is_listed_by_a_spec_that_resolves_to_it_until_removed(fake: FakeHub) -> None:
    fake.repositories["o/folder"] = FOLDER
    folder = store.resolve("hf:o/folder", progress=False)
    (listed,) = store.list_models()
    assert (listed.name, listed.path, listed.size_bytes) == ("hf:o/folder:safetensors", folder, 5)
    assert len(store.remove(listed.name)) == 5
    assert store.list_models() == []


@pytest.mark.usefixtures("fake")
def test_without_a_terminal_a_fetch_begins_and_ends_with_a_line(capfd: pytest.CaptureFixture[str]) -> None:
    path = store.resolve("hf:o/one", progress=True)
    begin, end = capfd.readouterr().err.splitlines()
    assert begin.startswith("hf:o/one: fetching ")
    assert begin.endswith(" (0 MB) with huggingface_hub")
    assert end == f"hf:o/one: fetched, in {path}"
