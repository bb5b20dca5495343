"""Pictures of the results: wall time by stage with the floor as a line, and peak memory; one panel a group of rows."""

from pathlib import Path
from typing import Any

from app.atomic_files import atomic_file
from tools.bench.summary import STAGES, Record

TIME_FILE, MEMORY_FILE = "bench-time.png", "bench-memory.png"
_PEER_COLOUR = "0.85"
_OURS_COLOUR = "tab:blue"
_BAR_INCH, _PANEL_INCH = 0.3, 0.8

Group = list[tuple[str, Record]]


def draw_plots(results: dict[str, Any], folder: Path) -> list[Path]:
    """The paths of the pictures that were drawn; rows without a run are left out, and so are empty pictures."""
    groups: dict[tuple[str, str], Group] = {}
    for name, record in results["rows"].items():
        found = results["summary"]["rows"][name]
        if record["row"]["program"] != "window" and found["runs"]:
            groups.setdefault((record["row"]["network"], record["row"]["group"]), []).append((name, found))
    if not groups:
        return []
    machines = [record["machine"] for record in results["rows"].values() if record["runs"]]
    places = dict.fromkeys(f"{facts['cpu']}, {facts['cores']} cores ({facts['host']})" for facts in machines)
    title = f"{' / '.join(places)}; medians of cold processes"
    panels = list(groups.values())
    return [_draw_time(panels, title, folder / TIME_FILE), _draw_memory(panels, title, folder / MEMORY_FILE)]


def _draw_time(groups: list[Group], title: str, path: Path) -> Path:
    """Bars of the stages, the floor across them; a peer is one grey bar, as it does not tell its stages."""
    from matplotlib import colormaps
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    colours = {stage: colormaps["tab10"](index) for index, stage in enumerate(STAGES)}
    figure, panels = _panels(groups, title, "wall time, s")
    for axes, group in zip(panels, groups, strict=True):
        for place, (_, found) in enumerate(group):
            left = 0.0
            for stage, seconds in found.get("stages", {}).items():
                axes.barh(place, seconds, left=left, color=colours[stage])
                left += seconds
            if "stages" not in found:
                axes.barh(place, found["wall_s"], color=_PEER_COLOUR)
            if found.get("floor_s") is not None:
                axes.vlines(found["floor_s"], place - 0.45, place + 0.45, color="black", linewidth=2)
    keys: list[Any] = [Patch(color=colours[stage], label=stage.replace("_", "-")) for stage in STAGES]
    keys += [Patch(color=_PEER_COLOUR, label="nnU-Net"), Line2D([], [], color="black", linewidth=2, label="floor")]
    figure.legend(handles=keys, fontsize=7, loc="outside right upper")
    return _save(figure, path)


def _draw_memory(groups: list[Group], title: str, path: Path) -> Path:
    figure, panels = _panels(groups, title, "peak resident memory of all processes, MiB")
    for axes, group in zip(panels, groups, strict=True):
        colours = [_OURS_COLOUR if "stages" in found else _PEER_COLOUR for _, found in group]
        axes.barh(range(len(group)), [found["peak_rss_mib"] for _, found in group], color=colours)
    return _save(figure, path)


def _panels(groups: list[Group], title: str, unit: str) -> tuple[Any, list[Any]]:
    """(figure, axes of each group): horizontal bars from the top down, every panel with a scale of its own."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    heights = [_PANEL_INCH + _BAR_INCH * len(group) for group in groups]
    figure = Figure(figsize=(11, 0.5 + sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0])
    for axes, group in zip(panels, groups, strict=True):
        axes.set_yticks(range(len(group)), [name for name, _ in group], fontsize=7)
        axes.invert_yaxis()
        axes.tick_params(axis="x", labelsize=7)
    figure.suptitle(title, fontsize=9)
    panels[-1].set_xlabel(unit, fontsize=8)
    return figure, panels


def _save(figure: Any, path: Path) -> Path:
    with atomic_file(path) as stream:
        figure.savefig(stream, format="png", dpi=110)
    return path
