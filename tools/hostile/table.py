"""The record as Markdown."""

from collections.abc import Iterator
from typing import Any

Record = dict[str, Any]

_HEAD = ("| tried | how often | expected | what happened |", "|---|---:|---|---|")
_MOST_REASONS = 12


def markdown(record: Record) -> str:
    """The table of all that was tried, the reasons of refusals, and where and how it was made."""
    lines = [*_HEAD, *_rows(record), "", *_reasons(record), *_circumstances(record)]
    return "\n".join(lines) + "\n"


def _rows(record: Record) -> Iterator[str]:
    if "fuzz" in record:
        yield _fuzz_row(record["fuzz"]["outcome"])
    for section in record.get("faults", {}).values():
        outcome = section["outcome"]
        if outcome["skipped"]:
            happened = f"not tried: {outcome['skipped']}"
        else:
            happened = _happened(outcome["failures"], outcome["notes"])
        yield _row(outcome["name"], outcome["tried"], outcome["expected"], happened)
    if "endurance" in record:
        yield _endurance_row(record["endurance"]["outcome"])
    if "determinism" in record:
        yield from _determinism_rows(record["determinism"]["outcome"])


def _fuzz_row(found: Record) -> str:
    counts = ", ".join(f"{count:,} {name}" for name, count in sorted(found["outcomes"].items()))
    notes = (
        f"{counts}; slowest {found['slowest_s']:.1f} s (seed {found['slowest_seed']}), "
        f"at most {found['largest_mib']:.0f} MiB (seed {found['largest_seed']})"
    )
    expected = "label map or message; no crash, no more than 10 s of work, no memory beyond --max-memory"
    bad = [f"seed {each['seed']}: {each['end']}" for each in found["findings"]]
    return _row("mutated NIfTI-1 and -2 files, gzip streams", found["next"], expected, _happened(bad, notes))


def _endurance_row(found: Record) -> str:
    notes = (
        f"{found['slope_mib']:+.4f} MiB a case ({found['first_mib']:.1f} to {found['last_mib']:.1f} MiB), "
        f"threads {_numbers(found['threads'])}, file handles {_numbers(found['handles'])}"
    )
    expected = "memory within 0.1 MiB a case; threads and file handles constant"
    return _row(
        f"cases in one process, {found['failed']} of them bad",
        found["cases"],
        expected,
        _happened(found["failures"], notes),
    )


def _determinism_rows(found: Record) -> Iterator[str]:
    contained = {None: "not tried in a container", True: "in a container too", False: "not in a container"}
    notes = (
        f"label maps in {found['runs']} runs: {found['different']}; "
        f"{'the same' if found['in_folder_equal'] else 'another'} among other scans; "
        f"{contained[found['in_container_equal']]}"
    )
    name = f"the same scan, bundle {found['bundle']}, fp32, one thread"
    yield _row(name, found["runs"], "equal bytes", _happened(found["failures"], notes))
    scores = found["dsc_across_threads"].values()
    if found["threads_equal"]:
        notes = f"equal bytes; {len(scores)} organs above 1 ml"
    else:
        notes = f"least DSC {min(scores):.5f} of {len(scores)} organs above 1 ml" if scores else "no organ above 1 ml"
    yield _row("one thread and two", 2, "DSC of organs above 1 ml at least 0.999", notes)


def _reasons(record: Record) -> Iterator[str]:
    if "fuzz" not in record:
        return
    reasons = sorted(record["fuzz"]["outcome"]["reasons"].items(), key=lambda item: -item[1])
    yield f"The fuzzer's refusals, the {_MOST_REASONS} most frequent of {len(reasons)} (N stands for numbers):"
    yield ""
    yield from ("| times | message |", "|---:|---|")
    yield from (f"| {count:,} | `{reason.replace('|', chr(92) + '|')}` |" for reason, count in reasons[:_MOST_REASONS])
    yield ""


def _circumstances(record: Record) -> Iterator[str]:
    sections = [record[name] for name in ("fuzz", "endurance", "determinism") if name in record]
    sections += record.get("faults", {}).values()
    places = dict.fromkeys(
        f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_mib'] / 1024:.0f} GiB ({facts['host']}), Linux "
        f"{facts['kernel']}, Python {facts['python']}"
        for facts in (section["machine"] for section in sections)
    )
    commands = dict.fromkeys(section["command"] for section in sections)
    yield from (f"Machine: {place}." for place in places)
    yield ""
    yield from (f"Command: `{command}`." for command in commands)


def _row(*cells: object) -> str:
    return f"| {' | '.join(f'{cell:,}' if isinstance(cell, int) else str(cell).replace('|', '/') for cell in cells)} |"


def _happened(failures: list[str], notes: str) -> str:
    if not failures:
        return f"as expected{'; ' if notes else ''}{notes}"
    return f"**{len(failures)} failures**, the first: {failures[0][:200]}".replace("\n", " ")


def _numbers(seen: list[int]) -> str:
    return " to ".join(dict.fromkeys((str(min(seen)), str(max(seen)))))
