"""The machine as read from trees of files like those of containers, hybrid laptops and bare corners."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from cpuinfer import machine
from cpuinfer.errors import InvalidRequest, MemoryLimit

V2_MOUNT = "30 1 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNTS = (
    "33 31 0:30 {0} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 {0} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)


class FakeMachine:
    """A tree of files under a folder, and the CPUs the process may run on."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.root = root
        self._patch = patch
        patch.delenv("CPUINFER_THREADS", raising=False)

    def write(self, path: str, text: str | int) -> None:
        """Put a file there, ending in a newline as the kernel's do."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")

    def run_on(self, cpus: Iterable[int]) -> None:
        """The process's affinity."""
        self._patch.setattr(os, "sched_getaffinity", lambda _pid: set(cpus))

    def cores(self, *siblings: str, **figures: list[int]) -> None:
        """Cores by the CPU list of their threads; figures are one number a core, by the name of their file."""
        for index, threads in enumerate(siblings):
            for cpu in machine.topology.parse_cpus(threads):
                self.write(f"sys/devices/system/cpu/cpu{cpu}/topology/core_cpus_list", threads)
                for name, values in figures.items():
                    self.write(f"sys/devices/system/cpu/cpu{cpu}/{name.replace('__', '/')}", values[index])

    def group(self, path: str, **files: str | int) -> None:
        """A version 2 control group, its files named with `_` for `.`."""
        for name, text in files.items():
            self.write(f"sys/fs/cgroup/{path}/{name.replace('_', '.', 1)}", text)

    def threads(self) -> int:
        """The default number of threads."""
        return machine.default_threads(self.root).threads


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeMachine:
    made = FakeMachine(tmp_path, monkeypatch)
    made.write("sys/devices/system/cpu/online", "0-15")
    made.cores(*(str(cpu) for cpu in range(16)))
    made.run_on(range(16))
    made.write("proc/meminfo", "MemTotal: 1048576 kB\nMemFree: 1000 kB\nMemAvailable: 524288 kB")
    return made


def in_container(fake: FakeMachine) -> None:
    fake.write("proc/self/cgroup", "0::/")
    fake.write("proc/self/mountinfo", V2_MOUNT)


def test_without_limits_every_core_gets_a_thread(fake: FakeMachine) -> None:
    assert machine.default_threads(fake.root) == machine.ThreadChoice(
        16, "16: 16 physical performance cores, affinity 16, no cgroup quota"
    )


def test_a_container_with_a_quota_of_4_on_16_cpus_gets_4_threads(fake: FakeMachine) -> None:
    in_container(fake)
    fake.group(".", cpu_max="400000 100000")
    assert machine.default_threads(fake.root) == machine.ThreadChoice(
        4, "4: 16 physical performance cores, affinity 16, cgroup quota 4"
    )


@pytest.mark.parametrize(("quota", "threads"), [("150000 100000", 1), ("50000 100000", 1), ("290000 100000", 2)])
def test_a_fractional_quota_is_rounded_down_but_not_to_nothing(fake: FakeMachine, quota: str, threads: int) -> None:
    in_container(fake)
    fake.group(".", cpu_max=quota)
    assert fake.threads() == threads
    assert machine.inspect(fake.root).quota == int(quota.split(maxsplit=1)[0]) / 100000


def test_no_quota_is_written_max(fake: FakeMachine) -> None:
    in_container(fake)
    fake.group(".", cpu_max="max 100000")
    assert machine.inspect(fake.root).quota is None


def test_the_tightest_quota_on_the_way_to_the_mount_holds(fake: FakeMachine) -> None:
    fake.write("proc/self/cgroup", "0::/pods/pod1/box")
    fake.write("proc/self/mountinfo", V2_MOUNT)
    fake.group("pods", cpu_max="800000 100000")
    fake.group("pods/pod1", cpu_max="300000 100000")
    fake.group("pods/pod1/box", cpu_max="max 100000")
    fake.group("pods/other", cpu_max="100000 100000")
    assert fake.threads() == 3


