"""Scoring cases from files: read, check the grids, score by both rules, measure; in this process or in several."""

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from app.errors import CaseError
from app.orientation import cranio_caudal_axis
from tools.evaluate.cases import CasePair
from tools.evaluate.flare import Score, score_pair
from tools.evaluate.geometry import describe_difference
from tools.evaluate.label_maps import LabelMap, read_label_map
from tools.evaluate.measures import Measures, measure_pair
from tools.evaluate.metrics import LabelPair
from tools.evaluate.presets import DEFAULT_PRESET, Preset

Scores = dict[str, Score]
"""By organ name."""


@dataclass(frozen=True)
class CaseScores:
    """What came of one case.

    Attributes:
        error: why it could not be scored; then it has no scores.
        warnings: about the files.
        scores: by name of the rules.
        measures: HD95 and volume error, by organ name.
    """

    pair: CasePair
    error: str | None = None
    warnings: tuple[str, ...] = ()
    scores: dict[str, Scores] = field(default_factory=dict)
    measures: dict[str, Measures] = field(default_factory=dict)


def score_files(pair: CasePair, ignore_geometry: bool = False, preset: Preset = DEFAULT_PRESET) -> CaseScores:
    """The scores of one case, whichever way it goes: its error is part of the result.

    Args:
        pair: the case.
        ignore_geometry: compare the arrays as they are stored, as the organisers do; shapes must still be equal.
        preset: organs and rules.
    """
    try:
        if pair.refusal:
            raise CaseError(pair.refusal)
        largest = preset.official.largest_label
        reference, prediction = read_label_map(pair.reference, largest), read_label_map(pair.prediction, largest)
        _check_geometry(pair, prediction, reference, ignore_geometry)
        labels = LabelPair(prediction.labels, reference.labels, largest)
        geometry, slice_axis = reference.geometry, cranio_caudal_axis(reference.geometry)
        measures = measure_pair(  # first, since the scores can use its distances
            labels, geometry.spacing_zyx_mm, geometry.voxel_volume_ml, preset.corrected, slice_axis
        )
        scores = {
            str(preset.official.name): score_pair(labels, reference.pixdim_zyx_mm, preset.official),
            str(preset.corrected.name): score_pair(labels, geometry.spacing_zyx_mm, preset.corrected, slice_axis),
        }
    except CaseError as error:
        return CaseScores(pair, error=str(error))
    except MemoryError:
        return CaseScores(pair, error=f"{pair.prediction}: not enough memory to score it; use fewer --jobs")
    return CaseScores(pair, warnings=(*prediction.warnings, *reference.warnings), scores=scores, measures=measures)


def score_all(
    pairs: Sequence[CasePair], ignore_geometry: bool = False, jobs: int = 1, preset: Preset = DEFAULT_PRESET
) -> Iterator[CaseScores]:
    """The results of all cases as they come; with several jobs the order is not that of ``pairs``."""
    score = partial(score_files, ignore_geometry=ignore_geometry, preset=preset)
    if jobs == 1:
        yield from map(score, pairs)
        return
    unfinished = []
    with _processes(min(jobs, len(pairs))) as pool:
        futures = {pool.submit(score, pair): pair for pair in pairs}
        for future in as_completed(futures):
            found = _result(future)
            if found:
                yield found
            else:
                unfinished.append(futures[future])
    for pair in unfinished:  # a killed worker takes all others along: each again, by itself
        with _processes(1) as pool:
            found = _result(pool.submit(score, pair))
        reason = "its process was killed, most likely since it takes more memory than there is"
        yield found or CaseScores(pair, error=f"{pair.prediction}: not scored: {reason}")


@contextmanager
def _processes(count: int) -> Iterator[ProcessPoolExecutor]:
    """Spawned, since a fork copies the locks of other threads (numpy's BLAS has some) in whatever state they are."""
    pool = ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield pool
    finally:  # also when the user interrupts: cases that have not begun must not
        pool.shutdown(cancel_futures=True)


def _result(future: Future[CaseScores]) -> CaseScores | None:
    """None if its worker, or another one, was killed."""
    try:
        return future.result()
    except BrokenProcessPool:
        return None


def _check_geometry(pair: CasePair, prediction: LabelMap, reference: LabelMap, ignore_geometry: bool) -> None:
    same_shape = prediction.labels.shape == reference.labels.shape
    if ignore_geometry and same_shape:
        return
    difference = describe_difference(prediction.geometry, reference.geometry)
    if difference is None:
        return
    advice = "Write the prediction on the reference's grid"
    if same_shape:
        advice += ", or compare the stored arrays as they are with --ignore-geometry"
    raise CaseError(f"{pair.prediction}: not on the grid of {pair.reference}: {difference}. {advice}")
