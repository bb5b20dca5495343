"""A process and all its descendants, from ``/proc``."""

import os
from dataclasses import dataclass
from pathlib import Path

from tools.profile.scopes import MIB, ScopeKind, Usage

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class _Process:
    parent: int
    session: int
    own_ticks: int
    waited_ticks: int
    pages: int


class TreeScope:
    """The session that a process leads, and whatever descends from it.

    A process counts once it was seen with the leader's session or with a parent that counts, also when that parent has
    ended since. One that leaves the session and whose parent ends between two readings is missed.
    """

    kind: ScopeKind = "tree"

    def __init__(self, leader: int, root: Path = Path("/")) -> None:
        self._leader, self._proc = leader, root / "proc"
        self._members: dict[int, int] = {}  # process: its own ticks when last seen; parents before their children
        self._strangers: set[int] = set()
        self._ended_ticks = 0
        self._cpu_ticks = 0

    def read(self) -> Usage:
        """Sum of resident memory, in which pages shared by two processes count twice; CPU time so far.

        CPU time is known in two ways, both of which can only be too low: what each process was last seen to have used
        (misses what is used between the last look and the end), and what the living ones have used together with the
        children that they waited for (misses children that nobody waited for). The larger one holds.
        """
        alive = self._look()
        by_process = self._ended_ticks + sum(self._members.values())
        by_parents = sum(process.own_ticks + process.waited_ticks for process in alive)
        self._cpu_ticks = max(self._cpu_ticks, by_process, by_parents)
        return Usage(sum(process.pages for process in alive) * _PAGE_BYTES / MIB, self._cpu_ticks / _TICKS_PER_S)

    def _look(self) -> list[_Process]:
        """Members that are alive. Parents are read first: a child that ends meanwhile counts once or not at all."""
        alive = []
        for pid in list(self._members):
            process = self._process(pid)
            if process is None:
                self._ended_ticks += self._members.pop(pid)
            else:
                self._members[pid] = process.own_ticks
                alive.append(process)
        return alive + self._newcomers()

    def _newcomers(self) -> list[_Process]:
        names = os.listdir(self._proc)  # noqa: PTH208 - a Path for each process costs more than the reading
        pids = {int(name) for name in names if name.isdigit()}
        self._strangers &= pids
        unknown = pids - self._strangers - self._members.keys()
        found = {pid: process for pid in sorted(unknown) if (process := self._process(pid))}
        new = []
        while related := [pid for pid, process in found.items() if self._belongs(pid, process)]:
            for pid in related:
                new.append(found.pop(pid))
                self._members[pid] = new[-1].own_ticks
        self._strangers |= found.keys()
        return new

    def _belongs(self, pid: int, process: _Process) -> bool:
        return self._leader in (pid, process.session) or process.parent in self._members

    def _process(self, pid: int) -> _Process | None:
        """None if it has ended."""
        try:
            with open(f"{self._proc}/{pid}/stat", "rb") as stream:  # noqa: PTH123 - a Path costs as much as the reading
                text = stream.read()
        except (FileNotFoundError, ProcessLookupError):
            return None
        # The name in parentheses may hold anything. Behind it: state, ppid, pgrp, session (3), ..., utime, stime,
        # cutime, cstime (11 to 14), ..., rss (21).
        fields = text.rpartition(b")")[2].split()
        user, system, waited_user, waited_system = map(int, fields[11:15])
        return _Process(int(fields[1]), int(fields[3]), user + system, waited_user + waited_system, int(fields[21]))
