"""What is read of processes, control groups and the machine, from files written by hand as the kernel writes them."""

from pathlib import Path

import pytest

from tools.profile.scopes import Usage
from tools.profile.scopes.cgroup import ContainerScope
from tools.profile.scopes.host import HostCpu, host_cpu, host_memory_mib
from tools.profile.scopes.tree import TreeScope

# These machines have ticks of 10 ms and pages of 4 KiB: 256 pages are 1 MiB.
CONTAINER_ID = "6f3a" * 16
MOUNTS_V1 = """\
23 1 0:21 / /proc rw,nosuid - proc proc rw
31 24 0:27 / /sys/fs/cgroup/memory rw,nosuid,nodev shared:9 - cgroup cgroup rw,memory
32 24 0:28 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid,nodev - cgroup cgroup rw,cpu,cpuacct
33 24 0:29 / /sys/fs/cgroup/unified rw,nosuid,nodev - cgroup2 cgroup2 rw
"""
MOUNTS_V2 = "30 24 0:26 / /sys/fs/cgroup rw,nosuid,nodev - cgroup2 cgroup2 rw,nsdelegate\n"
# The profiler in a control group of its own, whose mount shows only what lies below it.
MOUNTS_V2_BELOW = "30 24 0:26 /pod /sys/fs/cgroup rw,nosuid,nodev - cgroup2 cgroup2 rw\n"


def write_process(
    root: Path, pid: int, parent: int, session: int, ticks: tuple[int, int, int, int], pages: int, name: str = "sh"
) -> None:
    """``ticks``: user, system, and those of children that were waited for."""
    folder = root / "proc" / str(pid)
    folder.mkdir(parents=True, exist_ok=True)
    times = " ".join(map(str, ticks))
    relations = f"{parent} {session} {session} 0 -1 4194304 90 80 0 0"
    (folder / "stat").write_text(f"{pid} ({name}) S {relations} {times} 20 0 1 0 5000 99 {pages} 1844 1\n")


def remove_process(root: Path, pid: int) -> None:
    (root / "proc" / str(pid) / "stat").unlink()
    (root / "proc" / str(pid)).rmdir()


def test_tree_is_the_session_and_its_descendants(tmp_path: Path) -> None:
    write_process(tmp_path, 1, 0, 1, (900, 900, 900, 900), 9999)
    write_process(tmp_path, 100, 1, 100, (10, 5, 0, 0), 256)
    write_process(tmp_path, 101, 100, 100, (20, 0, 0, 0), 512, name="a) S 1 (b")
    write_process(tmp_path, 103, 102, 103, (1, 0, 0, 0), 256)  # its parent has the larger number's place
    write_process(tmp_path, 102, 101, 102, (2, 0, 0, 0), 256)  # left the session
    write_process(tmp_path, 104, 1, 100, (7, 0, 0, 0), 256)  # its parent ended before it was ever seen
    write_process(tmp_path, 200, 1, 200, (500, 0, 0, 0), 9999)
    (tmp_path / "proc" / "meminfo").touch()
    assert TreeScope(100, tmp_path).read() == Usage(6.0, 0.45)


def test_cpu_time_of_a_tree_never_falls(tmp_path: Path) -> None:
    """What an ended child used stays, and is not counted again when its parent has waited for it."""
    write_process(tmp_path, 100, 1, 100, (10, 0, 0, 0), 256)
    write_process(tmp_path, 101, 100, 100, (50, 0, 0, 0), 512)
    scope = TreeScope(100, tmp_path)
    assert scope.read() == Usage(3.0, 0.6)
    remove_process(tmp_path, 101)
    assert scope.read() == Usage(1.0, 0.6)
    write_process(tmp_path, 100, 1, 100, (10, 0, 50, 5), 256)  # it lived for 5 ticks more than was seen
    assert scope.read() == Usage(1.0, 0.65)
    remove_process(tmp_path, 100)
    assert scope.read() == Usage(0.0, 0.65)


def test_child_that_lived_between_two_readings_is_in_its_parents_time(tmp_path: Path) -> None:
    write_process(tmp_path, 100, 1, 100, (1, 0, 0, 0), 256)
    scope = TreeScope(100, tmp_path)
    scope.read()
    write_process(tmp_path, 100, 1, 100, (1, 0, 30, 10), 256)
    assert scope.read().cpu_s == 0.41


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def container_scope(root: Path, mounts: str, groups: str) -> ContainerScope:
    write(root / "id", CONTAINER_ID)
    write(root / "proc/self/mountinfo", mounts)
    write(root / "proc/77/cgroup", groups)
    write(root / "proc/78/cgroup", "0::/another\n")
    return ContainerScope(root / "id", root)