def test_the_quota_is_found_without_mountinfo(fake: FakeMachine) -> None:
    fake.write("proc/self/cgroup", "0::/box")
    fake.group("box", cpu_max="200000 100000")
    assert fake.threads() == 2


def test_a_group_outside_of_what_is_mounted_counts_as_the_mount(fake: FakeMachine) -> None:
    fake.write("proc/self/cgroup", "0::/../elsewhere")
    fake.write("proc/self/mountinfo", V2_MOUNT)
    fake.group(".", cpu_max="200000 100000")
    fake.write("sys/fs/elsewhere/cpu.max", "100000 100000")
    assert fake.threads() == 2


@pytest.mark.parametrize(("mounted", "inside"), [("/", "docker/box"), ("/docker", "box"), ("/docker/box", ".")])
def test_a_version_1_quota_is_read_whether_the_mount_shows_all_or_the_container_alone(
    fake: FakeMachine, mounted: str, inside: str
) -> None:
    fake.write("proc/self/cgroup", "4:memory:/docker/box\n3:cpu,cpuacct:/docker/box\n1:name=systemd:/docker/box")
    fake.write("proc/self/mountinfo", V1_MOUNTS.format(mounted))
    folder = f"sys/fs/cgroup/cpu,cpuacct/{inside}"
    fake.write(f"{folder}/cpu.cfs_quota_us", 250000)
    fake.write(f"{folder}/cpu.cfs_period_us", 50000)
    assert fake.threads() == 5


def test_a_version_1_quota_of_minus_1_is_no_quota(fake: FakeMachine) -> None:
    fake.write("proc/self/cgroup", "3:cpu,cpuacct:/")
    fake.write("proc/self/mountinfo", V1_MOUNTS.format("/"))
    fake.write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", -1)
    fake.write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", 100000)
    assert machine.inspect(fake.root).quota is None


def test_a_laptop_of_6_fast_and_8_slow_cores_gets_6_threads(fake: FakeMachine) -> None:
    fake.write("sys/devices/system/cpu/online", "0-19")
    fake.run_on(range(20))
    fake.cores(*(f"{2 * core}-{2 * core + 1}" for core in range(6)), *(str(cpu) for cpu in range(12, 20)))
    fake.write("sys/devices/cpu_core/cpus", "0-11")
    fake.write("sys/devices/cpu_atom/cpus", "12-19")
    assert fake.threads() == 6
    assert machine.inspect(fake.root).physical_cores == 14


def test_a_process_kept_on_slow_cores_uses_those(fake: FakeMachine) -> None:
    fake.write("sys/devices/cpu_core/cpus", "0-7")
    fake.write("sys/devices/cpu_atom/cpus", "8-15")
    fake.run_on(range(8, 12))
    assert fake.threads() == 4


@pytest.mark.parametrize("file", ["cpu_capacity", "cpufreq__cpuinfo_max_freq"])
@pytest.mark.parametrize(
    ("figures", "threads"),
    [
        ([1000, 1000, 500, 500, 500, 500], 2),
        ([1000, 790, 790, 300, 300, 300], 3),  # one prime core and two large ones
        ([1000, 950, 900, 850, 850, 850], 6),  # turbo limits, not kinds
        ([1000, 801, 801, 801, 801, 801], 6),
        ([1000, 799, 799, 799, 799, 799], 1),
    ],
)
def test_kinds_of_cores_are_told_apart_by_the_widest_step(
    fake: FakeMachine, file: str, figures: list[int], threads: int
) -> None:
    fake.run_on(range(6))
    fake.cores(*(str(cpu) for cpu in range(6)), **{file: figures})
    assert fake.threads() == threads


def test_equal_capacities_leave_the_clock_to_decide(fake: FakeMachine) -> None:
    fake.run_on(range(4))
    fake.cores("0", "1", "2", "3", cpu_capacity=[1024] * 4, cpufreq__cpuinfo_max_freq=[5_000_000, 3_000_000] * 2)
    assert fake.threads() == 2


