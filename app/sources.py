"""Where the networks of a run come from, before any of them is loaded."""

from collections.abc import Callable
from dataclasses import dataclass, field

from app.memory_terms import NetworkMemory
from app.plan import Plan
from app.sliding_window import Predictor


@dataclass(frozen=True)
class NetworkSource:
    """How a network is loaded, and what it is expected to take.

    Attributes:
        plan: of its bundle.
        load: gives it, and warnings about what had to be chosen.
        memory: what the process will then hold more.
    """

    plan: Plan
    load: Callable[[], tuple[Predictor, tuple[str, ...]]]
    memory: NetworkMemory = field(default_factory=NetworkMemory)


@dataclass(frozen=True)
class NetworkSources:
    """The networks of a run.

    Attributes:
        segmenter: makes the label maps.
        locator: finds the organs first; needed to crop to them.
        twin: makes label maps to compare with, where there is memory for it.
    """

    segmenter: NetworkSource
    locator: NetworkSource | None = None
    twin: NetworkSource | None = None

    def memory(self, with_twin: bool = False) -> NetworkMemory:
        """What all of them take together."""
        memory = self.segmenter.memory
        for source in (self.locator, self.twin if with_twin else None):
            memory = memory + source.memory if source else memory
        return memory
