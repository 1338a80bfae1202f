"""What the control groups of this process leave it: CPU time and memory, versions 1 and 2.

A limit holds for everything below the group that sets it, so every group from the process's own up to the mount counts
and the tightest wins.  Files and units: Linux admin-guide/cgroup-v2.rst, admin-guide/cgroup-v1/memory.rst,
scheduler/sched-bwc.rst.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cpuinfer.machine.topology import read_int, read_text

UNIFIED = ""
"""The name under which version 2's one hierarchy goes, as in /proc/self/cgroup."""
USUAL_MOUNTS = {UNIFIED: "sys/fs/cgroup", "cpu": "sys/fs/cgroup/cpu", "memory": "sys/fs/cgroup/memory"}
"""Where the hierarchies are when /proc/self/mountinfo cannot be read."""


@dataclass(frozen=True, slots=True)
class MemoryRoom:
    """What a memory limit is and leaves, in bytes."""

    limit: int
    available: int
    """Up to the limit, counting as free what the kernel holds of files not recently used."""


def cpu_quota(root: Path) -> float | None:
    """CPUs' worth of time the process gets per period; None without a limit."""
    quotas = []
    for group in _groups(root, UNIFIED):
        words = (read_text(group / "cpu.max") or "").split()
        if len(words) == 2 and words[0].isdecimal() and words[1].isdecimal():
            quotas.append((int(words[0]), int(words[1])))
    for group in _groups(root, "cpu"):
        quota = read_int(group / "cpu.cfs_quota_us")  # -1 without a limit
        period = read_int(group / "cpu.cfs_period_us")
        if quota is not None and period is not None:
            quotas.append((quota, period))
    return min((quota / period for quota, period in quotas if period > 0), default=None)


def memory_room(root: Path, total: int) -> MemoryRoom | None:
    """The group with the least memory left; None if none limits the process below the machine's total."""
    rooms = []
    for hierarchy, limit_name, usage_name, idle in (
        (UNIFIED, "memory.max", "memory.current", "inactive_file"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        for group in _groups(root, hierarchy):
            limit = read_int(group / limit_name)
            if limit is not None and limit < total:
                used = (read_int(group / usage_name) or 0) - _statistic(group / "memory.stat", idle)
                rooms.append(MemoryRoom(limit, min(limit, max(0, limit - max(0, used)))))
    if not rooms:
        return None
    return MemoryRoom(min(room.limit for room in rooms), min(room.available for room in rooms))


def _statistic(path: Path, name: str) -> int:
    for line in (read_text(path) or "").splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.isdecimal():
            return int(value)
    return 0


def _groups(root: Path, hierarchy: str) -> Iterator[Path]:
    """The folders of the process's group in a hierarchy and of all above it, up to the mount."""
    path = _own_group(root, hierarchy)
    mount = _mount(root, hierarchy)
    if path is None or mount is None:
        return
    folder, mounted = mount
    # In a container the mount may show only the container's own part; a group outside of it cannot be seen.
    inside = path.relative_to(mounted) if path.is_relative_to(mounted) else PurePosixPath()
    if ".." in inside.parts:
        inside = PurePosixPath()
    yield folder / inside
    for parent in inside.parents:
        yield folder / parent


def _own_group(root: Path, hierarchy: str) -> PurePosixPath | None:
    """The process's group as /proc/self/cgroup names it: lines of `id:controllers:path`."""
    for line in (read_text(root / "proc/self/cgroup") or "").splitlines():
        fields = line.split(":", 2)
        if len(fields) == 3 and hierarchy in fields[1].split(","):
            return PurePosixPath(fields[2])
    return None


def _mount(root: Path, hierarchy: str) -> tuple[Path, PurePosixPath] | None:
    """Where a hierarchy is mounted, and which of its groups is at that place."""
    mountinfo = read_text(root / "proc/self/mountinfo")
    if mountinfo is None:
        return root / USUAL_MOUNTS[hierarchy], PurePosixPath("/")
    for line in mountinfo.splitlines():
        # "31 23 0:28 /group /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu": proc(5)
        before, _, after = line.partition(" - ")
        place, kind = before.split(), after.split()
        if len(place) < 5 or len(kind) < 3:
            continue
        if kind[0] == "cgroup2" if hierarchy == UNIFIED else kind[0] == "cgroup" and hierarchy in kind[2].split(","):
            return root / place[4].lstrip("/"), PurePosixPath(place[3])
    return None