def test_threads_of_a_core_count_once_and_only_within_the_affinity(fake: FakeMachine) -> None:
    fake.cores(*(f"{core},{core + 8}" for core in range(8)))
    fake.run_on([0, 8, 1, 9, 2])
    assert machine.default_threads(fake.root) == machine.ThreadChoice(
        3, "3: 3 physical performance cores, affinity 5, no cgroup quota"
    )
    found = machine.topology.physical_cores(fake.root, frozenset({0, 8, 2}))
    assert found == {frozenset({0, 8}), frozenset({2})}


def test_with_no_files_at_all_the_affinity_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = FakeMachine(tmp_path, monkeypatch)
    bare.run_on([0, 1, 2])
    assert bare.threads() == 3
    seen = machine.inspect(tmp_path)
    assert (seen.physical_cores, seen.quota, seen.numa_nodes, seen.caches) == (3, None, (), ())
    assert seen.memory.total == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < seen.memory.available <= seen.memory.total


def test_files_of_nonsense_are_taken_as_missing(fake: FakeMachine) -> None:
    in_container(fake)
    fake.group(".", cpu_max="many", memory_max="-5")
    fake.write("sys/devices/system/cpu/online", "none-of-these")
    fake.write("sys/devices/system/cpu/cpu0/topology/core_cpus_list", "0-")
    fake.write("proc/meminfo", "MemTotal: some\n:\nMemAvailable")
    fake.write("sys/devices/system/cpu/cpu0/cache/index0/size", "big")
    assert fake.threads() == 16
    assert machine.available_memory(fake.root) > 0


