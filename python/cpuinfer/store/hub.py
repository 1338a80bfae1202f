"""Models of the Hugging Face Hub: `hf:owner/repo[:file-or-quant]`, fetched by huggingface_hub into its own cache."""

from __future__ import annotations

import glob
import importlib
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpuinfer.errors import DownloadError, ModelNotFound
from cpuinfer.store.choice import Model, belongs, choose, models
from cpuinfer.store.listing import StoredModel
from cpuinfer.store.progress import Reporter


@dataclass(frozen=True, slots=True)
class HubSpec:
    """A repository and which of its models: a file, a quant (`Q4_K_M`), "safetensors", or (empty) its only one."""

    repo: str
    wanted: str

    @staticmethod
    def parse(spec: str) -> HubSpec:
        """Raises ModelNotFound for text that is not of the form."""
        parts = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(?::([^:]+))?", spec)
        if not parts:
            raise ModelNotFound(f"{spec!r}: expected hf:owner/repo or hf:owner/repo:file-or-quant")
        return HubSpec(parts[1], parts[2] or "")

    def __str__(self) -> str:
        return f"hf:{self.repo}:{self.wanted}" if self.wanted else f"hf:{self.repo}"


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """The models' files of one cached revision of one repository, by their path in it."""

    repo: str
    modified: float
    files: dict[str, Any]  # huggingface_hub.CachedFileInfo

    @property
    def complete(self) -> list[Model]:
        return [model for model in models(self.files) if model.is_complete]

    def path(self, model: Model) -> Path:
        """The file that names a model of this revision, or its folder."""
        first = Path(self.files[model.files[0]].file_path)
        return first.parent if model.is_folder else first


def obtain(spec: HubSpec, *, progress: bool, fresh: bool) -> Path:
    """The (first) file or the folder of the model; unless `fresh`, one in the cache is used without asking the Hub."""
    hub = _library()
    if not fresh or hub.constants.HF_HUB_OFFLINE:
        for snapshot in _snapshots(hub, spec.repo):
            if snapshot.complete:
                try:
                    return snapshot.path(choose(snapshot.complete, spec.wanted, str(spec)))
                except ModelNotFound:  # the Hub may have it
                    continue
    with _failures_named(hub, spec), _bars(hub, enabled=progress and sys.stderr.isatty()):
        info = hub.HfApi().model_info(spec.repo, files_metadata=True)
        chosen = choose(models(file.rfilename for file in info.siblings), spec.wanted, str(spec))
        if not chosen.is_complete:
            what = "files" if chosen.is_folder else "parts"
            raise DownloadError(
                f"{spec}: the repository has {len(chosen.files)} of the {chosen.parts} {what} of {chosen}"
            )
        size = sum(file.size or 0 for file in info.siblings if file.rfilename in chosen.files)
        reporter = Reporter(enabled=progress)
        reporter.notice(f"{spec}: fetching {chosen} ({size / 1e6:.0f} MB) with huggingface_hub")
        # One revision for all parts; names are patterns here, so their brackets are escaped.
        patterns = [glob.escape(name) for name in chosen.files]
        folder = hub.snapshot_download(spec.repo, revision=info.sha, allow_patterns=patterns)
    path = Path(folder) if chosen.is_folder else Path(folder) / chosen.files[0]
    reporter.notice(f"{spec}: fetched, in {path}")
    return path


def stored() -> list[StoredModel]:
    """The complete models in the Hub's cache: of each, the newest revision."""
    try:
        hub = _library()
    except DownloadError:
        return []
    found: dict[str, StoredModel] = {}
    for snapshot in _snapshots(hub, None):
        for model in snapshot.complete:
            name = f"hf:{snapshot.repo}:{'safetensors' if model.is_folder else model.files[0]}"
            size = sum(snapshot.files[file].size_on_disk for file in model.files)
            found.setdefault(name, StoredModel(name, snapshot.path(model), size, "hub"))
    return sorted(found.values(), key=lambda model: model.name)


def remove(spec: HubSpec) -> list[Path]:
    """Delete the model from every cached revision, and its contents unless another file of the cache is the same."""
    snapshots = _snapshots(_library(), spec.repo)
    names = {name for snapshot in snapshots for name in snapshot.files}
    if not names:
        raise ModelNotFound(f"{spec}: not in the cache of huggingface_hub")
    doomed = set(choose(models(names), spec.wanted, str(spec)).files)
    everything = [(name, file) for snapshot in snapshots for name, file in snapshot.files.items()]
    kept = {file.blob_path for name, file in everything if name not in doomed}
    removed = []
    for name, file in everything:
        if name in doomed:
            Path(file.file_path).unlink(missing_ok=True)
            removed.append(Path(file.file_path))
            if file.blob_path not in kept:
                Path(file.blob_path).unlink(missing_ok=True)
    return removed


def _library() -> Any:
    try:
        hub = importlib.import_module("huggingface_hub")
        for part in ("constants", "utils"):  # makes them attributes of the package
            importlib.import_module(f"huggingface_hub.{part}")
        return hub
    except ImportError as error:
        raise DownloadError("hf: models need huggingface_hub: run pip install 'cpuinfer[hub]'") from error


def _snapshots(hub: Any, repo: str | None) -> list[_Snapshot]:
    """Cached revisions of one repository, or of all, newest first."""
    try:
        cached = hub.scan_cache_dir().repos
    except hub.utils.CacheNotFound:
        return []
    found = [
        _Snapshot(item.repo_id, revision.last_modified, dict(_model_files(revision)))
        for item in cached
        if item.repo_type == "model" and repo in (None, item.repo_id)
        for revision in item.revisions
    ]
    return sorted(found, key=lambda snapshot: snapshot.modified, reverse=True)


def _model_files(revision: Any) -> Iterable[tuple[str, Any]]:
    for file in revision.files:
        name = Path(file.file_path).relative_to(revision.snapshot_path).as_posix()
        if belongs(name):
            yield name, file


@contextmanager
def _failures_named(hub: Any, spec: HubSpec) -> Iterator[None]:
    """Ours pass; whatever else the library and its HTTP client raise becomes one of ours, first line quoted."""
    try:
        yield
    except (DownloadError, ModelNotFound):
        raise
    except hub.utils.GatedRepoError as error:
        raise DownloadError(f"{spec}: access must be asked for on the model's page, then: hf auth login") from error
    except (hub.utils.RepositoryNotFoundError, hub.utils.HFValidationError) as error:
        raise ModelNotFound(
            f"{spec}: the Hub has no such repository, or it is private and needs: hf auth login"
        ) from error
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        raise DownloadError(
            f"{spec}: not fetched from the Hugging Face Hub: {type(error).__name__}: {first}"
        ) from error


@contextmanager
def _bars(hub: Any, *, enabled: bool) -> Iterator[None]:
    """The library's own bars are a switch of the whole process: put it back as it was."""
    if enabled or hub.utils.are_progress_bars_disabled():
        yield
        return
    hub.utils.disable_progress_bars()
    try:
        yield
    finally:
        hub.utils.enable_progress_bars()
