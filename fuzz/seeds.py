"""Writes the seed corpus of the GGUF fuzz target into a folder: the sound and hostile files of the tests."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from fixtures.bad_gguf import BAD, build


def main(folder: Path) -> None:
    """One file per case, plus a sound one."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sound").write_bytes(build())
    for name, (content, _) in BAD.items():
        (folder / name).write_bytes(content)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
