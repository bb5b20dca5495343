"""One cold child process: its exit code, seconds and peak memory with all its descendants."""

import os
import resource
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_INTERVAL_S = 0.05
_MIB = 1024.0**2
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Measurement:
    """What a child process took.

    Attributes:
        exit_code: as ``subprocess`` gives it: negative is the signal that ended it.
        wall_s: from before the start to after the end, imports and reading included.
        cpu_s: user and system time of the child and those of its descendants that were waited for.
        peak_rss_mib: the largest sum of resident memory over the child and its descendants, sampled every 50 ms.
            Pages that two processes share count twice, as in ``ps``.
    """

    exit_code: int
    wall_s: float
    cpu_s: float
    peak_rss_mib: float


def run_measured(command: Sequence[str], log: Path, folder: Path, environment: Mapping[str, str]) -> Measurement:
    """The measurement of one command, run as the leader of a session of its own.

    Args:
        command: program and arguments.
        log: gets stdout and stderr, after a first line with the command.
        folder: where it runs.
        environment: added to this process's own.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    cpu_before_s = _children_cpu_s()
    peak_bytes = 0
    with log.open("w", encoding="utf-8") as stream:
        stream.write(" ".join(command) + "\n")
        stream.flush()
        start = time.perf_counter()
        child = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            while child.poll() is None:
                peak_bytes = max(peak_bytes, session_rss_bytes(child.pid))
                time.sleep(_INTERVAL_S)
        except BaseException:
            os.killpg(child.pid, signal.SIGKILL)  # its workers too: it leads a group as well as a session
            child.wait()
            raise
        wall_s = time.perf_counter() - start
    return Measurement(child.returncode, wall_s, _children_cpu_s() - cpu_before_s, peak_bytes / _MIB)


def session_rss_bytes(session: int) -> int:
    """Resident memory of all processes of a session, in bytes: also of those whose parent has ended."""
    total = 0
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            stat = Path(entry.path, "stat").read_text(encoding="ascii", errors="replace")
        except (FileNotFoundError, ProcessLookupError):  # ended between the two calls
            continue
        # The name in parentheses may hold anything; behind it: state, ppid, pgrp, session (3), ..., rss in pages (21).
        fields = stat.rpartition(")")[2].split()
        if int(fields[3]) == session:
            total += int(fields[21]) * _PAGE_BYTES
    return total


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
