"""Whether a case fits into memory, and what is done so that it does."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from app.errors import CaseError
from app.machine_limits import MemoryLimit, memory_limit, resident_bytes
from app.memory_need import planned_grid, predict_need, reading_bytes
from app.memory_terms import Need, ProcessMemory, ScanHeader
from app.options import Options
from app.plan import Plan, SpacingKind
from app.sources import NetworkSources

_MIB = 2**20
_AS_PLANNED, _HALF = "as planned", "sums in half precision"
_LONGEST_AXIS = 4096  # voxels; the matrices of resampling grow with the square: 0.3 s at 1024, 4 s here, 14 s at 8000
_RESERVE = 0.05  # of what is allowed; predictions were 0 to 14 % too high (tools/memory_check*.json)
_COARSENINGS = tuple(1 + percent / 100 for percent in range(5, 105, 5))  # of the network's spacing; at most twice


@dataclass(frozen=True)
class MemoryRecord:
    """What a case was expected to need, for the report.

    Attributes:
        need_mib, stage: predicted peak of the process, and when.
        limit_mib, limit_source: what was allowed, and by whom.
        strategy: what was changed to stay within the limit; ``as planned`` if nothing was.
    """

    need_mib: float
    stage: str
    limit_mib: float
    limit_source: str
    strategy: str


@dataclass(frozen=True)
class Fit:
    """How a case will be segmented.

    Attributes:
        plan: the bundle's, changed as the strategy says.
        need: memory that it takes.
        limit: memory that it may take.
        strategy: see ``MemoryRecord``.
        warning: what a user should know; None if all is as planned.
    """

    plan: Plan
    need: Need
    limit: MemoryLimit
    strategy: str
    warning: str | None = None

    @property
    def record(self) -> MemoryRecord:
        """For the report."""
        need, limit = self.need, self.limit
        return MemoryRecord(
            need.peak_bytes / _MIB, need.largest_stage, limit.limit_bytes / _MIB, limit.source, self.strategy
        )

    def with_read_ahead(self, scan: ScanHeader, limit: MemoryLimit) -> "Fit | None":
        """The same while the next scan is read; None if that does not fit into what is allowed now."""
        need = self.need.with_read_ahead(reading_bytes(scan))
        return replace(self, need=need, limit=limit) if need.peak_bytes <= limit.limit_bytes else None


def fit_case(
    path: Path,
    scan: ScanHeader,
    plan: Plan,
    options: Options,
    process: ProcessMemory,
    limit: MemoryLimit,
    locator: Plan | None = None,
) -> Fit:
    """The first way to segment the scan that stays within the limit: as planned, or the least change that does.

    The changes: sums along the axis where they take least memory, then in half precision; then, if the plan bounds the
    network's grid itself (``enforce`` is ``resample``) and the user chose no other ``--spacing``, a network spacing
    coarser by 5, 10, ... 100 %, with full and with half-precision sums.

    Raises:
        CaseError: none does, or an axis is so long that resampling would take minutes.
    """
    needs = []
    for strategy, changed in _changes(scan, plan, options.spacing):
        need = predict_need(scan, changed, options, process, locator)
        needs.append(need)
        if need.peak_bytes <= limit.limit_bytes:
            _check_axes(path, scan, changed, options.spacing)
            warning = None
            if changed is not plan:
                warning = (
                    f"memory: {needs[0].peak_bytes // _MIB} MiB were needed, {limit.source} allows "
                    f"{limit.limit_bytes // _MIB} MiB; {strategy}: the label map is not the one of a run without limit"
                )
            return Fit(changed, need, limit, strategy, warning)
    shape = "x".join(map(str, scan.geometry.shape_zyx))
    least = min(need.peak_bytes for need in needs)
    tried = f", {least // _MIB} MiB after every change that the bundle allows" if least < needs[0].peak_bytes else ""
    raise CaseError(
        f"{path}: {shape} voxels (z, y, x) need {needs[0].peak_bytes // _MIB} MiB in the stage "
        f"'{needs[0].largest_stage}'{tried}; expected at most {max(0, limit.limit_bytes) // _MIB} MiB, as "
        f"{limit.source} allows. Give it more memory, or crop the scan"
    )


class Fitter:
    """Fits the cases of a run, in which all but the scan stays the same.

    Made before the networks are loaded, since what the process holds then counts. ``ahead_bytes`` are those of the
    scan that were read ahead: they are held already, and counted again as what reading it takes.
    """

    def __init__(self, sources: NetworkSources, options: Options) -> None:
        self._sources, self._options, self._start_bytes = sources, options, resident_bytes()
        self._plan = sources.segmenter.plan
        self._locator = sources.locator.plan if sources.locator else None

    def networks_fit(self) -> bool:
        """Whether there is memory for the networks alone: if not, no case fits, and loading them would end the run."""
        process, limit = self._process(0, with_twin=False)
        return process.running_bytes <= limit.limit_bytes

    def fit(self, path: Path, scan: ScanHeader, ahead_bytes: int = 0) -> Fit:
        """See ``fit_case``."""
        process, limit = self._process(ahead_bytes, with_twin=False)
        return fit_case(path, scan, self._plan, self._options, process, limit, self._locator)

    def fit_with_twin(self, scan: ScanHeader, ahead_bytes: int = 0) -> Fit | None:
        """As planned with a second network; None if that does not fit: no label map changes for the sake of a twin."""
        process, limit = self._process(ahead_bytes, with_twin=True)
        need = predict_need(scan, self._plan, self._options, process, self._locator, twin=True)
        longest = _longest_axis(scan, self._plan, self._options.spacing)
        if need.peak_bytes > limit.limit_bytes or longest > _LONGEST_AXIS:
            return None
        return Fit(self._plan, need, limit, _AS_PLANNED)

    def fit_with_read_ahead(self, fit: Fit, scan: ScanHeader) -> Fit | None:
        """See ``Fit.with_read_ahead``; for a case whose scan is resampled, so that its voxels are let go."""
        return fit.with_read_ahead(scan, self._limit(resident_bytes()))

    def _process(self, ahead_bytes: int, with_twin: bool) -> tuple[ProcessMemory, MemoryLimit]:
        held_bytes = resident_bytes()
        locator = self._sources.locator.memory if self._sources.locator else None
        networks = self._sources.memory(with_twin)
        process = ProcessMemory.expected(self._start_bytes, held_bytes - ahead_bytes, networks, locator)
        return process, self._limit(held_bytes)

    def _limit(self, held_bytes: int) -> MemoryLimit:
        """What a case may take: the limit less a reserve."""
        limit = memory_limit(self._options.max_memory_bytes, held_bytes)
        return replace(limit, limit_bytes=int(limit.limit_bytes * (1 - _RESERVE)))


def _check_axes(path: Path, scan: ScanHeader, plan: Plan, spacing: SpacingKind) -> None:
    """Raises CaseError for a scan or a network grid that is longer than any patient's."""
    if _longest_axis(scan, plan, spacing) > _LONGEST_AXIS:
        grid = planned_grid(scan.geometry, plan, spacing)[1].shape_zyx
        shape, network_shape = ("x".join(map(str, lengths)) for lengths in (scan.geometry.shape_zyx, grid))
        raise CaseError(
            f"{path}: {shape} voxels (z, y, x), {network_shape} for the network; expected at most {_LONGEST_AXIS} "
            "along an axis. Crop it, or repair its spacing"
        )


