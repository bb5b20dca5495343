"""The story: one scan in, one label map out; then many of them."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

from app.agreement import agreement_warning, organ_agreement
from app.atomic_files import remove_partial
from app.cases import Case
from app.errors import AppError, CaseError, DeviceError
from app.machine_limits import DEFAULT_MAX_MEMORY, parse_bytes, return_freed_arrays
from app.memory import Fitter
from app.memory_need import NetworkMemory
from app.plan import Crop, Mode, Plan, SpacingKind
from app.plausibility import examine, find_warnings, look_at
from app.postprocessing import organ_volumes_ml, postprocess
from app.preprocessing import Record, preprocess
from app.progress import Progress
from app.region import Locator, find_region
from app.report import CaseRecord, RunRecord, StageClock
from app.restoration import Restoration, restore
from app.sliding_window import AirSkipper, Predictor, Slab, count_windows, stream_logits
from app.volume import Float32Array, LabelArray, Volume
from app.volume_io import content_state, read_header, read_volume, without_voxels, write_label_map

logger = logging.getLogger(__name__)

PredictorFactory = Callable[[], tuple[Predictor, tuple[str, ...]]]
LocatorFactory = Callable[[], Locator]


@dataclass(frozen=True)
class TwinSource:
    """How the second network is loaded, and what it and the first are expected to take together."""

    make_predictor: PredictorFactory
    memory_of_both: NetworkMemory


@dataclass(frozen=True)
class Options:
    """What the command line decides and the plan does not.

    Attributes:
        mode: restoration.
        spacing: enforced spacing.
        mirror: test-time mirroring along the plan's axes.
        crop: the part of a scan that is segmented.
        skip_existing: leave cases alone whose label map is there.
        max_memory_bytes: that this process may hold, if control groups and the machine allow it.
    """

    mode: Mode
    spacing: SpacingKind
    mirror: bool = False
    crop: Crop = "none"
    skip_existing: bool = False
    max_memory_bytes: int = parse_bytes(DEFAULT_MAX_MEMORY)


def segment(
    volume: Volume,
    predictor: Predictor,
    plan: Plan,
    options: Options,
    clock: StageClock | None = None,
    progress: Progress | None = None,
    locator: Locator | None = None,
    twin: Predictor | None = None,
) -> tuple[LabelArray, Record, Restoration]:
    """(label map uint8 (z, y, x) on the grid of ``volume`` as stored, what preprocessing and restoration did).

    Find the organs; orient, crop, resample, normalise; sliding window; arg max on the scan's grid; components; orient
    back. What a step has used up is let go: the voxels, if the caller holds no other reference to ``volume``, and the
    network's grid. A ``twin`` then makes a label map of its own on that grid, to be compared; it changes nothing.
    """
    clock = clock or StageClock()
    region = None
    if options.crop != "none":
        with clock.measure("locate"):
            region = find_region(volume, plan, options.crop, options.spacing, locator)
    with clock.measure("preprocess"):
        image, record = preprocess(volume, plan, options.spacing, region)
    del volume
    clock.log("preprocess", record.grid.shape_zyx, record.grid.target_zyx_mm)
    networks = [predictor] if twin is None else [predictor, twin]
    if progress:
        progress.expect_windows(len(networks) * count_windows(record.grid.shape_zyx, plan.sliding_window))
    slabs, *slabs_of_twin = [_stream(image, network, plan, options, progress) for network in networks]
    del image  # now held by the streams alone, the last of which ends before its restored label map is made
    restoration = _restore(slabs, record, options, clock)
    with clock.measure("postprocess"):
        label_map = _clean_up(restoration, record, plan)
    clock.log("postprocess", record.oriented.shape_zyx, record.oriented.spacing_zyx_mm)
    for coming in slabs_of_twin:
        with clock.measure("twin"):
            agreement = _compare(coming, label_map, record, plan, options)
        restoration = replace(restoration, agreement=agreement)
        clock.log("twin", record.grid.shape_zyx, record.grid.target_zyx_mm)
    return record.axis_map.undo(label_map), record, restoration


def _stream(
    image: Float32Array, network: Predictor, plan: Plan, options: Options, progress: Progress | None
) -> Iterator[Slab]:
    return stream_logits(
        image,
        AirSkipper(network) if plan.shortcuts.skip_air else network,
        plan.classes,
        plan.sliding_window,
        plan.intensity.normalised(plan.sliding_window.pad_hu),
        options.mirror,
        progress.finish_window if progress else lambda: None,
    )


def _clean_up(restoration: Restoration, record: Record, plan: Plan) -> LabelArray:
    label_map = record.undo_crop(restoration.label_map)
    return postprocess(label_map, plan.labels, plan.postprocessing, record.oriented.voxel_volume_ml)


def _compare(
    slabs: Iterator[Slab], label_map: LabelArray, record: Record, plan: Plan, options: Options
) -> dict[str, float | None]:
    """How far a label map (oriented) agrees with the one that the twin's logits become in the same way."""
    shapes = record.grid.shape_zyx, record.cropped_shape_zyx
    of_twin = _clean_up(restore(slabs, *shapes, record.restoration_orders, options.mode), record, plan)
    return organ_agreement(label_map, of_twin, plan.labels)


