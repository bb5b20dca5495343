"""What was measured about a run: a folder of ``tools.profile``, or the report of the app alone."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.errors import FolderError
from app.report import REPORT_SCHEMA_VERSION
from tools.evaluate.cases import case_id_of
from tools.profile.measuring import PROFILE_FILE, REPORT_FILE
from tools.profile.recording import RECORDING_FILE, read_recording
from tools.profile.results import HARNESS_FILE, HARNESS_SCHEMA_VERSION
from tools.profile.summary import PROFILE_SCHEMA_VERSION
from tools.report.curves import Curve, StageSpan, curves_of, stage_spans


@dataclass(frozen=True)
class Run:
    """One run of the app or of a container.

    Attributes:
        name: for people.
        case_id: None if the run was not of one case.
        status: ``ok``, ``stuck``, ``failed``, ``interrupted``; None if nobody judged it.
        notes: what is not as expected.
        seconds: wall clock; None if it was not measured.
        row: the organisers' figures by their names, penalties included; None outside of a harness.
        profile: content of ``profile.json``; None without one.
        curves, spans, loading: the plots; ``loading`` is the network's, beside the others.
        missing: what has no curve or stages, and why.
    """

    name: str
    case_id: str | None
    status: str | None = None
    notes: Sequence[str] = ()
    seconds: float | None = None
    row: Mapping[str, Any] | None = None
    profile: Mapping[str, Any] | None = None
    curves: Sequence[Curve] = ()
    spans: Sequence[StageSpan] = ()
    loading: StageSpan | None = None
    missing: Sequence[str] = ()


@dataclass(frozen=True)
class Measured:
    """Everything measured.

    Attributes:
        runs: in the order of their cases.
        harness: content of ``harness.json``; None without one.
        app_cases: each case of the app's report, by id.
        network: backend, device and precision, as the app's report says.
    """

    runs: Sequence[Run] = ()
    harness: Mapping[str, Any] | None = None
    app_cases: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    network: Mapping[str, Any] | None = None

    def run_of(self, case_id: str) -> Run | None:
        """The run of a case."""
        return next((run for run in self.runs if run.case_id == case_id), None)


def read_measured(profile: Path | None, app_report: Path | None) -> Measured:
    """What the folder and the report say; reports inside the folder count too. Neither is nothing measured.

    Raises:
        FolderError: one of them is not what it should be.
    """
    runs, harness, reports = _read_folder(profile) if profile else ([], None, [])
    reports += [_read_json(app_report, REPORT_SCHEMA_VERSION, "a report of this app (--report)")] if app_report else []
    app_cases = {case["case_id"]: case for report in reports for case in report["cases"]}
    network = next((report["network"] for report in reports if report["network"]), None)
    if not any(run.spans for run in runs):
        known = {run.case_id for run in runs}
        runs += [run for report in reports for run in _runs_of_report(report) if run.case_id not in known]
    return Measured(runs, harness, app_cases, network)


def _read_folder(folder: Path) -> tuple[list[Run], Mapping[str, Any] | None, list[Mapping[str, Any]]]:
    """(runs, the harness, reports of the app) of a run's folder, a harness's, or the one that holds a harness's."""
    inner = sorted(folder.glob(f"*/{HARNESS_FILE}"))
    if not (folder / HARNESS_FILE).exists() and len(inner) == 1:
        folder = inner[0].parent
    if not (folder / HARNESS_FILE).exists():
        return [_read_run(folder, folder.name, None)], None, _reports([folder])
    harness = _read_json(folder / HARNESS_FILE, HARNESS_SCHEMA_VERSION, "that of tools.profile")
    runs = [
        _read_run(folder / case["folder"], case["stem"], case_id_of(_scan_name(case)), case)
        for case in harness["cases"]
    ]
    return runs, harness, _reports([folder / case["folder"] for case in harness["cases"]])


def _scan_name(case: Mapping[str, Any]) -> str:
    """Of a case of a harness; one of before they had it tells no more than the name's part before the first dot."""
    return str(case.get("scan", f"{case['stem']}.nii.gz"))


def _read_run(folder: Path, name: str, case_id: str | None, judged: Mapping[str, Any] | None = None) -> Run:
    profile = _read_json(folder / PROFILE_FILE, PROFILE_SCHEMA_VERSION, "the folder of a run of tools.profile")
    recording = read_recording(folder / RECORDING_FILE)
    start, stages = recording.start_unix_s, profile["stages"]
    missing = [] if profile["gpu"] else [f"no GPU curve: {profile['no_gpu'] or 'the GPU never answered'}"]
    missing += [] if stages else [f"no stages: {profile['no_stages']}"]
    missing += [] if profile["own"]["memory"] else [f"no memory of the {profile['own']['scope']}"]
    loading = _loading(folder / REPORT_FILE) if stages and stages["network_loaded_beside"] else []
    return Run(
        name=name,
        case_id=case_id,
        status=judged["status"] if judged else None,
        notes=judged["notes"] if judged else (),
        seconds=profile["seconds"],
        row=judged["row"] if judged else None,
        profile=profile,
        curves=curves_of(recording),
        spans=stage_spans(stages["spans"], start) if stages else (),
        loading=next(iter(stage_spans(loading, start)), None),
        missing=missing,
    )


def _reports(folders: Sequence[Path]) -> list[Mapping[str, Any]]:
    paths = [folder / REPORT_FILE for folder in folders]
    return [_read_json(path, REPORT_SCHEMA_VERSION, "the app's report") for path in paths if path.exists()]


def _loading(report: Path) -> list[dict[str, Any]]:
    span = json.loads(report.read_text(encoding="utf-8"))["network_load_span"]
    return [span] if span else []


def _runs_of_report(report: Mapping[str, Any]) -> list[Run]:
    """A timeline for each case, without curves; a case's time starts with its first stage."""
    runs = []
    for case in report["cases"]:
        spans = sorted(case["spans"], key=lambda span: span["start_unix_s"])
        start = spans[0]["start_unix_s"] if spans else 0.0
        missing = ["no curves: no folder of tools.profile was given"]
        runs.append(Run(case["case_id"], case["case_id"], spans=stage_spans(spans, start), missing=missing))
    return runs


def _read_json(path: Path, version: int, expected: str) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FolderError(f"{path}: {error.strerror}; expected {expected}") from error
    except ValueError as error:
        raise FolderError(f"{path}: no JSON ({error}); expected {expected}") from error
    found = content.get("schema_version") if isinstance(content, dict) else None
    if found != version:
        raise FolderError(f"{path}: schema_version {found}; expected {expected} with {version}. Write it anew")
    return dict(content)
