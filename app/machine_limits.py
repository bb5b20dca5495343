"""What this process may use of the machine: memory and processors, as control groups and the kernel tell.

A process lies in a control group, that in another, up to the mount point; the tightest of all of them counts. In a
container the mount point is the container's own group. Version 1 has one tree per controller, version 2 a single one.
"""

import ctypes
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from pathlib import Path, PurePosixPath

DEFAULT_MAX_MEMORY = "28g"  # the paper's machines had 28 GB

_M_MMAP_THRESHOLD = -3  # glibc's malloc.h
_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_MEMORY_LIMITS = ("memory.max", "memory.high", "memory.limit_in_bytes")  # v2, v2, v1
_MEMORY_USED = ("memory.current", "memory.usage_in_bytes")
_CACHE_FIELDS = ("total_inactive_file", "inactive_file")  # v1's sum over the groups below; v2's, which is that sum


@dataclass(frozen=True)
class MemoryLimit:
    """What this process may hold in all.

    Attributes:
        limit_bytes: resident memory, what it holds already among it.
        source: who says so, for messages.
    """

    limit_bytes: int
    source: str


def parse_bytes(text: str) -> int:
    """Bytes in "28g", "1500m", "2GiB" or "1073741824"; units are powers of 1024, as Docker's.

    Raises:
        ValueError: it is none of these, or nothing.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmgt]?)(?:i?b)?", text.strip().lower())
    size = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if size < 1:
        raise ValueError(f"{text!r}: expected a size such as 28g, 1500m or a number of bytes")
    return size


def resident_bytes(root: Path = Path("/")) -> int:
    """Resident memory of this process (VmRSS)."""
    pages = int((root / "proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def mapped_bytes(root: Path = Path("/")) -> int:
    """Address space of this process (VmSize)."""
    return int((root / "proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def return_freed_arrays() -> None:
    """Makes glibc give freed arrays of 4 MiB and more back to the kernel at once.

    Left alone it raises that threshold to the size of what is freed, up to 32 MiB, and keeps such arrays in its heap:
    60 MiB more at the peak of a scan of 621 slices, no less time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 4 * 2**20)


def trim_heap() -> None:
    """Gives back what lies freed in glibc's heap: 38 MiB after a network of paper size is compiled, 17 of the default.

    (``VmRSS`` before and after; it takes a millisecond or two.)
    """
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
    if malloc_trim is not None:
        malloc_trim(0)


def memory_limit(flag_bytes: int, held_bytes: int, root: Path = Path("/")) -> MemoryLimit:
    """The least of the flag, the control groups, the limit of address space and the machine.

    A group of 2 GiB of which 1.5 GiB are used, 0.25 GiB of them file cache that the kernel would give back, has
    0.75 GiB left; a process that holds 1 GiB of what is used may thus hold 1.75 GiB.

    Args:
        flag_bytes: ``--max-memory``.
        held_bytes: resident memory of this process.
        root: where ``proc`` and the mount points lie.
    """
    limits = [MemoryLimit(flag_bytes, "--max-memory")]
    for folder in _control_groups("memory", root):
        for name in _MEMORY_LIMITS:
            limit = _number(folder / name)
            if limit is not None:
                limits.append(MemoryLimit(limit - _used_bytes(folder) + held_bytes, str(folder / name)))
    address_space = re.search(r"^Max address space +(\d+)", _text(root / "proc/self/limits"), flags=re.MULTILINE)
    if address_space:
        free = int(address_space[1]) - mapped_bytes(root)
        limits.append(MemoryLimit(free + held_bytes, "the limit of address space (ulimit -v)"))
    available = re.search(r"^MemAvailable:\s+(\d+) kB", _text(root / "proc/meminfo"), flags=re.MULTILINE)
    if available:
        limits.append(MemoryLimit(int(available[1]) * 1024 + held_bytes, "what the machine has free"))
    return min(limits, key=lambda limit: limit.limit_bytes)


def processor_limit(root: Path = Path("/")) -> int:
    """How many threads can run at once: the processors that this process may use, or fewer by its groups' quota.

    A quota of 150000 in every period of 100000 microseconds is 1.5 processors, which takes two threads.
    """
    limit = len(os.sched_getaffinity(0))
    for folder in _control_groups("cpu", root):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        quota = quota or _text(folder / "cpu.cfs_quota_us").strip()
        period = period.strip() or _text(folder / "cpu.cfs_period_us").strip()
        if quota.isdigit() and period.isdigit() and int(period):
            limit = min(limit, ceil(int(quota) / int(period)))
    return max(1, limit)


def _control_groups(controller: str, root: Path) -> Iterator[Path]:
    """Folders of the groups of this process that can limit what ``controller`` counts, from the mount point down."""
    paths: dict[str, str] = {}
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        paths.update(dict.fromkeys(controllers.split(","), path))  # version 2 has the one line without controllers
    for line in _text(root / "proc/self/mountinfo").splitlines():
        mount, _, file_system = line.partition(" - ")
        kind, _, options = file_system.split(" ", 2)
        key = "" if kind == "cgroup2" else controller
        if kind not in ("cgroup", "cgroup2") or (key and key not in options.split(",")) or key not in paths:
            continue
        mount_root, mount_point = mount.split()[3:5]
        folder = root / mount_point.replace(r"\040", " ").lstrip("/")
        yield folder
        for name in _below(paths[key], mount_root):
            folder /= name
            yield folder


def _below(path: str, mount_root: str) -> tuple[str, ...]:
    """Folders from the mount point to a group; none for a group that is not visible there.

    ``/docker/a`` under a mount of ``/docker/a`` is the mount point itself: so a container sees version 1.
    """
    group = PurePosixPath(path)
    if not group.is_relative_to(mount_root):
        return ()
    names = group.relative_to(mount_root).parts
    return () if ".." in names else names


def _used_bytes(folder: Path) -> int:
    """What a group uses, without the file cache that the kernel gives back first."""
    used = next((number for name in _MEMORY_USED if (number := _number(folder / name)) is not None), 0)
    statistics = dict(line.split() for line in _text(folder / "memory.stat").splitlines())
    cache = next((int(statistics[field]) for field in _CACHE_FIELDS if field in statistics), 0)
    return max(0, used - cache)


def _number(path: Path) -> int | None:
    """The number in a file; None for "max", and where there is no such file."""
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    """A file's text; empty where it cannot be read, as in a container that hides it."""
    try:
        return path.read_text(errors="surrogateescape")  # mounts carry the host's file names, in any encoding
    except OSError:
        return ""
