"""Where models come from: turns a model spec into a file or folder on this machine, fetching it when it is not here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cpuinfer.errors import InvalidRequest, ModelNotFound
from cpuinfer.store import builtin
from cpuinfer.store.builtin import BUILTIN, DEFAULT, BuiltIn
from cpuinfer.store.cache import cache_folder
from cpuinfer.store.listing import StoredModel

if TYPE_CHECKING:
    from cpuinfer.store.hub import HubSpec

PATH_STARTS = ("./", "../", "/", "~")

__all__ = [
    "BUILTIN",
    "DEFAULT",
    "StoredModel",
    "cache_folder",
    "is_local",
    "is_spec",
    "list_models",
    "pull",
    "remove",
    "resolve",
]


def resolve(spec: str | None, *, progress: bool) -> Path:
    """The model file or folder a spec names (None: the default model), fetched first if it is not on this machine.

    With `progress`, one-line notices and, on a terminal, bars go to standard error; otherwise nothing is printed.
    Raises ModelNotFound for a spec that names nothing, DownloadError when fetching fails.
    """
    return _locate(DEFAULT if spec is None else spec, progress=progress, fresh=False)


def pull(spec: str, *, progress: bool) -> Path:
    """As `resolve`, but for `hf:` asks the Hub for the newest revision even when an older one is in its cache."""
    return _locate(spec, progress=progress, fresh=True)


def is_spec(text: str) -> bool:
    """Whether a command-line word is a model rather than a prompt: it names a model here, or could only be one."""
    if text in BUILTIN or text.startswith("hf:"):
        return True
    like_a_path = text.endswith((".gguf", ".safetensors")) or text.startswith(PATH_STARTS)
    if like_a_path and not any(character.isspace() for character in text):
        return True
    with _unusable_path_is_absent():
        return bool(text) and Path(text).expanduser().exists()
    return False


def is_local(spec: str) -> bool:
    """Whether a spec names a file or folder of this machine.  Raises ModelNotFound if it names nothing at all."""
    return isinstance(_parse(spec), Path)


def list_models() -> list[StoredModel]:
    """Models on this machine: fetched built-in ones, those in Hugging Face's cache, and packed copies of any."""
    from cpuinfer.store import hub, packed

    return [*builtin.stored(), *hub.stored(), *packed.stored()]


def remove(spec: str) -> list[Path]:
    """Delete a fetched model or packed copy; returns the deleted files, none of them outside the caches."""
    from cpuinfer.store import hub, packed

    if spec.startswith(packed.PREFIX):
        return packed.remove(spec)
    try:
        parsed = _parse(spec)
    except ModelNotFound:
        raise ModelNotFound(f"{spec}: not a model fetched before, `cpuinfer list` prints those") from None
    if isinstance(parsed, Path):
        raise InvalidRequest(f"{spec}: a file of your own, not one cpuinfer fetched: delete it yourself")
    return builtin.remove(parsed) if isinstance(parsed, BuiltIn) else hub.remove(parsed)


def _locate(spec: str, *, progress: bool, fresh: bool) -> Path:
    parsed = _parse(spec)
    if isinstance(parsed, BuiltIn):
        return builtin.obtain(parsed, progress=progress)
    if isinstance(parsed, Path):
        return parsed
    from cpuinfer.store import hub

    return hub.obtain(parsed, progress=progress, fresh=fresh)


def _parse(spec: str) -> BuiltIn | HubSpec | Path:
    """A built-in name wins over a file of that name in the current folder: what the default runs must not vary."""
    if spec in BUILTIN:
        return BUILTIN[spec]
    if spec.startswith("hf:"):
        from cpuinfer.store.hub import HubSpec

        return HubSpec.parse(spec)
    with _unusable_path_is_absent():
        path = Path(spec).expanduser()
        try:
            if spec and path.exists():
                return path
        except PermissionError as error:
            raise ModelNotFound(f"{spec}: {error.strerror}") from None
    if spec.endswith((".gguf", ".safetensors")) or spec.startswith(PATH_STARTS):
        raise ModelNotFound(f"{spec}: no such file")
    raise ModelNotFound(
        f"{spec!r} is not a model: expected the path of a .gguf file or of a model's folder, "
        f"hf:owner/repo[:file-or-quant], "
        f"or a built-in name ({', '.join(BUILTIN)})"
    )


@contextmanager
def _unusable_path_is_absent() -> Iterator[None]:
    """Text too long for a path, with a NUL, below an unreadable folder, or of an unknown `~user` names no file."""
    try:
        yield
    except (OSError, ValueError, RuntimeError):
        return
