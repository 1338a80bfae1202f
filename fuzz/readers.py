"""Coverage-guided fuzzing of every reader: any input is read or refused by an error of ours, in little room and time.

pip install '.[fuzz]'
python fuzz/readers.py all --seconds 120        # every reader, one after another
python fuzz/readers.py tokenizer --seconds 600 --seed 7
python fuzz/readers.py tokenizer crash-0123...  # an input that was found, once more
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["cpuinfer"]):
    from cpuinfer import loader
    from cpuinfer.chat import ChatTemplate
    from cpuinfer.errors import CpuInferError, MemoryLimit
    from cpuinfer.tokenizer import Tokenizer

ROOM = 96 << 20
"""Bytes that reading may take beyond the size of its input: libraries loaded by the first, allocators' arenas."""
SECONDS = 1.0
"""Of processor time, so that a busy machine finds nothing."""
LONGEST = 1 << 18
"""Bytes of an input."""
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello\nworld"}]
TEXT = "the sky\n<s> \u00e9\u4f60\U0001f600  12345"
NUMBERS = (0, -1, 1, 2, 3, 1 << 20, 1 << 24, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 64, -(1 << 63), 1e308, float("nan"))
HOSTILE: tuple[Any, ...] = (None, True, False, "", "\ud800", "\0", "9" * 5000, [], [[]], {}, {"": []}, *NUMBERS, 0.5)


def read_model(path: Path) -> None:
    """A model from its first byte to packed weights, its tokenizer and its template."""
    blueprint = loader.open_model(path)
    source = blueprint.source
    loader.load_program(blueprint, threads=1)
    tokenizer = source.tokenizer()
    if source.chat_template is not None:
        source.chat_template(tokenizer).render(MESSAGES)


def read_tokenizer(path: Path) -> None:
    """A tokenizer, used both ways on a text and on every id."""
    tokenizer = Tokenizer.from_folder(path)
    tokenizer.decode(tokenizer.encode(TEXT))
    tokenizer.decode(range(tokenizer.vocabulary), skip_special=True)


def read_template(path: Path) -> None:
    """A template, rendered."""
    source = path.read_bytes().decode(errors="replace")
    ChatTemplate(source, bos_token="<s>", eos_token="</s>", origin="input").render(MESSAGES, tools=[{"name": "f"}])


def read_settings(path: Path) -> None:
    """tokenizer_config.json, beside each kind of tokenizer, and the template in it."""
    read_model(path)
    (path / "tokenizer.json").rename(path / "kept")
    try:
        shutil.copy(path.parent / "pieces.model", path / "tokenizer.model")
        read_tokenizer(path)
    finally:
        (path / "kept").rename(path / "tokenizer.json")
        (path / "tokenizer.model").unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Target:
    """A reader, and the name its input has in the folder it reads; none where the input itself is read."""

    read: Callable[[Path], None]
    file: str | None = None


TARGETS = {
    "gguf": Target(read_model),
    "safetensors": Target(read_model, "model.safetensors"),
    "index": Target(read_model, "model.safetensors.index.json"),
    "config": Target(read_model, "config.json"),
    "published": Target(read_model, "config.json or model.safetensors"),
    "tokenizer": Target(read_tokenizer, "tokenizer.json"),
    "settings": Target(read_settings, "tokenizer_config.json"),
    "pieces": Target(read_tokenizer, "tokenizer.model"),
    "template": Target(read_template),
}


