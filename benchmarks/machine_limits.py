"""What the machine can do at most, measured: reading memory, and arithmetic by instruction set."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
NEEDS = {
    "avx2": {"avx2"},
    "avx512_vnni": {"avx512f", "avx512_vnni"},
    "amx_bf16": {"amx_tile", "amx_bf16"},
    "amx_int8": {"amx_tile", "amx_int8"},
}
"""The flags of the processor that each of `peaks.cpp` needs, as Linux names them; slowest first."""
OF_KERNELS = {"avx2": "avx2", "avx_vnni": "avx2", "avx512_vnni": "avx512_vnni", "amx": "amx_bf16"}
"""Which of them cpuinfer's kernel sets are held against."""
WORKING_SET = 1 << 30
"""Bytes: more than caches hold."""


@dataclass(frozen=True, slots=True)
class Limits:
    """With a number of threads."""

    threads: int
    bandwidth: float
    """Bytes a second."""
    peaks: dict[str, float]
    """Operations a second by instruction set; what could not be measured is left out."""

    @property
    def fastest(self) -> str:
        """The instruction set of the most operations."""
        return max(self.peaks, key=lambda name: self.peaks[name], default="")

    def or_more(self, other: Limits) -> Limits:
        """The greater of each: what disturbs a measurement makes it less."""
        peaks = {name: max(peak, other.peaks.get(name, 0.0)) for name, peak in self.peaks.items()}
        return Limits(self.threads, max(self.bandwidth, other.bandwidth), peaks)


def processor() -> tuple[str, set[str]]:
    """Brand and flags, as the system reports them."""
    brand, flags = platform.machine(), set()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            brand = value.strip()
        elif key.strip() == "flags":
            flags = set(value.split())
    return brand, flags


def measure(threads: int) -> Limits:
    """Takes some seconds, and a C++ compiler for the peaks."""
    from cpuinfer import _core

    return Limits(threads, _core.read_bandwidth(WORKING_SET, threads, seconds=1.0), measure_peaks(threads))


def measure_peaks(threads: int) -> dict[str, float]:
    """Nothing on other processors than x86 or without a compiler."""
    _, flags = processor()
    names = [name for name, needed in NEEDS.items() if needed <= flags]
    compiler = os.environ.get("CXX") or shutil.which("c++")
    if not names or compiler is None:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "peaks"
        options = ["-O3", "-std=c++20", "-pthread"]
        subprocess.run([compiler, *options, str(HERE / "peaks.cpp"), "-o", str(program)], check=True)
        command = [str(program), str(threads), *names]
        return parse(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def parse(output: str) -> dict[str, float]:
    """Of lines of a name and a number."""
    return {name: float(rate) for name, rate in (line.split() for line in output.splitlines())}
