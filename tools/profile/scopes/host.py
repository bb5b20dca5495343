"""The whole machine: CPU time and memory in use, by whatever program."""

import os
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class HostCpu:
    """Seconds of all cores together since the machine started, in ticks of 10 ms as a rule.

    Attributes:
        user_s: without niced processes, as psutil's ``cpu_times().user``.
        system_s: in the kernel, without interrupts.
        idle_s: without waiting for disks.
        busy_s: user, niced, system and interrupts: all that a core worked.
    """

    user_s: float
    system_s: float
    idle_s: float
    busy_s: float


def host_cpu(root: Path = Path("/")) -> HostCpu:
    """The first line of ``/proc/stat``; ``root`` is where ``proc`` lies."""
    with (root / "proc/stat").open("rb") as stream:
        line = stream.readline()
    user, nice, system, idle, _waiting, irq, softirq = (int(field) / _TICKS_PER_S for field in line.split()[1:8])
    return HostCpu(user, system, idle, user + nice + system + irq + softirq)


def host_memory_mib(root: Path = Path("/")) -> float:
    """Memory that is neither free nor cache, as psutil's ``virtual_memory().used`` before its version 7.

    Of 1000 MiB total, 200 free, 50 buffers, 300 cached and 50 reclaimable, 400 are in use.
    """
    with (root / "proc/meminfo").open("rb") as stream:
        kib = {name: int(value.split()[0]) for name, _, value in (line.partition(b":") for line in stream)}
    unused = sum(kib[name] for name in (b"MemFree", b"Buffers", b"Cached", b"SReclaimable"))
    return (kib[b"MemTotal"] - unused) / 1024
