"""What a sampler reads: the whole host, a GPU, and the process tree or the container that is profiled."""

from dataclasses import dataclass
from typing import Literal, Protocol

ScopeKind = Literal["tree", "container"]
MIB = 2**20


@dataclass(frozen=True)
class Usage:
    """What a process tree or a container uses; None is what cannot be read.

    Attributes:
        memory_mib: now.
        cpu_s: user and system time of all its processes since it began; never falls.
    """

    memory_mib: float | None
    cpu_s: float | None


class Scope(Protocol):
    """A process tree or a container."""

    kind: ScopeKind

    def read(self) -> Usage:
        """What it uses now."""
