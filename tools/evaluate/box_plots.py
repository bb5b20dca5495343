"""Box plots per organ from records: how cases spread, where a table has one mean."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from app.atomic_files import atomic_file
from tools.evaluate.values import (
    DSC,
    HD95,
    NSD,
    VOLUME_ERROR,
    Float64Array,
    Metric,
    Record,
    metric_values,
    scored_ids,
)

_SHOWN = (DSC, NSD, HD95, VOLUME_ERROR)
_LINEAR_UP_TO = {HD95: 10.0, VOLUME_ERROR: 100.0}  # beyond, the scale is logarithmic: one lost organ hides no others
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9")  # Okabe and Ito's, for all eyes
_WIDTH_INCH, _PANEL_INCH = 12.0, 2.6
_JITTER = 0.3  # of a box's width


def draw_box_plots(records: Mapping[str, Record], rules: str, path: Path, cases: Sequence[str] | None = None) -> None:
    """Draws one panel for each metric into a PNG; none if no case has scores.

    A box has the quartiles and the median, its whiskers end at the last case within 1.5 box lengths, every case is a
    dot. Under an organ stands how many cases have a value of it, method by method.

    Args:
        records: what ``scores.json`` holds, by the method's name.
        rules: which DSC and NSD: ``official`` or ``corrected``.
        path: of the picture.
        cases: these only; None: of each record all that have scores.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    shown = {name: scored_ids(record) if cases is None else list(cases) for name, record in records.items()}
    if not any(shown.values()):
        return
    figure = Figure(figsize=(_WIDTH_INCH, _PANEL_INCH * len(_SHOWN) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, metric in zip(figure.subplots(len(_SHOWN), 1), _SHOWN, strict=True):
        values = [metric_values(record, metric, rules, shown[name]) for name, record in records.items()]
        _draw_panel(axes, metric, values, [organ["column"] for organ in next(iter(records.values()))["organs"]])
    counts = " / ".join(str(len(found)) for found in shown.values())
    figure.suptitle(f"{counts} cases; DSC and NSD: {rules}", fontsize=9)
    if len(records) > 1:
        keys = [Patch(color=_COLOURS[index % len(_COLOURS)], label=name) for index, name in enumerate(records)]
        figure.legend(handles=keys, fontsize=8, loc="outside upper right")
    with atomic_file(path) as stream:
        figure.savefig(stream, format="png", dpi=110)


def _draw_panel(axes: Any, metric: Metric, values: list[Float64Array], columns: list[str]) -> None:
    width, places = 0.8 / len(values), np.arange(len(columns), dtype=np.float64)
    counts = []
    rng = np.random.default_rng(0)
    for index, found in enumerate(values):
        cases = [column[~np.isnan(column)] * metric.scale for column in found.T]
        centres = places + np.float64((index - (len(values) - 1) / 2) * width)
        _draw_boxes(axes, cases, centres, width * 0.8, _COLOURS[index % len(_COLOURS)])
        at = np.repeat(centres, [len(column) for column in cases])
        at += rng.uniform(-0.5, 0.5, len(at)) * width * _JITTER
        axes.plot(at, np.concatenate(cases), ".", color="black", markersize=3, alpha=0.6)
        counts.append([str(len(column)) for column in cases])
    labels = [f"{column}\nn = {'/'.join(found)}" for column, *found in zip(columns, *counts, strict=True)]
    axes.axhline(metric.best * metric.scale, color="0.8", linewidth=0.8, zorder=0)
    axes.set_xticks(places, labels, fontsize=7)
    axes.set_xlim(-0.6, len(columns) - 0.4)
    axes.set_ylabel(metric.title, fontsize=8)
    axes.tick_params(axis="y", labelsize=7)
    if metric in _LINEAR_UP_TO:
        axes.set_yscale("symlog", linthresh=_LINEAR_UP_TO[metric])
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_ylim(0 if metric is HD95 else None)
    else:
        axes.set_ylim(-0.03, 1.03)


def _draw_boxes(axes: Any, cases: list[Float64Array], centres: Float64Array, width: float, colour: str) -> None:
    axes.boxplot(
        cases,
        positions=centres,
        widths=width,
        showfliers=False,
        manage_ticks=False,
        patch_artist=True,
        boxprops={"facecolor": colour, "alpha": 0.45, "linewidth": 0.6},
        medianprops={"color": colour, "linewidth": 1.8},
        whiskerprops={"linewidth": 0.6},
        capprops={"linewidth": 0.6},
    )
