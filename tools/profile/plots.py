"""Pictures of a recording: the organisers' three, and one with all curves and the stages as bands."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app.atomic_files import atomic_file
from app.report import Span
from tools.profile.curves import SCOPE_NAMES, Points, core_curve, value_curve
from tools.profile.recording import Recording

_HOST_COLOUR, _OWN_COLOUR, _GPU_COLOUR = "0.6", "tab:blue", "tab:green"


def draw_profile(recording: Recording, stages: Sequence[Span], path: Path) -> None:
    """CPU, memory and, where there is one, GPU memory over the seconds since the first sample of the run.

    Host and command have panels of their own for memory: a busy machine's would flatten the command's. ``stages`` are
    shaded, each in a colour of its own; none leaves the ground white.
    """
    samples = recording.during("run", "end")
    zero_s, own = samples[0].monotonic_s, SCOPE_NAMES[recording.header.scope]
    panels: list[tuple[str, list[tuple[str, Points, str]]]] = [
        (
            "cores in use",
            [
                ("host", core_curve(samples, "host_busy_s", zero_s), _HOST_COLOUR),
                (own, core_curve(samples, "cpu_s", zero_s), _OWN_COLOUR),
            ],
        ),
        ("memory, MiB", [(own, value_curve(samples, "memory_mib", zero_s), _OWN_COLOUR)]),
        ("memory, MiB", [("host", value_curve(samples, "host_memory_mib", zero_s), _HOST_COLOUR)]),
    ]
    if recording.header.gpu:
        panels.append(("GPU memory, MiB", [("device", value_curve(samples, "gpu_mib", zero_s), _GPU_COLOUR)]))
    figure, all_axes = _panels(len(panels))
    for axes, (unit, lines) in zip(all_axes, panels, strict=True):
        for label, points, colour in lines:
            times, values = [time for time, _ in points], [value for _, value in points]
            axes.plot(times, values, color=colour, label=label, linewidth=1)
        axes.set_ylabel(unit, fontsize=8)
        axes.set_ylim(bottom=0)
        axes.set_xmargin(0)
        axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    _shade(figure, all_axes, stages, samples[0].unix_s)
    all_axes[-1].set_xlabel("s", fontsize=8)
    figure.suptitle(_title(recording.header.command), fontsize=8, parse_math=False)
    _save(figure, path, dpi=110)


def draw_official(content: dict[str, Any], stem: str, folder: Path, interval_s: float) -> None:
    """``<stem>_CPU-Time.png`` and the two others of the organisers, over the number of values times interval."""
    used = [100 - idle for _, _, idle in content["cpu_list"]]
    curves = {
        "CPU": (used, "CPU Utilization (%)", 100),
        "RAM": (content["RAM_list"], "RAM (MB)", 100),
        "GPU": (content["gpu_memory"], "GPU Memory (MB)", 300),
    }
    for name, (values, label, dpi) in curves.items():
        if not values:  # no GPU; CPU of a run shorter than an interval
            continue
        figure, (axes,) = _panels(1)
        axes.plot([index * interval_s for index in range(len(values))], values, "b")
        axes.set_xlabel("Time (s)", fontsize="large")
        axes.set_ylabel(label, fontsize="large")
        _save(figure, folder / f"{stem}_{name}-Time.png", dpi)


def _shade(figure: Any, panels: list[Any], stages: Sequence[Span], start_unix_s: float) -> None:
    from matplotlib import colormaps
    from matplotlib.patches import Patch

    names = list(dict.fromkeys(span.stage for span in stages))
    shades = [*range(0, 20, 2), *range(1, 20, 2)]  # the ten full colours first, then their pale twins
    colours = {name: colormaps["tab20"](shades[index % 20]) for index, name in enumerate(names)}
    for span in stages:
        for axes in panels:
            axes.axvspan(
                span.start_unix_s - start_unix_s,
                span.end_unix_s - start_unix_s,
                color=colours[span.stage],
                alpha=0.3,
                linewidth=0,
            )
    if names:
        keys = [Patch(color=colours[name], alpha=0.3, label=name) for name in names]
        figure.legend(handles=keys, fontsize=7, loc="outside lower center", ncols=min(len(keys), 6))


def _title(command: Sequence[str]) -> str:
    text = " ".join(" ".join(command).split()).encode(errors="backslashreplace").decode()  # not all names are UTF-8
    return text if len(text) <= 120 else text[:117] + "..."


def _panels(count: int) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.2 + 1.8 * count), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(count, 1, squeeze=False, sharex=True)[:, 0])
    for axes in panels:
        axes.tick_params(labelsize=7)
    return figure, panels


def _save(figure: Any, path: Path, dpi: int) -> None:
    with atomic_file(path) as stream:
        figure.savefig(stream, format="png", dpi=dpi)
