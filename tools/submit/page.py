"""The record as one page of Markdown."""

import shlex
from collections.abc import Sequence
from typing import Any

_OWN_COLUMNS = {
    "peak, MiB": "container_peak_mib",
    "memory area, MiB s": "container_area_mib_s",
    "CPU, core s": "container_cpu_core_s",
    "GPU area above 2048 MiB, MiB s": "gpu_area_above_2048_mib_s",
}
_COLUMNS = (
    "The organisers' columns: time in s, memory in MB, areas in MB s and percent s, of the whole machine and device, "
    "whoever uses them; a case that fails or is stuck has their penalties, empty is not measured."
)


def page_text(record: dict[str, Any]) -> str:
    """The whole page: verdict, checks, what an organiser would measure, the archive."""
    parts = [_head(record), _failed(record["checks"]), _measured(record), _archive(record), _checks(record["checks"])]
    return "\n\n".join(part for part in parts if part) + "\n"


def verdict(record: dict[str, Any]) -> str:
    """One line: ``team:latest: 20 passed, 1 failed``."""
    counts = ", ".join(f"{count} {status}" for status, count in record["counts"].items())
    return f"{record['image']['name']}: {counts}"


def _head(record: dict[str, Any]) -> str:
    image = record["image"]
    ready = "ready to be sent in" if record["passed"] else "not ready"
    size_mb = image["size_bytes"] / 1e6
    return (
        f"# {image['name']}: {ready}\n\n{verdict(record)}. {image['identity']}, {size_mb:,.0f} MB unpacked, "
        f"{image['platform']}; checked {record['written']} by protocol {record['protocol']}."
    )


def _failed(checks: Sequence[dict[str, Any]]) -> str:
    failed = [check for check in checks if check["status"] == "failed"]
    if not failed:
        return ""
    return "## To repair\n\n" + "\n".join(map(_repair, failed))


def _repair(check: dict[str, Any]) -> str:
    title = f"**{check['title']}**" + ("" if check["from_flare"] else " (stricter than FLARE)")
    return f"* {title}: found {_line(check['found'])}; expected {check['expected']}. To do: {check['advice']}."


def _measured(record: dict[str, Any]) -> str:
    measured = record["measured"]
    if measured is None:
        return "## What an organiser would measure\n\nNothing: the image cannot run, see above."
    columns, cases = measured["columns"], measured["cases"]
    rows = [[case["row"][column] for column in columns] for case in cases if case["row"]]
    means = ["mean", *(measured["means"][column] for column in columns[1:])]
    own = [[case["stem"], case["status"], *(case[key] for key in _OWN_COLUMNS.values())] for case in cases]
    machine, cores = measured["machine"], measured["cores"]
    return "\n\n".join(
        [
            "## What an organiser would measure",
            f"On {machine['cpu']}, {cores} cores, {machine['memory_mib'] / 1024:.0f} GiB, {_gpu(measured)}. {_COLUMNS} "
            f"An idle machine of {cores} cores reads {100 / (cores + 1):.0f} % CPU.",
            _table(columns, [*rows, means]),
            "The container alone:",
            _table(["Name", "status", *_OWN_COLUMNS], own),
            f"One container start a scan, the first: `{shlex.join(measured['command'])}`",
        ]
    )


def _gpu(measured: dict[str, Any]) -> str:
    if measured["gpu"]:
        return f"GPU {measured['gpu']['index']}: {measured['gpu']['name']}"
    return f"**no GPU: its memory and area were not measured** ({_line(measured['no_gpu'] or 'no answer')})"


def _archive(record: dict[str, Any]) -> str:
    archive, team = record["archive"], record["team"]
    if archive is None:
        why = "" if record["passed"] else ": a check failed (`--force` writes it all the same)"
        return f"## Archive\n\n`{team}.tar.gz` is not written{why}."
    forced = "" if record["passed"] else "**Written by `--force`: a check failed.** "
    return (
        f"## Archive\n\n{forced}`{archive['name']}`, {archive['size_bytes'] / 1e6:,.0f} MB, "
        f"SHA-256 `{archive['sha256']}` (`sha256sum -c {archive['name']}.sha256`). The organisers will run\n\n"
        f"    docker image load < {archive['name']}\n    {record['organisers_command']}"
    )


def _checks(checks: Sequence[dict[str, Any]]) -> str:
    rows = [[check[key] for key in ("title", "status", "found", "expected")] for check in checks]
    by = ["FLARE" if check["from_flare"] else "stricter" for check in checks]
    lines = [[*row, source] for row, source in zip(rows, by, strict=True)]
    return "## All checks\n\n" + _table(["check", "result", "found", "expected", "by"], lines)


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [columns, ["---"] * len(columns), *([_cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:,.2f}" if isinstance(value, float) else _line(str(value)).replace("|", "\\|")


def _line(text: str) -> str:
    return " ".join(text.split())
