"""Many scans in, as many label maps out: one case after another, whatever happens to one of them."""

import logging
import time
from collections.abc import Callable, Sequence
from itertools import pairwise

from app.agreement import agreement_warning
from app.atomic_files import remove_partials, watch_rename
from app.cases import Case
from app.errors import AppError, CaseError
from app.loading import Networks
from app.machine_limits import return_freed_arrays, trim_heap
from app.memory import Fit, Fitter
from app.memory_terms import ScanHeader
from app.options import Options
from app.pipeline import segment
from app.plan import Plan
from app.plausibility import Overview, examine, find_warnings
from app.postprocessing import organ_volumes_ml
from app.progress import Progress
from app.reading import Reader, can_be_read_ahead, describe, read
from app.report import CaseRecord, RunRecord, StageClock
from app.resampling import load_splines
from app.sliding_window import count_windows
from app.sources import NetworkSources
from app.volume import LabelArray
from app.volume_io import write_label_map

logger = logging.getLogger(__name__)


def run(
    cases: Sequence[Case], sources: NetworkSources, options: Options, progress: Progress, record: RunRecord
) -> None:
    """Segments the cases one after another and fills ``record``.

    The networks load while the first scan is read and resampled; the next scan is read while they run, if there is
    memory for it. Each case is made to fit into memory before it is read. A twin runs where both networks fit as
    planned.

    Raises:
        AppError: other than CaseError; the run cannot go on. Cases done so far are in ``record``.
    """
    start = time.perf_counter()
    return_freed_arrays()
    for folder in {case.output_path.parent for case in cases}:
        remove_partials(folder)
    record.cases = [
        CaseRecord(case.case_id, str(case.input_path), str(case.output_path), status="not_begun") for case in cases
    ]
    runner = _Runner(cases, sources, options, progress, record)
    try:
        for case, case_record in zip(cases, record.cases, strict=True):
            progress.start_case(case.case_id)
            runner.run_case(case, case_record)
            progress.finish_case()
        runner.networks.check()
    except KeyboardInterrupt:
        runner.networks.abandon()
        raise
    finally:
        runner.scans.close()
        runner.networks.close()
        progress.close()
        record.seconds = time.perf_counter() - start