def test_container_by_version_1(tmp_path: Path) -> None:
    groups = f"12:cpu,cpuacct:/docker/{CONTAINER_ID}\n5:memory:/docker/{CONTAINER_ID}\n0::/docker/{CONTAINER_ID}\n"
    scope = container_scope(tmp_path, MOUNTS_V1, groups)
    memory = tmp_path / "sys/fs/cgroup/memory/docker" / CONTAINER_ID
    write(memory / "memory.usage_in_bytes", str(300 * 2**20))
    write(memory / "memory.stat", f"cache 9\ninactive_file 4096\ntotal_inactive_file {100 * 2**20}\n")
    write(tmp_path / f"sys/fs/cgroup/cpu,cpuacct/docker/{CONTAINER_ID}/cpuacct.usage", "1500000000\n")
    assert scope.read() == Usage(200.0, 1.5)


def test_container_that_has_entered_one_group_of_version_1_is_not_the_machine(tmp_path: Path) -> None:
    scope = container_scope(tmp_path, MOUNTS_V1, f"12:cpu,cpuacct:/docker/{CONTAINER_ID}\n5:memory:/\n0::/\n")
    write(tmp_path / "sys/fs/cgroup/memory/memory.usage_in_bytes", str(3000 * 2**20))
    write(tmp_path / f"sys/fs/cgroup/cpu,cpuacct/docker/{CONTAINER_ID}/cpuacct.usage", "1500000000\n")
    assert scope.read() == Usage(None, 1.5)
    write(tmp_path / "proc/77/cgroup", f"12:cpu,cpuacct:/docker/{CONTAINER_ID}\n5:memory:/docker/{CONTAINER_ID}\n")
    write(tmp_path / f"sys/fs/cgroup/memory/docker/{CONTAINER_ID}/memory.usage_in_bytes", str(300 * 2**20))
    assert scope.read() == Usage(300.0, 1.5)


@pytest.mark.parametrize(
    ("mounts", "group"),
    [(MOUNTS_V2, "/system.slice/docker-{}.scope"), (MOUNTS_V2_BELOW, "/pod/system.slice/docker-{}.scope")],
)
def test_container_by_version_2(mounts: str, group: str, tmp_path: Path) -> None:
    scope = container_scope(tmp_path, mounts, f"0::{group.format(CONTAINER_ID)}\n")
    folder = tmp_path / f"sys/fs/cgroup/system.slice/docker-{CONTAINER_ID}.scope"
    write(folder / "memory.current", str(50 * 2**20))
    write(folder / "memory.stat", f"anon 1\ninactive_file {20 * 2**20}\n")
    write(folder / "cpu.stat", "usage_usec 2500000\nuser_usec 1\n")
    assert scope.read() == Usage(30.0, 2.5)


def test_container_is_nothing_before_it_starts_and_after_it_ends(tmp_path: Path) -> None:
    scope = ContainerScope(tmp_path / "id", tmp_path)
    assert scope.read() == Usage(None, None)
    scope = container_scope(tmp_path, MOUNTS_V2, f"0::/docker/{CONTAINER_ID}\n")
    assert scope.read() == Usage(None, None)
    folder = tmp_path / "sys/fs/cgroup/docker" / CONTAINER_ID
    write(folder / "memory.current", str(2**20))
    write(folder / "cpu.stat", "usage_usec 1000000\n")
    assert scope.read() == Usage(1.0, 1.0)
    for path in folder.iterdir():
        path.unlink()
    assert scope.read() == Usage(None, None)


def test_host(tmp_path: Path) -> None:
    write(tmp_path / "proc/stat", "cpu  100 20 50 4000 300 7 3 0 0 0\ncpu0 1 1 1 1\n")
    assert host_cpu(tmp_path) == HostCpu(user_s=1.0, system_s=0.5, idle_s=40.0, busy_s=1.8)
    lines = {"MemTotal": 1000, "MemFree": 200, "MemAvailable": 500, "Buffers": 50, "Cached": 300, "SReclaimable": 50}
    write(tmp_path / "proc/meminfo", "".join(f"{name}: {mib * 1024} kB\n" for name, mib in lines.items()))
    assert host_memory_mib(tmp_path) == 400
