"""Times the kernels on one thread beside what the machine can do, and prints a Markdown table.

    python benchmarks/kernels.py        (needs cmake and a C++ compiler; builds the core in a temporary folder)

A sweep with 1 row is decoding: it should move weights as fast as memory is read.  A sweep with 64 rows is a prompt: it
should come near the dot-product peak; from 2 to 16 are batches.  Tile units take prompts alone: of `amx` there are 64
and 512 rows.  Median and quartile distance of 15 repeats.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import machine_limits

ROOT = Path(__file__).resolve().parent.parent


def build(folder: Path) -> Path:
    """Builds the native benchmark there and returns its path."""
    options = ["-DCPUINFER_PYTHON=OFF", "-DCPUINFER_BENCHMARKS=ON"]
    subprocess.run(["cmake", "-S", str(ROOT), "-B", str(folder), *options], check=True, stdout=subprocess.DEVNULL)
    command = ["cmake", "--build", str(folder), "--target", "bench_kernels", "-j"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder / "bench_kernels"


def table(measurements: list[list[str]], peaks: Mapping[str, float]) -> str:
    """The measurements as Markdown: speed, and the share of the machine's limit that it reaches."""
    reads = {(row[1], row[3]): float(row[3]) / float(row[5]) for row in measurements if row[0] == "read"}
    lines = [
        "| kernels | weights | MB | rows | GB/s | of read | GOP/s | of peak | spread |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, what, rows, size, weights, seconds, spread in measurements:
        if name == "read":
            continue
        amount, median = float(size), float(seconds)
        of_read = of_peak = products = ""
        if name != "pack":
            speed = 2 * float(weights) * int(rows) / median
            products = f"{speed / 1e9:.1f}"
            if (what, size) in reads:
                of_read = f"{amount / median / reads[what, size]:.0%}"
            if (peak := machine_limits.OF_KERNELS.get(name)) in peaks:
                of_peak = f"{speed / peaks[peak]:.0%}"
        rate, spread_share = f"{amount / median / 1e9:.1f}", f"{float(spread) / median:.0%}"
        cells = [name, what, f"{amount / 1e6:.2f}", rows, rate, of_read, products, of_peak, spread_share]
        lines.append(f"| {' | '.join(cells)} |")
    limits = [f"{name} peak {peak / 1e9:.0f} GOP/s" for name, peak in peaks.items()]
    limits += [
        f"reading {float(size) / 1e6:.1f} MB ({what}) {rate / 1e9:.1f} GB/s" for (what, size), rate in reads.items()
    ]
    return "\n".join([*lines, "", f"{machine_limits.processor()[0]}, 1 thread; " + "; ".join(limits)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, help="a bench_kernels that is already built")
    binary = parser.parse_args().binary
    with tempfile.TemporaryDirectory() as folder:
        command = [str(binary or build(Path(folder)))]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    print(table([line.split(",") for line in output.splitlines()], machine_limits.measure_peaks(1)))


if __name__ == "__main__":
    main()
