"""The limits of issue 6, each from the runs alone: met, not met, or not measured."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from tools.bench.rows import SHIPPED
from tools.bench.summary import Record, Rows, floors_s, good_runs, middle, pair_by_pair

_V1 = "paper/ct_001/v1-fastest"


@dataclass(frozen=True)
class Target:
    """A limit and what was found.

    Attributes:
        name: what is limited.
        limit: the largest number that meets it.
        unit: of both; empty for a ratio.
        found: None if a run that it needs is not there.
        rows: whose runs it needs.
    """

    name: str
    limit: float
    unit: str
    found: float | None
    rows: tuple[str, ...]

    @property
    def verdict(self) -> Literal["met", "not met", "not measured"]:
        """The limit itself meets it."""
        if self.found is None:
            return "not measured"
        return "met" if self.found <= self.limit else "not met"


def evaluate_targets(rows: Rows, summary: dict[str, Any]) -> list[dict[str, Any]]:
    """All targets with their verdicts, as JSON."""
    found = [
        *_against_v1(summary["ratios"]),
        *_near_floor(rows),
        *_normal_mode(rows),
        *_half_precision(rows),
        *_memory(rows),
        *_tiled(rows),
    ]
    return [{**asdict(target), "verdict": target.verdict} for target in found]


def _against_v1(ratios: list[Record]) -> list[Target]:
    targets = []
    for measure, precision, limit, what in (
        ("wall_s", "bf16", 1 / 4, "wall"),
        ("wall_s", "fp32", 1 / 2.5, "wall"),
        ("peak_rss_mib", "bf16", 1 / 3, "peak memory"),
        ("peak_rss_mib", "fp32", 1 / 3, "peak memory"),
    ):
        ours = f"paper/ct_001/app-{precision}-fastest"
        pair = next((ratio for ratio in ratios if (ratio["ours"], ratio["peer"]) == (ours, _V1)), None)
        value = pair[measure] if pair and pair["same_windows"] else None
        name = f"paper-size network, ct_001, same windows: {what} in {precision} / nnU-Net v1 fastest"
        targets.append(Target(name, limit, "", value, (ours, _V1)))
    return targets


def _near_floor(rows: Rows) -> list[Target]:
    """Seconds above 1.5 x floor, of run k against the window of round k."""
    targets = []
    for scan, limit in (("ct_001", 2.0), ("ct_007_slices_621", 5.0)):
        for precision in ("fp32", "bf16"):
            for what, setting in (("all windows", "fastest"), ("as shipped", f"normal{SHIPPED}")):
                name = f"default/{scan}/app-{precision}-{setting}"
                floors = floors_s(rows[name], rows) if name in rows else []
                value = middle(run["wall_s"] - 1.5 * floor for run, floor in floors)
                title = f"default bundle, {scan}, {what}: wall in {precision} - 1.5 x floor"
                targets.append(Target(title, limit, "s", value, (name, f"default/{scan}/window-{precision}")))
    return targets


def _normal_mode(rows: Rows) -> list[Target]:
    targets = []
    for precision in ("fp32", "bf16"):
        normal, fastest = (f"default/ct_001/app-{precision}-{mode}" for mode in ("normal", "fastest"))
        pairs = pair_by_pair(rows.get(normal), rows.get(fastest))
        value = middle(slow["wall_s"] - fast["wall_s"] for slow, fast in pairs)
        name = f"default bundle, ct_001: wall of normal - fastest in {precision}"
        targets.append(Target(name, 1.5, "s", value, (normal, fastest)))
    return targets


def _half_precision(rows: Rows) -> list[Target]:
    """Scan by scan the worst organ of all modes and runs, of what was found above 1 ml in either precision.

    Rows without a row in fp32 beside them are left out; one run without its comparison, and nothing is concluded.
    """
    names = [name for name in rows if name.startswith("default/") and "/app-bf16-" in name]
    names = [name for name in names if name.replace("/app-bf16-", "/app-fp32-") in rows]
    targets = []
    for scan in dict.fromkeys(("ct_001", *(name.split("/")[1] for name in names))):
        of_scan = tuple(name for name in names if name.split("/")[1] == scan)
        found = [run.get("worst_against_fp32") for name in of_scan for run in good_runs(rows[name])]
        losses = [1 - worst["dsc"] for worst in found if worst and worst["dsc"] is not None]
        value = None if None in found else max(losses, default=None)
        title = f"default bundle, {scan}: 1 - DSC of bf16 against fp32, worst organ above 1 ml"
        targets.append(Target(title, 0.005, "", value, of_scan))
    return targets


def _memory(rows: Rows) -> list[Target]:
    """The larger of what was sampled and what the app says of itself; the most of fastest, normal and as shipped."""
    targets = []
    for precision in ("fp32", "bf16"):
        settings = ("fastest", "normal", f"normal{SHIPPED}")
        names = tuple(f"default/ct_001/app-{precision}-{setting}" for setting in settings)
        medians = [
            middle(max(run["peak_rss_mib"], run["app_peak_mib"] or 0) for run in good_runs(rows.get(name)))
            for name in names
        ]
        value = max(found for found in medians if found is not None) if None not in medians else None
        targets.append(Target(f"default bundle, ct_001: peak memory in {precision}", 1536.0, "MiB", value, names))
    return targets


def _tiled(rows: Rows) -> list[Target]:
    """Growth of the network stage's seconds per window, of run k against run k."""
    targets = []
    for precision in ("fp32", "bf16"):
        short, long = (f"default/ct_007_tiled_{slices}/app-{precision}-normal" for slices in (160, 1200))
        pairs = pair_by_pair(rows.get(long), rows.get(short))
        value = middle(_window_s(large) / _window_s(small) for large, small in pairs)
        name = f"default bundle: network seconds per window in {precision}, 1200 / 160 tiled slices"
        targets.append(Target(name, 1.1, "", value, (short, long)))
    return targets


def _window_s(run: Record) -> float:
    return float(run["stages"]["network"] / run["windows"])
