"""`cpuinfer quantize`, killed at a chosen moment: killed_quantize.py WHEN COUNT ARGUMENTS...

WHEN: "half": the COUNT-th file of its work is half written; "after": it is written; "out": COUNT tensors of the target
are; "never".
"""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Mapping
from itertools import count
from typing import Any

import numpy as np

from cpuinfer.cli import main
from cpuinfer.quantize import gguf_writer, work


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arrange_death(when: str, number: int) -> None:
    write, next_tensor = work.Work._write, gguf_writer.GgufWriter._next_tensor
    files, tensors = count(1), count(1)

    def dying_write(self: work.Work, name: str, arrays: Mapping[str, Any]) -> None:
        here = next(files) == number
        if here and when == "half":
            whole = io.BytesIO()
            np.savez(whole, **arrays)  # type: ignore[arg-type]
            (self.folder / name).with_suffix(".part").write_bytes(whole.getvalue()[: whole.tell() // 2])
            die()
        write(self, name, arrays)
        if here and when == "after":
            die()

    def dying_tensor(self: gguf_writer.GgufWriter) -> None:
        next_tensor(self)
        if when == "out" and next(tensors) == number:
            die()

    work.Work._write = dying_write  # type: ignore[method-assign]
    gguf_writer.GgufWriter._next_tensor = dying_tensor  # type: ignore[method-assign]


if __name__ == "__main__":
    arrange_death(sys.argv[1], int(sys.argv[2]))
    sys.exit(main(["quantize", *sys.argv[3:]]))
