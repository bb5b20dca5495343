"""A container, by the counters of its control group (version 1, version 2 and both together)."""

from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from tools.profile.scopes import MIB, ScopeKind, Usage

_CACHE_FIELDS = ("total_inactive_file", "inactive_file")  # v1's sum over the groups below; v2's, which is that sum
_EAGER_SEARCHES = 100  # ten seconds at the organisers' pace


class ContainerScope:
    """A Docker container, found by its id as soon as it has a process."""

    kind: ScopeKind = "container"

    def __init__(self, id_file: Path, root: Path = Path("/")) -> None:
        """``id_file`` is what ``docker run --cidfile`` writes; ``root`` is where ``proc`` and the mount points lie."""
        self._id_file, self._root = id_file, root
        self._searches = 0
        self._memory_folder: Path | None = None
        self._cpu_folder: Path | None = None

    def read(self) -> Usage:
        """Memory without the file cache that the kernel gives back first; CPU time. None before and after it runs."""
        if not (self._memory_folder and self._cpu_folder) and self._is_due():
            folders = self._find()
            self._memory_folder = self._memory_folder or _first_with(_memory_mib, folders)
            self._cpu_folder = self._cpu_folder or _first_with(_cpu_s, folders)
        return Usage(
            _memory_mib(self._memory_folder) if self._memory_folder else None,
            _cpu_s(self._cpu_folder) if self._cpu_folder else None,
        )

    def _is_due(self) -> bool:
        """Every time at first, then every tenth: an engine on another machine has no process here to be found."""
        self._searches += 1
        return self._searches <= _EAGER_SEARCHES or self._searches % 10 == 0

    def _find(self) -> list[Path]:
        """Folders of the container's groups. A process of it shows their paths, whichever way Docker names them."""
        container = _text(self._id_file).strip()
        if not container:
            return []
        for process in (self._root / "proc").iterdir():
            groups = _text(process / "cgroup") if process.name.isdigit() else ""
            if container in groups:
                return list(self._group_folders(groups, container))
        return []

    def _group_folders(self, groups: str, container: str) -> Iterator[Path]:
        """Only groups of the container: in version 1 its first process enters one controller's after another."""
        paths: dict[str, str] = {}
        for line in groups.splitlines():
            _, controllers, path = line.split(":", 2)
            if container not in path:
                continue
            paths.update(dict.fromkeys(controllers.split(","), path))  # version 2 has one line without controllers
        for line in _text(self._root / "proc/self/mountinfo").splitlines():
            mount, _, file_system = line.partition(" - ")
            kind, _, options = file_system.split(" ", 2)
            keys = {"cgroup": options.split(","), "cgroup2": [""]}.get(kind, [])
            group = next((PurePosixPath(paths[key]) for key in keys if key in paths), None)
            mount_root, mount_point = mount.split()[3:5]
            if group is not None and group.is_relative_to(mount_root):
                yield self._root / mount_point.lstrip("/") / group.relative_to(mount_root)


def _first_with(counter: Callable[[Path], float | None], folders: list[Path]) -> Path | None:
    return next((folder for folder in folders if counter(folder) is not None), None)


def _memory_mib(folder: Path) -> float | None:
    used = _text(folder / "memory.current") or _text(folder / "memory.usage_in_bytes")
    if not used:
        return None
    statistics = _pairs(folder / "memory.stat")
    cache = next((statistics[field] for field in _CACHE_FIELDS if field in statistics), 0)
    return max(0, int(used) - cache) / MIB


def _cpu_s(folder: Path) -> float | None:
    nanoseconds = _text(folder / "cpuacct.usage")
    if nanoseconds:
        return int(nanoseconds) / 1e9
    microseconds = _pairs(folder / "cpu.stat").get("usage_usec")
    return None if microseconds is None else microseconds / 1e6


def _pairs(path: Path) -> dict[str, int]:
    return {name: int(value) for name, value in (line.split() for line in _text(path).splitlines())}


def _text(path: Path) -> str:
    """A file's text; empty where it is not there, as when the container has ended."""
    try:
        return path.read_text()
    except OSError:
        return ""