def _restore(slabs: Iterator[Slab], record: Record, options: Options, clock: StageClock) -> Restoration:
    with clock.measure("restore"):
        restoration = restore(
            clock.measure_items("network", slabs),
            record.grid.shape_zyx,
            record.cropped_shape_zyx,
            record.restoration_orders,
            options.mode,
        )
    clock.log("network", record.grid.shape_zyx, record.grid.target_zyx_mm)
    clock.log("restore", record.oriented.shape_zyx, record.oriented.spacing_zyx_mm)
    return restoration


def run(
    cases: Sequence[Case],
    plan: Plan,
    make_predictor: PredictorFactory,
    options: Options,
    progress: Progress,
    record: RunRecord,
    network_memory: NetworkMemory | None = None,
    make_locator: LocatorFactory | None = None,
    twin: TwinSource | None = None,
) -> None:
    """Segments the cases one after another and fills ``record``; the network loads while the first is read.

    Each case is made to fit into memory before it is read; ``network_memory`` is what the network is expected to take.
    ``make_locator`` is needed to crop to the organs. A ``twin`` runs where both networks fit into memory as planned.

    Raises:
        AppError: other than CaseError; the run cannot go on. Cases done so far are in ``record``.
    """
    start = time.perf_counter()
    return_freed_arrays()
    for case in cases:
        remove_partial(case.output_path)
    memory = network_memory or NetworkMemory()
    runner = _Runner(plan, make_predictor, options, progress, record, memory, make_locator, twin)
    record.cases = [
        CaseRecord(case.case_id, str(case.input_path), str(case.output_path), status="not_begun") for case in cases
    ]
    try:
        for case, case_record in zip(cases, record.cases, strict=True):
            progress.start_case(case.case_id)
            runner.run_case(case, case_record)
            progress.finish_case()
        runner.check_predictor()
    except KeyboardInterrupt:
        runner.abandon()
        raise
    finally:
        runner.close()
        progress.close()
        record.seconds = time.perf_counter() - start