class Check:
    """Reads inputs in a folder of its own; raises for one that breaks a promise."""

    def __init__(self, name: str, folder: Path, around: Path) -> None:
        self._name = name
        self._target = TARGETS[name]
        self._folder = folder / "model"
        if around.is_dir():
            shutil.copytree(around, self._folder)
        else:
            self._folder.mkdir()

    def __call__(self, data: bytes) -> None:
        path = self._place(data)
        before, started = _peak(), time.process_time()
        try:
            self._target.read(path)
        except MemoryLimit as error:
            raise AssertionError("more memory than an input may ask for") from error
        except CpuInferError:
            pass
        seconds, room = time.process_time() - started, _peak() - before
        if seconds > SECONDS:
            raise AssertionError(f"{seconds:.1f} s, expected at most {SECONDS:g}")
        if room > ROOM + len(data):
            raise AssertionError(f"{room >> 20} MiB for {len(data)} bytes")

    def _place(self, data: bytes) -> Path:
        """Write the input where its reader finds it; returns what to open."""
        if self._name == "published":
            methods = sorted(self._folder.iterdir())
            folder = methods[(data[0] if data else 0) % len(methods)]
            sound = self._folder.parent.parent / "around" / "published" / folder.name
            is_config = data[1:2] == b"{"
            for file, used in (("config.json", is_config), ("model.safetensors", not is_config)):
                (folder / file).write_bytes(data[1:] if used else (sound / file).read_bytes())
            return folder
        path = self._folder / (self._target.file or "input")
        path.write_bytes(data)
        return self._folder if self._target.file else path


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """Half of the time bytes, else what they say: a value of a JSON text or header, or an integer of a binary file."""
    chance = random.Random(seed)
    if chance.random() < 0.5 or not data:
        return atheris.Mutate(data, max_size)
    start = data.find(b"{", 0, 16)
    if start >= 0 and data[:4] != b"GGUF":
        try:
            text, end = json.JSONDecoder().raw_decode(data[start:].decode("latin-1"))
            return _mutated_json(data, start, end, text, chance)[:max_size]
        except (ValueError, RecursionError, IndexError):
            return atheris.Mutate(data, max_size)
    changed, width = bytearray(data), chance.choice((1, 2, 4, 8))
    at = chance.randrange(min(len(data), chance.choice((64, 1024, LONGEST))))
    number = chance.choice([n for n in NUMBERS if isinstance(n, int)]) + chance.randint(-2, 2)
    changed[at : at + width] = (number % (1 << 8 * width)).to_bytes(width, "little")
    return bytes(changed[:max_size])


def _mutated_json(data: bytes, start: int, end: int, value: Any, chance: random.Random) -> bytes:
    """One value replaced, taken away or copied to another place; the length before a header of safetensors follows."""
    parent: Any = value
    while True:
        keys = list(parent) if isinstance(parent, dict) else range(len(parent))
        key = chance.choice(keys)
        if not isinstance(parent[key], (dict, list)) or not parent[key] or chance.random() < 0.2:
            break
        parent = parent[key]
    action = chance.random()
    if action < 0.15:
        del parent[key]
    elif action < 0.4:
        parent[key] = parent[chance.choice(keys)]
    else:
        parent[key] = chance.choice(HOSTILE)
    text = json.dumps(value, ensure_ascii=chance.random() < 0.9).encode(errors="replace")
    lead = data[: start - 8] + len(text).to_bytes(8, "little") if start >= 8 else data[:start]
    return lead + text + data[start + end :]


def fuzz(name: str, arguments: list[str], corpora: Path) -> None:
    """Run libFuzzer in this process; it ends the process, with 0 where nothing was found."""
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(dir=corpora) as folder:
        shutil.copy(corpora / "pieces" / "bpe", Path(folder) / "pieces.model")
        check = Check(name, Path(folder), corpora / "around" / name)
        for seed in sorted((corpora / name).iterdir()):
            shutil.rmtree(Path(folder) / "warm", ignore_errors=True)
            check(seed.read_bytes())
        soft = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + (2 << 30)
        resource.setrlimit(resource.RLIMIT_AS, (soft, soft))  # so that a hostile input cannot take the machine with it
        atheris.Setup([name, *arguments], check, custom_mutator=mutate)
        atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reader", choices=["all", *TARGETS])
    parser.add_argument("inputs", nargs="*", help="files to read once instead of fuzzing")
    parser.add_argument("--seconds", type=int, default=120, help="in all")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    names = list(TARGETS) if options.reader == "all" else [options.reader]
    if len(names) > 1:
        seconds = str(max(1, options.seconds // len(names)))
        for name in names:
            again = [sys.executable, __file__, name, "--seconds", seconds, "--seed", str(options.seed)]
            if subprocess.run(again, check=False).returncode:
                print(f"fuzz/readers.py {name}: failed; the input is in the file named above", file=sys.stderr)
                return 1
        return 0
    with tempfile.TemporaryDirectory() as made:
        seeds = [sys.executable, str(Path(__file__).with_name("seeds.py")), made]
        subprocess.run(seeds, check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
        limits = [f"-max_total_time={options.seconds}", f"-seed={options.seed}", f"-max_len={LONGEST}", "-timeout=10"]
        limits += ["-rss_limit_mb=2048", "-print_final_stats=1", "-verbosity=0"]
        fuzz(names[0], options.inputs or [*limits, str(Path(made) / names[0])], Path(made))
    return 0


if __name__ == "__main__":
    sys.exit(main())
