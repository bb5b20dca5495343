"""The table and the scatter plot, both from the JSON."""

from pathlib import Path
from typing import Any

from app.atomic_files import atomic_file
from tools.figures.organ_colours import organ_colour


def markdown(found: dict[str, Any]) -> str:
    """What agreement foretells, organ by organ and over all."""
    bad, warn = found["bad_below_dsc"], found["warn_below_agreement"]
    lines = [
        f"`{found['command']}`",
        "",
        f"Agreement: DSC between the label maps of both networks of {found['bundle']}. DSC: that of the first against "
        f"the reference ({found['about_labels']}). AUROC: of agreement for a DSC below {bad:g}. Intervals: 95 %, over "
        "scans drawn whole; with few scans they are too narrow. In the last row much is which organ it is: read the "
        "organs' own rows first.",
        "",
        f"| organ | organs (scans) | Spearman | AUROC | DSC below {bad:g} | agreement below {warn:g} | both "
        "| found by neither |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for organ, row in {**found["organs"], "all": found["all"]}.items():
        lines.append(
            f"| {organ} | {row['pairs']} ({row['scans']}) | {_number(row, 'spearman')} | {_number(row, 'auroc')} "
            f"| {row['bad']} | {row['warned']} | {row['warned_and_bad']} | {row['missed_by_both']} |"
        )
    return "\n".join(lines) + "\n"


def draw_scatter(found: dict[str, Any], path: Path) -> None:
    """Agreement against DSC, a dot an organ; a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for label, organ in enumerate(found["organs"], start=1):
        dots = [pair for pair in found["pairs"] if pair["organ"] == organ and pair["agreement"] is not None]
        if dots:
            agreement, dsc = [dot["agreement"] for dot in dots], [dot["dsc"] for dot in dots]
            axes.plot(agreement, dsc, "o", color=organ_colour(label), markeredgecolor="0.3", markersize=5, label=organ)
    axes.axhline(found["bad_below_dsc"], color="0.6", linewidth=0.8, linestyle="--")
    axes.axvline(found["warn_below_agreement"], color="0.6", linewidth=0.8, linestyle="--")
    axes.set(
        xlim=(-0.03, 1.03),
        ylim=(-0.03, 1.03),
        xlabel="agreement: DSC between both networks",
        ylabel="DSC against the reference",
    )
    overall = found["all"]
    axes.set_title(
        f"{found['bundle']}: Spearman {_number(overall, 'spearman')}, AUROC {_number(overall, 'auroc')},\n"
        f"{overall['pairs']} organs in {overall['scans']} scans and their copies",
        fontsize=9,
    )
    figure.legend(fontsize=8, loc="outside right upper")
    with atomic_file(path) as stream:
        figure.savefig(stream, format="png", dpi=120)


def _number(row: dict[str, Any], key: str) -> str:
    if row[key] is None:
        return "-"
    interval = row[f"{key}_interval"]
    return f"{row[key]:.2f}" + (f" ({interval[0]:.2f} to {interval[1]:.2f})" if interval else "")
