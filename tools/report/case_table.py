"""The table of cases: a column for whatever was measured of at least one of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from app.volume import as_text
from tools.evaluate.values import DSC, NSD, Metric, Record
from tools.report.cases import CaseView
from tools.report.measured import Measured, Run
from tools.report.scores import case_mean

_OFFICIAL = "as the organisers sum it, of the whole host or device, penalties included:"


@dataclass(frozen=True)
class Cell:
    """What a cell shows, and what it is sorted by; None sorts last and shows a dash."""

    text: str
    value: float | str | None


@dataclass(frozen=True)
class Column:
    """A column; ``hint`` explains it."""

    title: str
    hint: str
    numeric: bool
    cells: Sequence[Cell]


def case_columns(
    case_ids: Sequence[str], views: dict[str, CaseView | str], measured: Measured, record: Record | None
) -> list[Column]:
    """The columns that have something to show.

    Args:
        case_ids: of the rows.
        views: of each case that was read, or why it could not be.
        measured: of their runs.
        record: their scores.
    """

    def numbers(title: str, hint: str, decimals: int, value_of: Callable[[str], float | None]) -> Column:
        values = [value_of(case_id) for case_id in case_ids]
        texts = ["–" if value is None else f"{value:,.{decimals}f}" for value in values]
        return Column(title, hint, True, [Cell(text, value) for text, value in zip(texts, values, strict=True)])

    def of_run(value_of: Callable[[Run], float | None]) -> Callable[[str], float | None]:
        return lambda case_id: value_of(run) if (run := measured.run_of(case_id)) else None

    def score(metric: Metric) -> Callable[[str], float | None]:
        return lambda case_id: case_mean(record, case_id, metric) if record else None

    columns = [
        Column("case", "name of the scan", False, [Cell(case_id, case_id) for case_id in case_ids]),
        Column("voxels z × y × x", "of the scan, on the patient's axes", True, [_size(views, i) for i in case_ids]),
        Column("spacing, mm", "between voxel centres, z × y × x", True, [_spacing(views, i) for i in case_ids]),
        Column("status", "how its run ended", False, [_status(measured, case_id) for case_id in case_ids]),
        numbers("time, s", "wall clock of the container", 2, of_run(lambda run: run.seconds)),
        numbers("stages, s", "sum of the app's stages", 2, lambda case_id: _stages_s(measured, case_id)),
        numbers("memory, MiB", "peak of the container or process tree", 0, of_run(lambda run: _peak(run, "own"))),
        numbers("CPU, core s", "of the container or process tree", 1, of_run(_core_s)),
        numbers("GPU, MiB", "peak of the whole device", 0, of_run(lambda run: _peak(run, "gpu"))),
        numbers("AUC GPU", f"{_OFFICIAL} GPU memory over time, MB s", 0, of_run(lambda run: _area(run, "GPU"))),
        numbers("AUC CPU", f"{_OFFICIAL} CPU use over time, % s", 0, of_run(lambda run: _area(run, "CPU"))),
        numbers("AUC RAM", f"{_OFFICIAL} memory over time, MB s", 0, of_run(lambda run: _area(run, "RAM"))),
        numbers("DSC", "official, mean over organs", 4, score(DSC)),
        numbers("NSD", "official, mean over organs", 4, score(NSD)),
        numbers(
            "agreement", "of the bundle's two networks, DSC of the worst organ", 3, lambda i: _agreement(measured, i)
        ),
    ]
    return [column for column in columns if any(cell.value is not None for cell in column.cells)]


def _size(views: dict[str, CaseView | str], case_id: str) -> Cell:
    view = views.get(case_id)
    if not isinstance(view, CaseView):
        return Cell("–", None)
    z, y, x = view.geometry.shape_zyx
    return Cell(f"{z} × {y} × {x}", z * y * x)


def _spacing(views: dict[str, CaseView | str], case_id: str) -> Cell:
    view = views.get(case_id)
    if not isinstance(view, CaseView):
        return Cell("–", None)
    return Cell(as_text(view.geometry.spacing_zyx_mm).replace("x", "×"), view.geometry.voxel_volume_ml)


def _status(measured: Measured, case_id: str) -> Cell:
    """The harness's verdict, or the app's."""
    run, reported = measured.run_of(case_id), measured.app_cases.get(case_id)
    status = (run.status if run else None) or (reported["status"] if reported else None)
    return Cell(status or "–", status)


def _stages_s(measured: Measured, case_id: str) -> float | None:
    reported = measured.app_cases.get(case_id)
    return sum(reported["seconds"].values()) if reported and reported["seconds"] else None


def _peak(run: Run, scope: str) -> float | None:
    if run.profile is None:
        return None
    curve = run.profile["gpu"] if scope == "gpu" else run.profile["own"]["memory"]
    return curve["peak_mib"] if curve else None


def _core_s(run: Run) -> float | None:
    core_s: float | None = run.profile["own"]["cpu"]["core_s"] if run.profile else None
    return core_s


def _area(run: Run, what: str) -> float | None:
    area: float | None = run.row.get(f"AUC_{what}_Time") if run.row else None
    return area


def _agreement(measured: Measured, case_id: str) -> float | None:
    reported = measured.app_cases.get(case_id)
    found = ((reported and reported.get("agreement")) or {}).values()
    return min((value for value in found if value is not None), default=None)
