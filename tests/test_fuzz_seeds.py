"""The fuzz targets' seed corpora can still be written from what the tests make."""

import subprocess
import sys
from pathlib import Path

SEEDS = Path(__file__).parents[1] / "fuzz" / "seeds.py"


def test_every_reader_has_seeds(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(SEEDS), str(tmp_path)], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    empty = [folder.name for folder in tmp_path.iterdir() if not any(folder.iterdir())]
    assert not empty
