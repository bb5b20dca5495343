"""Faults that end the process: kill -9 at any moment, SIGTERM, and a run that another one meets."""

import random
import signal
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from tools.hostile import preloaded
from tools.hostile.machine import ROOT
from tools.hostile.processes import LONGEST_S, finish, frozen_when, run_app, start
from tools.hostile.workshop import CASES, Outcome, Workshop, arguments, hashes, report_in
from tools.phantom import write_phantoms

KILLS, TERMS = 200, 10
_END_WITHIN_S = 1.0
_SEED = 8


def kill_at_any_moment(shop: Workshop) -> Outcome:
    """``kill -9`` between the first trace in the output folder and the end; then ``--skip-existing``."""
    generator, failures = random.Random(_SEED), []
    log = shop.folder / "killed.log"
    first_s, all_s = _moments(shop, log)
    written: list[int] = []
    left_behind = 0
    for trial in range(shop.times(KILLS)):
        outputs = shop.fresh("killed")
        report = shop.folder / "killed.json"
        with preloaded.start(shop.command(outputs, "--report", report), log):
            time.sleep(generator.uniform(first_s, all_s))
        found = hashes(outputs)
        partial = [name for name in found if name.startswith(".")]
        left_behind += bool(partial)
        written.append(len(found) - len(partial))
        failures += [f"kill {trial}: {wrong}" for wrong in shop.wrong(outputs) if not wrong.startswith(".")]
        with preloaded.start(shop.command(outputs, "--report", report, "--skip-existing"), log) as child:
            after = preloaded.finish(child, log)
        failures += [f"run after kill {trial}: {wrong}" for wrong in shop.wrong(outputs, complete=True)]
        if after.exit_code:  # and perhaps no report
            failures.append(f"run after kill {trial}: exit code {after.exit_code}, {after.stderr[-300:]}")
            continue
        statuses = [case["status"] for case in report_in(report)["cases"]]
        if statuses.count("skipped") != written[-1]:
            failures.append(f"run after kill {trial}: {statuses}, {written[-1]} were there")
        if temporary := [path.name for path in report.parent.glob(".*")]:
            failures.append(f"run after kill {trial}: {temporary} beside the report")
    counts = ", ".join(f"{written.count(count)} with {count}" for count in range(CASES + 1) if count in written)
    notes = f"label maps at the kill: {counts}; a temporary file at {left_behind} kills, at none after the next run"
    expected = "no partial file under a final name; --skip-existing does the rest and leaves no temporary file"
    return Outcome("kill -9 at a random moment of five cases", len(written), expected, tuple(failures), notes)


def sigterm(shop: Workshop) -> Outcome:
    """SIGTERM at random moments of a run of the default network, whose windows take seconds."""
    generator, failures, seconds = random.Random(_SEED), [], []
    list(write_phantoms(shop.fresh("terminated_phantoms"), 3, 1, None, False, (64, 96, 96), (5.0, 5.0, 5.0)))
    inputs = shop.folder / "terminated_phantoms" / "images"
    report = shop.folder / "terminated.json"
    for _ in range(shop.times(TERMS)):
        outputs = shop.fresh("terminated") / "labels"
        with start(*arguments(inputs, outputs, ROOT / "weights" / "default"), "--report", report) as child:
            with frozen_when(child, outputs.is_dir):
                pass
            delay_s = generator.uniform(0.5, 6.0)
            time.sleep(delay_s)
            child.send_signal(signal.SIGTERM)
            done = finish(child)
        seconds.append(done.seconds)
        names = list(hashes(outputs))
        said = f"interrupted: {len(names)} of 3 cases are done" in done.stderr
        listed = all(name.removesuffix(".nii.gz") in done.stderr.split("interrupted: ")[-1] for name in names)
        if done.seconds > _END_WITHIN_S or done.exit_code != 130 or done.crashed or not (said and listed):
            failures.append(
                f"after {delay_s:.2f} s: {done.seconds:.2f} s, exit code {done.exit_code}, {done.stderr[-300:]}"
            )
        elif report_in(report)["exit_code"] != 130 or any(name.startswith(".") for name in names):
            failures.append(f"after {delay_s:.2f} s: report or {names}")
    notes = f"ended within {max(seconds):.2f} s"
    expected = f"exit code 130 within {_END_WITHIN_S:g} s; log and report say which cases are done"
    return Outcome("SIGTERM during the default network", len(seconds), expected, tuple(failures), notes)


def two_runs_at_once(shop: Workshop) -> Outcome:
    """Two runs into one folder: neither breaks a file of the other."""
    failures, refused = [], 0
    trials = shop.times(20)
    for trial in range(trials):
        outputs = shop.fresh("shared")
        logs = [shop.folder / f"shared_{number}.log" for number in range(2)]
        with ExitStack() as stack:
            children = [stack.enter_context(preloaded.start(shop.command(outputs), log)) for log in logs]
            both = [preloaded.finish(child, log) for child, log in zip(children, logs, strict=True)]
        refused += sum(done.stderr.count("another run is writing it") for done in both)
        failures += [f"trial {trial}: {wrong}" for wrong in shop.wrong(outputs, complete=True)]
        failures += [
            f"trial {trial}: exit code {done.exit_code}, {done.stderr[-300:]}"
            for done in both
            if done.exit_code not in (0, 1)
        ]
    notes = f"{refused} of {2 * CASES * trials} label maps refused since the other run was writing them"
    return Outcome("two runs into one folder at once", trials, "whole label maps, all of them", tuple(failures), notes)


def report_after_skipping(shop: Workshop) -> Outcome:
    """A second run with ``--skip-existing`` and the same ``--report`` keeps what the first one told."""
    outputs, report = shop.fresh("skipping"), shop.folder / "skipping.json"
    report.unlink(missing_ok=True)
    name = "--skip-existing with the same --report"
    expected = "the skipped cases' records stand under the run that made them"
    reports: list[dict[str, Any]] = []
    for more in ((), ("--skip-existing",)):
        done = run_app(*shop.command(outputs, "--report", report, *more))
        if done.exit_code:
            return Outcome(name, 1, expected, (f"exit code {done.exit_code}, {done.stderr[-300:]}",))
        reports.append(report_in(report))
        min(outputs.iterdir()).unlink()  # the second run makes it anew
    first, second = reports
    kept = {case["case_id"]: case for run in second["earlier_runs"] for case in run["cases"]}
    failures = [
        f"{case['case_id']}: its record is lost" for case in first["cases"][1:] if kept.get(case["case_id"]) != case
    ]
    if second["cases"][0]["status"] != "segmented" or len(kept) != CASES - 1:
        failures.append(f"records kept: {sorted(kept)}")
    return Outcome(name, 1, expected, tuple(failures))


def _moments(shop: Workshop, log: Path) -> tuple[float, float]:
    """(seconds until the output folder is made, seconds until the end), medians of three runs without faults."""
    firsts, ends = [], []
    for _ in range(3):
        outputs: Path = shop.fresh("timed") / "labels"
        since = time.monotonic()
        with preloaded.start(shop.command(outputs), log) as child:
            while child.is_alive() and not outputs.is_dir() and time.monotonic() - since < LONGEST_S:
                time.sleep(0.001)
            firsts.append(time.monotonic() - since)
            preloaded.finish(child, log)
            ends.append(time.monotonic() - since)
    return median(firsts), median(ends)