class _Runner:
    """What the cases of a run share."""

    def __init__(
        self, cases: Sequence[Case], sources: NetworkSources, options: Options, progress: Progress, record: RunRecord
    ) -> None:
        self._sources, self._options, self._progress = sources, options, progress
        for source in (sources.segmenter, sources.locator):
            if source:
                load_splines(source.plan.interpolation.image_order)
        self._fitter = Fitter(sources, options)
        self._followers = dict(pairwise(cases))
        self._is_written: Callable[[], bool] = lambda: False
        self.networks, self.scans = Networks(sources, record), Reader()

    def run_case(self, case: Case, record: CaseRecord) -> None:
        """Segments a case and fills its record, whichever way it goes; only errors of the whole run are raised."""
        clock = StageClock(case.case_id)
        record.status, record.seconds, record.spans = "failed", clock.seconds, clock.spans
        self._is_written = lambda: False
        try:
            if case.refusal:
                raise CaseError(case.refusal)
            if self._is_done(case):
                record.status = "skipped"
                logger.info("%s: skipped, %s is there", case.case_id, case.output_path)
                return
            if not self._segment_beside_reading(case, record, clock):
                trim_heap()
                logger.info("%s: not enough memory while the next scan was read; once more without", case.case_id)
                record.warnings.clear()
                self._segment_case(case, record, clock, read_ahead=False)
            record.status = "segmented"
        except CaseError as error:
            self._fail(case, record, str(error))
        except MemoryError:
            shape = "x".join(map(str, record.shape_zyx)) if record.shape_zyx else "its"
            self._fail(
                case, record, f"{case.input_path}: not enough memory for {shape} voxels. Give it more, or crop the scan"
            )
        except AppError as error:
            self._stop(record, str(error))
            raise
        except KeyboardInterrupt:
            self._stop(record, "interrupted")
            raise

    def _segment_beside_reading(self, case: Case, record: CaseRecord, clock: StageClock) -> bool:
        """False if memory ran out while the next scan was read, which is dropped: it is worth trying again without.

        The second attempt is not this function's, since an exception keeps all that the first one held.
        """
        try:
            self._segment_case(case, record, clock)
        except MemoryError:
            if not self.scans.drop():
                raise
            return False
        return True

    def _segment_case(self, case: Case, record: CaseRecord, clock: StageClock, read_ahead: bool = True) -> None:
        if self._fitter.networks_fit():
            self.networks.begin()
        with clock.measure("read"):
            scan = self.scans.take(case)
            description = scan.description if scan else describe(case)
            fit = self._fit(case, record, description.header, scan.held_bytes if scan else 0)
            self.networks.begin()
            scan = scan or read(description)
        plan = fit.plan if fit else self._sources.segmenter.plan
        geometry = scan.volume.geometry
        record.shape_zyx, record.spacing_zyx_mm = geometry.shape_zyx, geometry.spacing_zyx_mm
        for warning in scan.volume.warnings:
            self._warn(case, record, warning)
        clock.log("read", geometry.shape_zyx, geometry.spacing_zyx_mm)
        predictor, locator, twin = self.networks.get(clock)
        label_map, steps, restoration = segment(
            scan.hand_over(), predictor, plan, self._options, clock, self._progress, locator, twin,
            lambda: self._begin_network(case, record, fit, clock, read_ahead),
        )  # fmt: skip
        grid = steps.grid
        record.network_shape_zyx, record.network_spacing_zyx_mm = grid.shape_zyx, grid.target_zyx_mm
        record.windows = count_windows(grid.shape_zyx, plan.sliding_window)
        record.shortcut_share, record.agreement = restoration.shortcut_share, restoration.agreement
        if disagreement := agreement_warning(record.agreement or {}, plan.warn_below_agreement):
            self._warn(case, record, disagreement)
        with clock.measure("postprocess"):
            record.volumes_ml = organ_volumes_ml(label_map, plan.labels, geometry.voxel_volume_ml)
            self._examine(case, record, scan.overview, label_map, plan)
        self._is_written = watch_rename(case.output_path)
        with clock.measure("write"):
            write_label_map(case.output_path, label_map, scan.volume)
        clock.log("write", geometry.shape_zyx, geometry.spacing_zyx_mm)

    def _examine(self, case: Case, record: CaseRecord, overview: Overview, label_map: LabelArray, plan: Plan) -> None:
        """Warns of what is valid but wrong. A finished label map is worth more: without memory it goes unexamined."""
        try:
            record.plausibility = examine(overview, label_map, plan.labels, sum(record.volumes_ml.values()))
        except MemoryError:
            self._warn(case, record, "there was not enough memory to see whether the label map is plausible")
            return
        for warning in find_warnings(record.plausibility, plan.labels):
            self._warn(case, record, warning)

    def _fit(self, case: Case, record: CaseRecord, header: ScanHeader | None, ahead_bytes: int) -> Fit | None:
        """How the case fits into memory; None if its header does not tell; CaseError if it does not fit at all.

        The twin is loaded if it fits too, and let go if not.
        """
        fit = None
        if self._sources.twin and header:
            fit = self._fitter.fit_with_twin(header, ahead_bytes)
        if self._sources.twin and header and not fit:
            self.networks.drop_twin()
            self._warn(case, record, "no uncertainty: there is not enough memory for a second network")
        elif self._sources.twin:
            self.networks.begin_twin()
        if header is None:
            return None
        fit = fit or self._fitter.fit(case.input_path, header, ahead_bytes)
        record.memory = fit.record
        if fit.warning:
            self._warn(case, record, fit.warning)
        return fit

    def _begin_network(
        self, case: Case, record: CaseRecord, fit: Fit | None, clock: StageClock, read_ahead: bool
    ) -> None:
        """Called when a scan is resampled and its voxels are let go."""
        trim_heap()
        if read_ahead:
            self._read_ahead(case, record, fit, clock)

    def _read_ahead(self, case: Case, record: CaseRecord, fit: Fit | None, clock: StageClock) -> None:
        """Begins to read the case that follows, if its header says that there is memory for both."""
        follower = self._followers.get(case)
        if not (self._options.read_ahead and fit and follower) or follower.refusal or self._is_done(follower):
            return
        if not can_be_read_ahead(follower):
            return
        try:
            with clock.measure("read"):
                description = describe(follower)
            header = description.header
            together = self._fitter.fit_with_read_ahead(fit, header) if header else None
            if together:
                self.scans.begin(description)
                record.memory = together.record
        except (CaseError, MemoryError, RuntimeError) as error:  # no thread, say; it is read in its turn
            logger.debug("%s: is not read ahead (%s)", follower.case_id, error)

    def _is_done(self, case: Case) -> bool:
        return self._options.skip_existing and case.has_label_map

    def _fail(self, case: Case, record: CaseRecord, error: str) -> None:
        record.error = error
        logger.error("%s: failed: %s", case.case_id, error)

    def _stop(self, record: CaseRecord, error: str) -> None:
        """The case during which the run ends has not failed if its label map is there already."""
        if self._is_written():
            record.status = "segmented"
        else:
            record.error = error

    def _warn(self, case: Case, record: CaseRecord, warning: str) -> None:
        record.warnings.append(warning)
        logger.warning("%s: %s", case.case_id, warning)
