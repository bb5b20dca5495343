"""Pictures of a training's log: losses, schedule, agreement of the siblings, DSC per organ."""

from pathlib import Path
from typing import Any

from app.atomic_files import atomic_file
from app.errors import AppError
from tools.train.training_log import LOG_FILE, read_lines

CURVES_FILE = "curves.png"
_POINTS: dict[str, Any] = {"marker": "."}  # a line through one epoch cannot be seen


def read_log(run: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(epoch lines, validation lines) of a training's log.

    Raises:
        AppError: there is no log, it is damaged, or no epoch is in it yet.
    """
    lines = read_lines(run)
    epochs = [line for line in lines if line["kind"] == "epoch"]
    if not epochs:
        raise AppError(f"{run / LOG_FILE}: no epoch is finished yet; try again later")
    return epochs, [line for line in lines if line["kind"] == "validation"]


def draw_curves(run: Path) -> Path:
    """Draws the log into ``curves.png`` beside it; returns the picture's path."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    epochs, validations = read_log(run)
    at = [line["epoch"] + 1 for line in epochs]
    figure, axes = plt.subplots(2, 2, figsize=(12, 8), layout="constrained")
    losses, schedule, agreement, dsc = axes.flat
    for name in ("total", "supervised", "cross"):
        losses.plot(at, [line["losses"][name] for line in epochs], label=name, **_POINTS)
    losses.set(title="losses (mean over the epoch, sum over siblings)", xlabel="epoch")
    schedule.plot(at, [line["learning_rate"] for line in epochs], color="tab:blue", **_POINTS)
    schedule.set(title="learning rate (left), consistency weight (right)", xlabel="epoch", yscale="log")
    right = schedule.twinx()
    right.plot(at, [line["consistency_weight"] for line in epochs], color="tab:orange", **_POINTS)
    right.set_ylim(bottom=0)
    if "agreement" in epochs[0]["losses"]:
        agreement.plot(at, [line["losses"]["agreement"] for line in epochs], **_POINTS)
    agreement.set(title="voxels on which the siblings agree (training patches)", xlabel="epoch")
    _draw_dsc(dsc, validations)
    losses.legend()
    with atomic_file(run / CURVES_FILE) as stream:
        figure.savefig(stream, format="png", dpi=110)
    plt.close(figure)
    return run / CURVES_FILE


def _draw_dsc(axes: Any, validations: list[dict[str, Any]]) -> None:
    """One line an organ, in the order of the labels; ten colours, then the same ones dashed."""
    at = [line["epoch"] + 1 for line in validations]
    for index, organ in enumerate(dict.fromkeys(organ for line in validations for organ in line["dsc"])):
        values = [line["dsc"].get(organ, float("nan")) for line in validations]
        axes.plot(at, values, color=f"C{index % 10}", linestyle=("-", "--")[index // 10 % 2], label=organ, **_POINTS)
    if validations:
        axes.plot(at, [line["mean_dsc"] for line in validations], color="black", linewidth=2.5, label="mean", **_POINTS)
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set(title="DSC on held-out scans", xlabel="epoch", ylim=(0, 1))
