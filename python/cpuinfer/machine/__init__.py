"""What this process may use of the machine: processors, memory, and how many threads make sense."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

from cpuinfer.errors import InvalidRequest
from cpuinfer.machine import cgroup, topology
from cpuinfer.machine.topology import Cache, NumaNode

MOST_THREADS = 1024
"""kMostWorkers of the native core."""


@dataclass(frozen=True, slots=True)
class ThreadChoice:
    """A number of threads and why it is that."""

    threads: int
    reason: str
    """Such as `2: 2 physical performance cores, affinity 2, no cgroup quota`."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of memory, as far as the control groups let the process use it."""

    total: int
    available: int


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine as this process may use it."""

    cpus: frozenset[int]
    """Logical CPUs online."""
    affinity: frozenset[int]
    """Those the process may run on."""
    quota: float | None
    """CPUs' worth of time the control groups allow; None without a limit."""
    physical_cores: int
    """Within the affinity; threads of one core count once."""
    performance_cores: int
    """Physical cores of the fast kind; all of them where there is one kind."""
    numa_nodes: tuple[NumaNode, ...]
    caches: tuple[Cache, ...]
    memory: Memory

    def cache_bytes(self, level: int) -> int | None:
        """Of the largest data or unified cache of a level."""
        return max((cache.bytes for cache in self.caches if cache.level == level), default=None)


def inspect(root: Path = Path("/")) -> Machine:
    """Look at the machine; sysfs and procfs are read under `root`, what they lack is taken as simple as possible."""
    cpus = topology.online_cpus(root)
    affinity = _affinity(cpus)
    return Machine(
        cpus=cpus,
        affinity=affinity,
        quota=cgroup.cpu_quota(root),
        physical_cores=len(topology.physical_cores(root, affinity)),
        performance_cores=_performance_cores(root, affinity),
        numa_nodes=topology.numa_nodes(root),
        caches=topology.caches(root, affinity),
        memory=_memory(root),
    )


def default_threads(root: Path = Path("/")) -> ThreadChoice:
    """Threads to decode with: the least of affinity, whole CPUs of the quota, and physical performance cores.

    CPUINFER_THREADS overrides it; InvalidRequest if that is no integer of 1 to 1024.
    """
    if asked := os.environ.get("CPUINFER_THREADS"):
        if not (asked.isascii() and asked.isdecimal() and len(asked) <= 4 and 1 <= int(asked) <= MOST_THREADS):
            raise InvalidRequest(f"CPUINFER_THREADS={asked}: expected an integer of 1 to {MOST_THREADS}")
        return ThreadChoice(int(asked), f"{asked}: set by CPUINFER_THREADS")
    affinity = _affinity(topology.online_cpus(root))
    cores = _performance_cores(root, affinity)
    quota = cgroup.cpu_quota(root)
    whole = MOST_THREADS if quota is None else math.floor(quota)
    threads = max(1, min(len(affinity), cores, whole, MOST_THREADS))
    plural = "" if cores == 1 else "s"
    limit = "no cgroup quota" if quota is None else f"cgroup quota {quota:g}"
    return ThreadChoice(
        threads, f"{threads}: {cores} physical performance core{plural}, affinity {len(affinity)}, {limit}"
    )


def available_memory(root: Path = Path("/")) -> int:
    """Bytes the process can still take without swapping or meeting a limit."""
    return _memory(root).available


def _affinity(cpus: frozenset[int]) -> frozenset[int]:
    return frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cpus


def _performance_cores(root: Path, affinity: frozenset[int]) -> int:
    return len(topology.physical_cores(root, topology.performance_cpus(root, affinity)))


def _memory(root: Path) -> Memory:
    figures = {}
    for line in (topology.read_text(root / "proc/meminfo") or "").splitlines():
        name, _, value = line.partition(":")
        words = value.split()
        if words and words[0].isdecimal():
            figures[name] = int(words[0]) << 10  # the kernel's kB are KiB
    page = os.sysconf("SC_PAGE_SIZE")
    total = figures.get("MemTotal") or os.sysconf("SC_PHYS_PAGES") * page
    available = figures.get("MemAvailable", figures.get("MemFree"))
    if available is None:
        available = min(total, os.sysconf("SC_AVPHYS_PAGES") * page)
    room = cgroup.memory_room(root, total)
    return Memory(min(total, room.limit), min(available, room.available)) if room else Memory(total, available)
