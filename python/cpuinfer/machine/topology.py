"""What sysfs says of the processors: which share a core, which are the fast ones, their caches and NUMA nodes."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from pathlib import Path

CPUS = "sys/devices/system/cpu"
CLASS_STEP = 0.8
"""Cores slower than this share of the next faster ones are of another class; single cores' turbo limits differ less."""


@dataclass(frozen=True, slots=True)
class Cache:
    """The caches of one level, kind and size that the process may use."""

    level: int
    kind: str
    """data or unified; instruction caches are left out."""
    bytes: int
    """Of one instance."""
    instances: int


@dataclass(frozen=True, slots=True)
class NumaNode:
    """A NUMA node and what belongs to it."""

    node: int
    cpus: frozenset[int]
    memory: int
    """Bytes; 0 where sysfs does not say."""


def read_text(path: Path) -> str | None:
    """The file's text without surrounding space; None if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def read_int(path: Path) -> int | None:
    """The number a file holds; None if it cannot be read or holds something else."""
    text = read_text(path)
    return int(text) if text is not None and text.isdecimal() else None


def parse_cpus(text: str | None) -> frozenset[int]:
    """The numbers of a kernel CPU list such as `0-3,8,10-11`; empty for anything else."""
    cpus: set[int] = set()
    for part in (text or "").split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdecimal() or not (last or first).isdecimal():
            return frozenset()
        cpus.update(range(int(first), int(last or first) + 1))
    return frozenset(cpus)


def online_cpus(root: Path) -> frozenset[int]:
    """The logical CPUs the kernel runs."""
    return parse_cpus(read_text(root / CPUS / "online")) or frozenset(range(os.cpu_count() or 1))


def physical_cores(root: Path, cpus: frozenset[int]) -> frozenset[frozenset[int]]:
    """Those of the CPUs that share a core, core by core; a CPU of unknown siblings is a core of its own."""
    cores = set()
    for cpu in cpus:
        topology = root / CPUS / f"cpu{cpu}/topology"
        siblings = read_text(topology / "core_cpus_list") or read_text(topology / "thread_siblings_list")
        cores.add((parse_cpus(siblings) & cpus) | {cpu})
    return frozenset(cores)


def performance_cpus(root: Path, cpus: frozenset[int]) -> frozenset[int]:
    """Those of the CPUs that are of the fast kind: all of them where there is one kind.

    Asked in turn: the two kinds x86 kernels name, the kernel's figures of capacity, the highest clock of each CPU.
    """
    fast = parse_cpus(read_text(root / "sys/devices/cpu_core/cpus"))
    slow = parse_cpus(read_text(root / "sys/devices/cpu_atom/cpus"))
    if fast and slow:
        return (fast & cpus) or cpus
    for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
        figures = {cpu: read_int(root / CPUS / f"cpu{cpu}" / name) or 0 for cpu in cpus}
        threshold = _class_threshold(frozenset(figures.values()))
        if threshold:
            return frozenset(cpu for cpu, figure in figures.items() if figure >= threshold)
    return cpus


def _class_threshold(figures: frozenset[int]) -> int:
    """The least figure of the fast kind: the one above the widest step; 0 where no step is wide or a figure is missing.

    Not the highest figure alone: a telephone's one prime core leaves the large ones beside it worth using.
    """
    if not all(figures):
        return 0
    falling = sorted(figures, reverse=True)
    steps = [(lower / upper, upper) for upper, lower in itertools.pairwise(falling)]
    ratio, threshold = min(steps, default=(1.0, 0))
    return threshold if ratio < CLASS_STEP else 0


def caches(root: Path, cpus: frozenset[int]) -> tuple[Cache, ...]:
    """Data and unified caches of the CPUs, nearest first."""
    found: dict[tuple[int, str, int], set[frozenset[int]]] = {}
    for cpu in cpus:
        for index in (root / CPUS / f"cpu{cpu}/cache").glob("index[0-9]*"):
            level, size = read_int(index / "level"), _parse_size(read_text(index / "size"))
            kind = (read_text(index / "type") or "").lower()
            if level is None or size is None or kind not in ("data", "unified"):
                continue
            shared = parse_cpus(read_text(index / "shared_cpu_list")) or frozenset({cpu})
            found.setdefault((level, kind, size), set()).add(shared)
    return tuple(Cache(*key, instances=len(instances)) for key, instances in sorted(found.items()))


def _parse_size(text: str | None) -> int | None:
    """Bytes of a sysfs cache size such as `512K`."""
    if not text:
        return None
    digits, unit = text.rstrip("KMG"), text[-1]
    return int(digits) << {"K": 10, "M": 20, "G": 30}.get(unit, 0) if digits.isdecimal() else None


def numa_nodes(root: Path) -> tuple[NumaNode, ...]:
    """The NUMA nodes, by number; empty where the kernel knows none."""
    nodes = []
    for folder in (root / "sys/devices/system/node").glob("node[0-9]*"):
        number = folder.name.removeprefix("node")
        if number.isdecimal():
            memory = _memory_of_node(read_text(folder / "meminfo") or "")
            nodes.append(NumaNode(int(number), parse_cpus(read_text(folder / "cpulist")), memory))
    return tuple(sorted(nodes, key=lambda node: node.node))


def _memory_of_node(meminfo: str) -> int:
    """Bytes of `Node 0 MemTotal:  24684096 kB`."""
    for line in meminfo.splitlines():
        words = line.split()
        if len(words) >= 4 and words[2] == "MemTotal:" and words[3].isdecimal():
            return int(words[3]) << 10
    return 0