class _Runner:
    """Holds the network, loaded in the background by the first case that needs it."""

    def __init__(
        self,
        plan: Plan,
        make_predictor: PredictorFactory,
        options: Options,
        progress: Progress,
        record: RunRecord,
        network_memory: NetworkMemory,
        make_locator: LocatorFactory | None,
        twin: TwinSource | None,
    ) -> None:
        self._network_memory = network_memory
        self._fitter = Fitter(
            plan, options.mode, options.spacing, options.mirror, options.max_memory_bytes, options.crop
        )
        self._plan, self._options, self._progress, self._record = plan, options, progress, record
        self._make_predictor, self._make_locator, self._twin = make_predictor, make_locator, twin
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="load-network")
        self._loading: Future[tuple[Predictor, Locator | None]] | None = None
        self._loading_twin: Future[Predictor | None] | None = None

    def run_case(self, case: Case, record: CaseRecord) -> None:
        """Segments a case and fills its record, whichever way it goes; only errors of the whole run are raised."""
        clock = StageClock(case.case_id)
        record.status, record.seconds, record.spans = "failed", clock.seconds, clock.spans
        try:
            if case.refusal:
                raise CaseError(case.refusal)
            if self._options.skip_existing and case.has_label_map:
                record.status = "skipped"
                logger.info("%s: skipped, %s is there", case.case_id, case.output_path)
                return
            self._segment_case(case, record, clock)
            record.status = "segmented"
        except CaseError as error:
            self._fail(case, record, str(error))
        except MemoryError:
            shape = "x".join(map(str, record.shape_zyx)) if record.shape_zyx else "its"
            self._fail(
                case, record, f"{case.input_path}: not enough memory for {shape} voxels. Give it more, or crop the scan"
            )
        except AppError as error:
            record.error = str(error)
            raise
        except KeyboardInterrupt:
            record.error = "interrupted"
            raise

    def check_predictor(self) -> None:
        """Raises what loading the network raised, even if no case came as far as using it."""
        if self._loading:
            self._loading.result()
        if self._loading_twin:
            self._loading_twin.result()

    def abandon(self) -> None:
        """Makes ``close`` not wait: a network takes seconds to load, an interrupted run ends within one."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._loading = None

    def close(self) -> None:
        """Waits for the background thread, unless it was abandoned."""
        self._pool.shutdown(wait=self._loading is not None)

    def _segment_case(self, case: Case, record: CaseRecord, clock: StageClock) -> None:
        if self._loading is None:
            self._loading = self._pool.submit(self._load)
        with clock.measure("read"):
            before = content_state(case.input_path)
            plan = self._fit(case, record)
            volumes = [read_volume(case.input_path)]
            if content_state(case.input_path) != before:
                raise CaseError(
                    f"{case.input_path}: changed while it was read; expected a scan that nobody writes. Give it again"
                )
            overview = look_at(volumes[0])
        grid_of = without_voxels(volumes[0])
        geometry = grid_of.geometry
        record.shape_zyx, record.spacing_zyx_mm = geometry.shape_zyx, geometry.spacing_zyx_mm
        for warning in grid_of.warnings:
            self._warn(case, record, warning)
        clock.log("read", geometry.shape_zyx, geometry.spacing_zyx_mm)
        with clock.measure("load"):
            predictor, locator = self._loading.result()
            twin = self._loading_twin.result() if self._loading_twin else None
        label_map, steps, restoration = segment(  # pop: it gets the only reference, so that it can let the voxels go
            volumes.pop(), predictor, plan, self._options, clock, self._progress, locator, twin
        )
        grid = steps.grid
        record.network_shape_zyx, record.network_spacing_zyx_mm = grid.shape_zyx, grid.target_zyx_mm
        record.windows = count_windows(grid.shape_zyx, plan.sliding_window)
        record.shortcut_share, record.agreement = restoration.shortcut_share, restoration.agreement
        if disagreement := agreement_warning(record.agreement or {}, plan.warn_below_agreement):
            self._warn(case, record, disagreement)
        record.volumes_ml = organ_volumes_ml(label_map, plan.labels, geometry.voxel_volume_ml)
        with clock.measure("postprocess"):
            record.plausibility = examine(overview, label_map, plan.labels, sum(record.volumes_ml.values()))
        for warning in find_warnings(record.plausibility, plan.labels):
            self._warn(case, record, warning)
        with clock.measure("write"):
            write_label_map(case.output_path, label_map, grid_of)
        clock.log("write", geometry.shape_zyx, geometry.spacing_zyx_mm)

    def _fit(self, case: Case, record: CaseRecord) -> Plan:
        """The plan, changed if the case would not fit into memory otherwise; CaseError if it does not fit at all.

        The twin is loaded if it fits too, and let go if not.
        """
        header, fit = read_header(case.input_path), None
        if self._twin and header:
            fit = self._fitter.fit_with_twin(header, self._twin.memory_of_both)
        if self._twin and header and not fit:
            self._loading_twin = None
            self._warn(case, record, "no uncertainty: there is not enough memory for a second network")
        elif self._twin and not self._loading_twin:
            self._loading_twin = self._pool.submit(self._load_twin, self._twin)
        if header is None:
            return self._plan
        fit = fit or self._fitter.fit(case.input_path, header, self._network_memory)
        record.memory = fit.record
        if fit.warning:
            self._warn(case, record, fit.warning)
        return fit.plan

    def _fail(self, case: Case, record: CaseRecord, error: str) -> None:
        record.error = error
        logger.error("%s: failed: %s", case.case_id, error)

    def _warn(self, case: Case, record: CaseRecord, warning: str) -> None:
        record.warnings.append(warning)
        logger.warning("%s: %s", case.case_id, warning)

    def _load(self) -> tuple[Predictor, Locator | None]:
        clock = StageClock()
        with clock.measure("load network"):
            try:
                predictor, warnings = self._make_predictor()
                locator = self._make_locator() if self._make_locator else None
            except MemoryError as error:
                raise DeviceError("not enough memory to load the network; give the process more") from error
        (self._record.network_load_span,) = clock.spans
        self._record.network_load_s = clock.seconds["load network"]
        self._record.warnings.extend(warnings)
        self._record.network = {
            "backend": predictor.backend,
            "device": predictor.device,
            "precision": predictor.precision,
        }
        ready = (*self._record.network.values(), self._record.network_load_s)
        logger.info("network ready: %s on %s in %s, %.2f s", *ready)
        return predictor, locator

    def _load_twin(self, twin: TwinSource) -> Predictor | None:
        """None if there is not enough memory: no label map is lost for the sake of a twin."""
        try:
            predictor, warnings = twin.make_predictor()
        except MemoryError:
            warning = "not enough memory to load the second network; its agreement is not in the report"
            self._record.warnings.append(warning)
            logger.warning(warning)
            return None
        self._record.warnings.extend(warning for warning in warnings if warning not in self._record.warnings)
        return predictor