def test_the_environment_overrides_the_number_of_threads(fake: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CPUINFER_THREADS", "40")
    assert machine.default_threads(fake.root) == machine.ThreadChoice(40, "40: set by CPUINFER_THREADS")


@pytest.mark.parametrize("value", ["0", "-1", "2.5", "all", "1025", "9" * 5000, "٣"])
def test_an_impossible_number_of_threads_in_the_environment_is_refused(
    fake: FakeMachine, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("CPUINFER_THREADS", value)
    with pytest.raises(InvalidRequest, match="expected an integer of 1 to 1024"):
        machine.default_threads(fake.root)


def test_memory_without_groups_is_the_kernels(fake: FakeMachine) -> None:
    assert machine.inspect(fake.root).memory == machine.Memory(total=1 << 30, available=1 << 29)


def test_memory_is_what_the_tightest_group_leaves(fake: FakeMachine) -> None:
    fake.write("proc/self/cgroup", "0::/pod/box")
    fake.write("proc/self/mountinfo", V2_MOUNT)
    fake.group("pod", memory_max=256 << 20, memory_current=250 << 20)
    fake.group("pod/box", memory_max=128 << 20, memory_current=28 << 20)
    assert machine.inspect(fake.root).memory == machine.Memory(total=128 << 20, available=6 << 20)


def test_files_the_kernel_can_drop_do_not_count_as_used(fake: FakeMachine) -> None:
    in_container(fake)
    fake.group(".", memory_max=100 << 20, memory_current=90 << 20, memory_stat=f"anon 4096\ninactive_file {50 << 20}")
    assert machine.available_memory(fake.root) == 60 << 20


def test_a_group_over_its_limit_leaves_nothing(fake: FakeMachine) -> None:
    in_container(fake)
    fake.group(".", memory_max=1 << 20, memory_current=2 << 20)
    assert machine.available_memory(fake.root) == 0


def test_a_version_1_memory_limit_is_read(fake: FakeMachine) -> None:
    fake.write("proc/self/cgroup", "4:memory:/docker/box\n0::/")
    fake.write("proc/self/mountinfo", V1_MOUNTS.format("/"))
    for group, limit in (("", 0x7FFFFFFFFFFFF000), ("docker/box", 64 << 20)):
        fake.write(f"sys/fs/cgroup/memory/{group}/memory.limit_in_bytes", limit)
        fake.write(f"sys/fs/cgroup/memory/{group}/memory.usage_in_bytes", 24 << 20)
    assert machine.inspect(fake.root).memory == machine.Memory(total=64 << 20, available=40 << 20)


def test_caches_and_numa_nodes_are_counted(fake: FakeMachine) -> None:
    fake.run_on([0, 1])
    for cpu in (0, 1):
        for index, (level, kind, size, shared) in enumerate(
            [
                (1, "Data", "32K", cpu),
                (1, "Instruction", "64K", cpu),
                (2, "Unified", "1M", cpu),
                (3, "Unified", "32768K", "0-1"),
            ]
        ):
            folder = f"sys/devices/system/cpu/cpu{cpu}/cache/index{index}"
            fake.write(f"{folder}/level", level)
            fake.write(f"{folder}/type", kind)
            fake.write(f"{folder}/size", size)
            fake.write(f"{folder}/shared_cpu_list", shared)
    fake.write("sys/devices/system/node/node0/cpulist", "0-15")
    fake.write("sys/devices/system/node/node0/meminfo", "Node 0 MemTotal:        1024 kB\nNode 0 MemFree: 1 kB")
    seen = machine.inspect(fake.root)
    assert seen.caches == (
        machine.Cache(1, "data", 32 << 10, 2),
        machine.Cache(2, "unified", 1 << 20, 2),
        machine.Cache(3, "unified", 32 << 20, 1),
    )
    assert seen.cache_bytes(2) == 1 << 20
    assert seen.cache_bytes(4) is None
    assert seen.numa_nodes == (machine.NumaNode(0, frozenset(range(16)), 1 << 20),)


def test_this_machine_gives_at_least_a_thread_and_some_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CPUINFER_THREADS", raising=False)
    assert 1 <= machine.default_threads().threads <= len(os.sched_getaffinity(0))
    seen = machine.inspect()
    assert 0 < seen.memory.available <= seen.memory.total
    assert seen.affinity == frozenset(os.sched_getaffinity(0))


def test_usable_features_are_among_those_the_kernel_lists() -> None:
    _core = pytest.importorskip("cpuinfer._core")
    features = _core.cpu_features()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = next(line for line in lines if line.startswith("flags")).split()
    assert set(features["usable"]) <= set(features["present"])
    for name, flag in {"avx2": "avx2", "avx512": "avx512bw", "avx512_vnni": "avx512_vnni"}.items():
        assert (name in features["usable"]) == (flag in flags)
    assert any(line.startswith("model name") and features["brand"] in line for line in lines)


def test_read_bandwidth_reads_memory_of_its_own() -> None:
    """What is not written is one page of zeros, whatever its size."""
    script = (
        "import re\nfrom pathlib import Path\nfrom cpuinfer import _core\n"
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]) << 10\n"
        "before = peak()\n_core.read_bandwidth(256 << 20, 2, 0.01)\nprint(peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 240 << 20


def test_read_bandwidth_is_a_number_of_bytes_per_second() -> None:
    _core = pytest.importorskip("cpuinfer._core")
    for threads in (1, 2, 3):
        measured = _core.read_bandwidth(1 << 20, threads, 0.01)
        assert math.isfinite(measured)
        assert measured > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1), "bytes: 0 for 1 threads, expected at least 4096 each"),
        ((8191, 2), "bytes: 8191 for 2 threads"),
        ((-1, 1), "bytes: -1"),
        ((1 << 20, 0), "threads: 0, expected 1 to 1024"),
        ((1 << 20, 1025), "threads: 1025"),
        ((1 << 20, 1, 0.0), "seconds: 0"),
        ((1 << 20, 1, math.nan), "seconds: nan"),
        ((1 << 20, 1, 61.0), "seconds: 61"),
    ],
)
def test_impossible_measurements_are_refused(arguments: tuple[int, int] | tuple[int, int, float], message: str) -> None:
    _core = pytest.importorskip("cpuinfer._core")
    with pytest.raises(InvalidRequest, match=message):
        _core.read_bandwidth(*arguments)


def test_a_working_set_beyond_memory_is_a_memory_error() -> None:
    _core = pytest.importorskip("cpuinfer._core")
    with pytest.raises(MemoryLimit, match="cannot be allocated"):
        _core.read_bandwidth(1 << 62, 1)
