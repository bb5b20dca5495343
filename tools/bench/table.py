"""The results as Markdown: targets, medians, stages, ratios."""

from collections.abc import Callable, Iterable
from typing import Any

from tools.bench.summary import STAGES, Record


def markdown(results: dict[str, Any]) -> str:
    """All tables, and where and how the numbers were made. A dash is a number that was not measured."""
    summary, rows = results["summary"], results["rows"]
    parts = [
        _targets(results["targets"]),
        _runs(rows, summary["rows"], results["scans"]),
        _stages(rows, summary["rows"]),
        _windows(rows, summary["rows"]),
        _ratios(summary["ratios"]),
        _places({name: record for name, record in rows.items() if record["runs"]}, results),
    ]
    return "\n".join(part for part in parts if part)


def _targets(targets: list[Record]) -> str:
    if all(target["verdict"] == "not measured" for target in targets):
        return "Targets: none of them was measured.\n"
    body = [
        (target["name"], f"{_limit(target['limit'])} {target['unit']}", _number(target["found"], 3), target["verdict"])
        for target in targets
    ]
    return _section("Targets", ("target", "at most", "found", "verdict"), body)


def _runs(rows: Record, summaries: Record, scans: Record) -> str:
    body = []
    for name, record in rows.items():
        found = summaries[name]
        if record["row"]["program"] == "window":
            continue
        if found["error"] and not found["runs"]:
            body.append((name, "failed", *["-"] * 8))
            continue
        shape = scans.get(record["row"]["scan"], {}).get("shape_zyx")
        body.append(
            (
                name,
                " x ".join(map(str, shape)) if shape else "-",
                _number(found["windows"], 0),
                _number(found["wall_s"]),
                _number(found["cpu_s"]),
                _number(found["peak_rss_mib"], 0),
                _number(found.get("floor_s")),
                _number(found.get("wall_over_floor")),
                _number(found["others_cores"]),
                str(found["runs"]),
            )
        )
    titles = (
        "row",
        "voxels (z, y, x)",
        "windows",
        "wall s",
        "CPU s",
        "peak MiB",
        "floor s",
        "wall / floor",
        "others",
        "runs",
    )
    return _section("Medians of cold processes", titles, body)


def _stages(rows: Record, summaries: Record) -> str:
    body = []
    for name, record in rows.items():
        found = summaries[name]
        if record["row"]["program"] == "app" and found["runs"]:
            per_window = _number(1000 * found["network_s_per_window"], 0)
            body.append((name, *(_number(found["stages"][stage]) for stage in STAGES), per_window))
    return _section(
        "Stages of this app, s", ("row", *(stage.replace("_", "-") for stage in STAGES), "network ms / window"), body
    )


def _windows(rows: Record, summaries: Record) -> str:
    body = [
        (name, _number(1000 * summaries[name]["window_s"], 0), str(summaries[name]["runs"]))
        for name, record in rows.items()
        if record["row"]["program"] == "window" and summaries[name]["runs"]
    ]
    return _section("The bare window", ("network, group, precision", "ms", "runs"), body)


def _ratios(ratios: list[Record]) -> str:
    body = []
    for ratio in ratios:
        if not ratio["pairs"]:
            continue
        notes = [] if ratio["same_windows"] else ["not the same windows"]
        notes += [] if ratio["interleaved"] else ["not interleaved"]
        numbers = (_number(ratio[name], 3) for name in ("wall_s", "cpu_s", "peak_rss_mib"))
        body.append((ratio["ours"], ratio["peer"], *numbers, str(ratio["pairs"]), "; ".join(notes)))
    return _section(
        "Ours / theirs, pair by pair", ("ours", "theirs", "wall", "CPU", "peak memory", "pairs", "notes"), body
    )


def _places(rows: Record, results: dict[str, Any]) -> str:
    places = {
        f"{facts['cpu']}, {facts['cores']} cores, {'with' if facts['bf16'] else 'without'} bf16, "
        f"{facts['memory_mib'] / 1024:.0f} GiB ({facts['host']}), Linux {facts['kernel']}, "
        f"OpenVINO {facts['packages'].get('openvino', '?')}": None
        for facts in (record["machine"] for record in rows.values())
    }
    lines = [f"Machine: {place}.\n" for place in places]
    lines += [f"Commit: {found}.\n" for found in _by_group(rows, _commit)]
    lines += [f"Command: {found}.\n" for found in _by_group(rows, _command)]
    failed = [f"{name}: {found['error']}" for name, found in results["summary"]["rows"].items() if found["error"]]
    lines += [f"\nFailed: {error}\n".replace("\n", " ").strip() + "\n" for error in failed]
    return "\n".join(lines)


def _by_group(rows: Record, tell: Callable[[Record], str]) -> list[str]:
    """What is told of each row, once, with the groups of which it is."""
    groups: dict[str, dict[str, None]] = {}
    for record in rows.values():
        group = f"{record['row']['network']}/{record['row']['group']}"
        groups.setdefault(tell(record), {})[group] = None
    return [f"{told} ({', '.join(names)})" for told, names in groups.items()]


def _commit(record: Record) -> str:
    found = record["commit"]
    state = f" with {found['changed_files']} changed files" if found["changed_files"] else ""
    return f"{found['commit'] or 'not in a clone'}{state}"


def _command(record: Record) -> str:
    return f"`{' '.join(record['command'])}`"


def _section(title: str, columns: tuple[str, ...], body: Iterable[tuple[str, ...]]) -> str:
    rows = list(body)
    if not rows:
        return ""
    head = [f"### {title}\n", f"| {' | '.join(columns)} |", f"|---|{'---:|' * (len(columns) - 1)}"]
    return "\n".join([*head, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _limit(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:g}"
