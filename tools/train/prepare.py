"""``prepare``: raw scans to a cache that training reads patch by patch.

First every case is examined and every problem reported; then the fingerprint and the plan are made; then each case is
preprocessed by the app's own code, so that training sees what inference will, and written. Interrupted at any point,
the same command goes on where it stopped.
"""

import argparse
import logging
import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from app.cases import prepare_output_folder
from app.errors import CaseError, FolderError, UsageError
from app.preprocessing import preprocess
from app.volume_io import read_volume
from tools.train.cache import FORMAT_VERSION, META, case_folder, read_meta
from tools.train.cache_writing import write_case
from tools.train.cases import TrainingCase, find_training_data
from tools.train.checks import (
    Examination,
    examine,
    label_ids,
    read_examination,
    source_of,
    write_examination,
)
from tools.train.fingerprint import pool, read_fingerprint, write_fingerprint
from tools.train.labels import resample_label_map
from tools.train.planning import (
    PLAN_FILE,
    TrainPlan,
    preprocessing_digest,
    read_train_plan,
    training_spacing,
    write_train_plan,
)
from tools.train.presets import PRESETS, make_plan
from tools.train.processes import each_case

logger = logging.getLogger(__name__)

FINGERPRINT_FILE = "fingerprint.json"
_CHECKS = "checks"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what ``run`` reads to a parser."""
    parser.add_argument("--data", type=Path, nargs="+", required=True, metavar="DIR", help="folders with scans")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the cache: folder for prepared cases")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--preset", choices=PRESETS, help="plan by name")
    which.add_argument("--plan", type=Path, metavar="FILE.json", help="train_plan.json of a cache, or packed training")
    parser.add_argument(
        "--dataset", type=Path, metavar="FILE.json", help="describes the scans (default: tools/train/datasets/DIR.json)"
    )
    parser.add_argument(
        "--hold-out", nargs="+", default=[], metavar="ID", help="cases that are in neither set, for evaluation"
    )
    parser.add_argument(
        "--most-unlabelled", type=int, metavar="N", help="use the first N unlabelled cases (the paper: 1000)"
    )
    parser.add_argument("--skip-bad", action="store_true", help="leave out cases with problems instead of stopping")
    parser.add_argument("--check-only", action="store_true", help="examine, report, write the plan, and stop")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes at a time")


def run(arguments: argparse.Namespace) -> int:
    """The command; returns the exit code.

    Raises:
        AppError: no data, cases with problems, or a cache that cannot be written.
    """
    if arguments.workers < 1:
        raise UsageError(f"--workers {arguments.workers}: expected 1 or more")
    if arguments.most_unlabelled is not None and arguments.most_unlabelled < 0:
        raise UsageError(f"--most-unlabelled {arguments.most_unlabelled}: expected 0 or more")
    data = find_training_data(arguments.data, arguments.hold_out, arguments.dataset, arguments.most_unlabelled)
    prepare_output_folder(arguments.out / _CHECKS)
    found = examine_all(data.cases, data.organs, arguments.out, arguments.workers)
    cases = sound_cases(data.cases, found, arguments.skip_bad)
    kept = {case.case_id for case in cases}
    sound = [one for one in found if one.case_id in kept]
    fingerprint = pool([one.scan for one in sound if one.scan], [one.counts for one in sound if one.counts])
    plan = read_train_plan(arguments.plan) if arguments.plan else make_plan(arguments.preset, data.organs, fingerprint)
    if not plan.organs_as_one and plan.app.labels != data.organs:
        raise UsageError(f"{arguments.plan}: its labels are not the organs of {' '.join(map(str, arguments.data))}")
    check_folder(cases, arguments.out, preprocessing_digest(plan.app))
    write_fingerprint(arguments.out / FINGERPRINT_FILE, fingerprint)
    if arguments.check_only:
        write_train_plan(arguments.out / PLAN_FILE, plan)
        return 0
    prepare(cases, plan, arguments.out, arguments.workers)
    return 0


def plan_of_cache(folder: Path, preset: str | None = None) -> TrainPlan:
    """The plan that a cache was prepared with, or a preset for its organs and fingerprint.

    Raises:
        AppError: the folder holds no cache, or there is no such preset.
    """
    plan = read_train_plan(folder / PLAN_FILE)
    if preset is None:
        return plan
    return make_plan(preset, plan.app.labels, read_fingerprint(folder / FINGERPRINT_FILE))


def examine_all(
    cases: Sequence[TrainingCase], organs: Sequence[str], folder: Path, workers: int = 1
) -> list[Examination]:
    """The examination of every case, in order; those on record in ``folder/checks`` are not made again."""
    (folder / _CHECKS).mkdir(parents=True, exist_ok=True)
    records = {case.case_id: folder / _CHECKS / f"{case.case_id}.json" for case in cases}
    found = {case.case_id: read_examination(records[case.case_id], case, organs) for case in cases}
    missing = [case for case in cases if found[case.case_id] is None]
    for case, one in each_case(partial(examine, organs=tuple(organs)), missing, workers, "examine"):
        write_examination(records[case.case_id], case, organs, one)
        found[case.case_id] = one
    return [one for one in found.values() if one is not None]


def sound_cases(
    cases: Sequence[TrainingCase], found: Sequence[Examination], skip_bad: bool = False
) -> list[TrainingCase]:
    """The cases without problems; every problem and warning of every case is logged.

    Raises:
        CaseError: there are problems and ``skip_bad`` was not given, or no case is left.
    """
    for one in found:
        for text in one.warnings:
            logger.warning("%s: %s", one.case_id, text)
        for text in one.problems:
            logger.error("%s: %s", one.case_id, text)
    bad = {one.case_id: len(one.problems) for one in found if one.problems}
    labelled = sum(case.label_path is not None for case in cases if case.case_id not in bad)
    logger.info(
        "%d cases examined: %d labelled and %d unlabelled are sound, %d have problems",
        len(cases),
        labelled,
        len(cases) - len(bad) - labelled,
        len(bad),
    )
    if bad and not skip_bad:
        raise CaseError(
            f"{sum(bad.values())} problems in {len(bad)} of {len(cases)} cases ({', '.join(bad)}), listed above; "
            "mend them, or leave these cases out with --skip-bad"
        )
    kept = [case for case in cases if case.case_id not in bad]
    if not kept:
        raise CaseError("no case without problems is left")
    return kept


def prepare(cases: Sequence[TrainingCase], plan: TrainPlan, folder: Path, workers: int = 1) -> list[str]:
    """Writes the cache of cases that were examined; returns the ids that were written, not found complete.

    Raises:
        FolderError: the folder cannot be written.
    """
    digest = preprocessing_digest(plan.app)
    write_train_plan(folder / PLAN_FILE, plan)
    missing = [case for case in cases if not _is_complete(case, folder, digest)]
    logger.info("%d cases to prepare, %d are there", len(missing), len(cases) - len(missing))
    work = partial(prepare_case, plan=plan, folder=folder, digest=digest)
    for case, seconds in each_case(work, missing, workers, "prepare"):
        logger.info("%s: prepared in %.2f s", case.case_id, seconds)
    return [case.case_id for case in missing]


def prepare_case(case: TrainingCase, plan: TrainPlan, folder: Path, digest: str) -> float:
    """Writes one case; returns the seconds that it took.

    Raises:
        AppError: it does not fit into memory or cannot be written.
    """
    start = time.perf_counter()
    try:
        _prepare_case(case, plan, folder, digest)
    except MemoryError as error:
        raise CaseError(f"{case.image_path}: does not fit into memory; use fewer --workers") from error
    return time.perf_counter() - start


def _prepare_case(case: TrainingCase, plan: TrainPlan, folder: Path, digest: str) -> None:
    image, record = preprocess(read_volume(case.image_path), plan.app, training_spacing(plan.app))
    label = None
    if case.label_path:
        stored = label_ids(read_volume(case.label_path))
        for organ in case.not_trusted if not plan.organs_as_one else ():  # by a wrong name it is an organ all the same
            stored = np.where(stored == plan.app.labels.index(organ) + 1, np.uint8(0), stored)
        cropped = record.axis_map.apply(stored)[record.box_zyx]
        label = resample_label_map(cropped, record.grid.shape_zyx, record.restoration_orders)
    write_case(
        case_folder(folder, case.case_id),
        image,
        label,
        pad=plan.app.intensity.normalised(plan.app.sliding_window.pad_hu),
        flat=plan.app.network.dimensions == 2,
        meta={
            "case_id": case.case_id,
            "spacing_zyx_mm": list(record.grid.target_zyx_mm),
            "labelled": label is not None,
            "organs": list(plan.app.labels),
            **_identity(case, digest),
        },
        organs_as_one=plan.organs_as_one,
    )


def _identity(case: TrainingCase, digest: str) -> dict[str, Any]:
    """What has to be unchanged for a prepared case to be taken as it is."""
    return {"digest": digest, "source": source_of(case), "not_annotated": list(case.hidden)}


def _is_complete(case: TrainingCase, folder: Path, digest: str) -> bool:
    meta = read_meta(case_folder(folder, case.case_id))
    wanted = {"format": FORMAT_VERSION, **_identity(case, digest)}
    return meta is not None and all(meta.get(key) == value for key, value in wanted.items())


def check_folder(cases: Sequence[TrainingCase], folder: Path, digest: str) -> None:
    """Looks for what would end up in the same training by mistake, before anything of it is written over.

    Raises:
        FolderError: the folder holds the cache of another plan or of other cases.
    """
    metas = {path.parent.name: read_meta(path.parent) or {} for path in sorted(folder.glob(f"cases/*/{META}"))}
    if others := [case_id for case_id, meta in metas.items() if meta.get("digest") != digest]:
        raise FolderError(
            f"{folder}: holds {len(others)} cases prepared with another plan ({others[0]}, ...); "
            "choose another folder, or remove this one"
        )
    if strangers := sorted(set(metas) - {case.case_id for case in cases}):
        raise FolderError(
            f"{folder}: holds {', '.join(strangers)}, which are not among the cases asked for; choose another "
            "folder, or prepare all and hold them out of the fit"
        )
