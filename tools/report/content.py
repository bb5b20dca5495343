"""Everything that the page holds: tables for its template, JSON and packed voxels for its script."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tools.evaluate.record import with_failed_as_zero
from tools.evaluate.values import Record
from tools.report.case_table import Column, case_columns
from tools.report.cases import ROLES, CaseView
from tools.report.limits import Limit, flare_limits
from tools.report.measured import Measured, Run
from tools.report.scores import organs_of, scored_elsewhere, scores_content
from tools.report.volumes import GREY_KNOTS


@dataclass(frozen=True)
class Tile:
    """A key figure of the head of the page."""

    title: str
    text: str
    unit: str
    remark: str


@dataclass(frozen=True)
class Page:
    """What the template gets.

    Attributes:
        title: headline.
        credit: where the scans are from.
        facts: what was run, and on what.
        tiles, limits, columns: the summary and the table of cases.
        case_ids: of the table's rows and of the selector.
        stage_tables: of each run with stages, by its name.
        missing: what is not in the report, and why.
        data: for the script.
        volumes: packed voxels by the id of their element.
    """

    title: str
    credit: str
    facts: Sequence[str]
    tiles: Sequence[Tile]
    limits: Sequence[Limit]
    columns: Sequence[Column]
    case_ids: Sequence[str]
    stage_tables: Mapping[str, Sequence[Mapping[str, Any]]]
    missing: Sequence[str]
    data: Mapping[str, Any]
    volumes: Mapping[str, str]


def build_page(
    title: str,
    credit: str,
    views: dict[str, CaseView | str],
    measured: Measured,
    record: Record | None,
    predictions: Path,
) -> Page:
    """The page.

    Args:
        title: its headline.
        credit: where the scans are from.
        views: of each case, in order; a text says why it has none.
        measured: time and memory.
        record: scores; None without.
        predictions: the folder of the label maps in ``views``.
    """
    case_ids = list(views)
    data = {
        "organs": organs_of(record),
        "greyKnots": GREY_KNOTS,
        "cases": [_case_data(index, *entry, measured) for index, entry in enumerate(views.items())],
        "runs": [_run_data(run) for run in measured.runs],
        "scores": scores_content(record) if record else None,
    }
    return Page(
        title=title,
        credit=credit,
        facts=_facts(measured),
        tiles=_tiles(views, measured, record),
        limits=flare_limits(measured),
        columns=case_columns(case_ids, views, measured, record),
        case_ids=case_ids,
        stage_tables={run.name: table for run in measured.runs if (table := _stage_table(run, measured))},
        missing=_missing(views, measured, record, predictions),
        data=data,
        volumes=_volumes(views),
    )


def _volumes(views: dict[str, CaseView | str]) -> dict[str, str]:
    return {
        f"voxels-{index}-{name}": text
        for index, view in enumerate(views.values())
        if isinstance(view, CaseView)
        for name, text in zip(("scan", *view.roles), (view.packed.scan, *view.packed.label_maps), strict=True)
    }


def _facts(measured: Measured) -> list[str]:
    """Such as ``3dcps:cpu``, ``openvino on cpu, fp32``, ``AMD EPYC, 2 cores``, ``limits: -m 8G``."""
    facts = [measured.harness["image"]] if measured.harness else []
    if (network := measured.network) is not None:
        facts.append(f"{network['backend']} on {network['device']}, {network['precision']}")
    recordings = [run.profile["recording"] for run in measured.runs if run.profile]
    if recordings:
        machine, gpu = recordings[0]["machine"], recordings[0]["gpu"]
        facts.append(f"{machine['cpu']}, {recordings[0]['cores']} cores, {machine['memory_mib'] / 1024:.0f} GiB")
        facts += [gpu["name"]] if gpu else []
    if measured.harness and measured.harness["limits"]:
        facts.append("limits: " + " ".join(f"{option} {value}" for option, value in measured.harness["limits"].items()))
    return facts


def _tiles(views: dict[str, CaseView | str], measured: Measured, record: Record | None) -> list[Tile]:
    """Only of what there is."""
    tiles = [Tile("cases", str(len(views)), "", _statuses(measured))]
    tiles += _time_tile(measured)
    peaks = [
        run.profile["own"]["memory"]["peak_mib"]
        for run in measured.runs
        if run.profile and run.profile["own"]["memory"]
    ]
    if peaks:
        tiles.append(Tile("peak memory", f"{max(peaks):,.0f}", "MiB", "largest of all runs"))
    gpu = [run.profile["gpu"]["peak_mib"] for run in measured.runs if run.profile and run.profile["gpu"]]
    if gpu:
        tiles.append(Tile("peak GPU memory", f"{max(gpu):,.0f}", "MiB", "whole device"))
    for key, name in (("dsc", "DSC"), ("nsd", "NSD")) if record else ():
        tiles += _score_tile(record, key, name) if record else []
    return tiles


def _time_tile(measured: Measured) -> list[Tile]:
    """Of runs that ended well or that nobody judged: a container that failed at once was not fast."""
    timed = [(run.seconds, run.status) for run in measured.runs if run.seconds is not None]
    seconds = [seconds for seconds, status in timed if status in ("ok", None)]
    if not seconds:
        return []
    left_out = f"; {len(timed) - len(seconds)} not ok left out" if len(seconds) < len(timed) else ""
    remark = f"mean; longest {max(seconds):.1f} s{left_out}"
    return [Tile("time of a run", f"{sum(seconds) / len(seconds):.1f}", "s", remark)]


def _score_tile(record: Record, key: str, name: str) -> list[Tile]:
    mean, interval = (record[what]["official"]["all_organs"][key] for what in ("mean", "interval"))
    if mean is None:
        return []
    spread = f", {interval[0]:.3f} to {interval[1]:.3f}" if interval else ""
    counted = with_failed_as_zero(record)[key]
    if any(case["status"] == "failed" for case in record["cases"]) and counted is not None:
        spread += f"; {counted:.3f} with failed cases as 0"
    return [Tile(f"mean {name}", f"{mean:.3f}", "", f"official{spread}")]


def _statuses(measured: Measured) -> str:
    cases = measured.harness["cases"] if measured.harness else [*measured.app_cases.values()]
    names = list(dict.fromkeys(case["status"] for case in cases))
    return ", ".join(f"{sum(case['status'] == name for case in cases)} {name}" for name in names)


def _missing(
    views: dict[str, CaseView | str], measured: Measured, record: Record | None, predictions: Path
) -> list[str]:
    """Said once each, in the order of the page."""
    said = [f"{case_id}: no slices: {why}" for case_id, why in views.items() if isinstance(why, str)]
    shown = {case_id: view.roles for case_id, view in views.items() if isinstance(view, CaseView)}
    unpredicted, unreferenced = ([i for i, roles in shown.items() if role not in roles] for role in ROLES)
    if unpredicted:
        said.append(f"{', '.join(unpredicted)}: no prediction: slices show the reference alone")
    if unreferenced:
        whose = "no references" if len(unreferenced) == len(shown) else f"{', '.join(unreferenced)}: no reference"
        said.append(f"{whose}: no difference view")
    if record is None:
        said.append("no scores: give --scores FILE, the scores.json of tools.evaluate")
    else:
        said += scored_elsewhere(record, predictions)
        said += [f"{case['case_id']}: no scores: {case['error']}" for case in record["cases"] if case["error"]]
    if not measured.runs:
        said.append("no time and memory: give --profile DIR of tools.profile, or --app-report FILE for stages alone")
    said += [
        f"{run.name}: its run belongs to no case of this report; expected {run.case_id}.nii.gz among them"
        for run in measured.runs
        if run.case_id is not None and run.case_id not in views
    ]
    said += [f"{run.name}: {note}" for run in measured.runs for note in run.notes]
    for why in dict.fromkeys(why for run in measured.runs for why in run.missing):
        runs = [run.name for run in measured.runs if why in run.missing]
        said.append(why if len(runs) == len(measured.runs) else f"{', '.join(runs)}: {why}")
    return said


def _case_data(index: int, case_id: str, view: CaseView | str, measured: Measured) -> dict[str, Any]:
    run = measured.run_of(case_id)
    return {
        "id": case_id,
        "run": None if run is None else [*measured.runs].index(run),
        "noView": view if isinstance(view, str) else None,
        "view": None
        if isinstance(view, str)
        else {
            "shape": view.packed.shape_zyx,
            "spacing": view.packed.spacing_zyx_mm,
            "roles": view.roles,
            "planes": view.planes,
            "volumesMl": view.volumes_ml,
            "voxels": {name: f"voxels-{index}-{name}" for name in ("scan", *view.roles)},
        },
    }


def _run_data(run: Run) -> dict[str, Any]:
    return {
        "name": run.name,
        "caseId": run.case_id,
        "seconds": run.seconds,
        "curves": [asdict(curve) for curve in run.curves],
        "spans": [asdict(span) for span in run.spans],
        "loading": asdict(run.loading) if run.loading else None,
    }


def _stage_table(run: Run, measured: Measured) -> Sequence[Mapping[str, Any]]:
    """Of the profile; of the app's report alone, seconds without the rest."""
    if run.profile and run.profile["stages"]:
        rows: Sequence[Mapping[str, Any]] = run.profile["stages"]["table"]
        return rows
    reported = measured.app_cases.get(run.case_id or "")
    return [{"stage": stage, "seconds": seconds} for stage, seconds in reported["seconds"].items()] if reported else []