def _longest_axis(scan: ScanHeader, plan: Plan, spacing: SpacingKind) -> int:
    return max(*scan.geometry.shape_zyx, *planned_grid(scan.geometry, plan, spacing)[1].shape_zyx)


def _changes(scan: ScanHeader, plan: Plan, spacing: SpacingKind) -> Iterator[tuple[str, Plan]]:
    """(the change in words, for log and report; the plan), from none to the largest change."""
    yield _AS_PLANNED, plan
    done: tuple[str, ...] = ()
    if plan.sliding_window.sum_order != "least_memory":
        done = ("sums along the axis of least memory",)
        plan = replace(plan, sliding_window=replace(plan.sliding_window, sum_order="least_memory"))
        yield ", ".join(done), plan
    full, half = plan.sliding_window, replace(plan.sliding_window, accumulator="float16")
    can_halve = full.accumulator == "float32"
    if can_halve:
        yield ", ".join((*done, _HALF)), replace(plan, sliding_window=half)
    if plan.spacing.enforce != "resample" or spacing != "resample":
        return
    z, y, x = planned_grid(scan.geometry, plan, spacing)[1].target_zyx_mm
    for factor in _COARSENINGS:
        coarser = replace(plan, spacing=replace(plan.spacing, target_zyx_mm=(z * factor, y * factor, x * factor)))
        words = (f"network spacing {factor:.2f} times coarser", *done)
        yield ", ".join(words), coarser
        if can_halve:
            yield ", ".join((*words, _HALF)), replace(coarser, sliding_window=half)
