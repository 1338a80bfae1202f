"""Checks that object files built for an instruction set define nothing another file could link to.

    python tests/check_symbols.py BUILD_FOLDER

A weak or common symbol in such a file (an inline function of a header, a template) may be the copy the linker keeps for
everyone, and then baseline code executes instructions the processor lacks.  Each object may define only the functions
its line of csrc/kernels/isa.h declares, and need from outside only memcpy, memset and the tables of codebooks.h.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

OBJECTS = ("avx2", "avx_vnni", "avx512_vnni", "amx")
KERNELS = {
    *("quantize", "gemm", "rms_norm"),
    *("layer_norm", "add", "multiply", "activate", "softcap", "rope", "to_half"),
    *("keep", "attend", "merge"),
}
TILE_KERNELS = {"to_tiles", "multiply_tiles", "attend_tiles"}
NEEDS = {"memcpy", "memset", "_GLOBAL_OFFSET_TABLE_", "__stack_chk_fail"}
CODEBOOK = re.compile(r"cpuinfer::kIq\w+Grid")


def faults(path: Path, isa: str) -> list[str]:
    """What is wrong with the symbols of one object file, a line each."""
    listing = subprocess.run(["nm", "-C", str(path)], check=True, capture_output=True, text=True).stdout
    expected = {f"cpuinfer::{isa}::{kernel}" for kernel in (TILE_KERNELS if isa == "amx" else KERNELS)}
    found: set[str] = set()
    lines = []
    for kind, name in re.findall(r"^[0-9a-f ]{16} (\w) (.+)$", listing, re.MULTILINE):
        plain = name.split("(")[0]
        if kind == "U" and plain not in NEEDS and not CODEBOOK.fullmatch(plain):
            lines.append(f"{path.name}: needs {name} from elsewhere")
        elif kind == "T":
            found.add(plain)
        elif (kind != "U" and not kind.islower()) or kind in "vwu":
            lines.append(f"{path.name}: defines {name} ({kind}), which other files could link to")
    lines += [f"{path.name}: defines {name}, which isa.h does not declare" for name in sorted(found - expected)]
    lines += [f"{path.name}: lacks {name}" for name in sorted(expected - found)]
    return lines


def main() -> int:
    if len(sys.argv) != 2:
        print("usage: check_symbols.py BUILD_FOLDER", file=sys.stderr)
        return 2
    lines = []
    for isa in OBJECTS:
        paths = list(Path(sys.argv[1]).glob(f"**/cpuinfer_core.dir/**/{isa}.cpp.o"))
        if not paths:
            lines.append(f"{isa}.cpp.o: not found below {sys.argv[1]}")
        for path in paths:
            lines += faults(path, isa)
    print("\n".join(lines) if lines else f"{', '.join(OBJECTS)}: no symbol another file could link to")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
