"""The fuzzer's parent: children over a range of seeds, what they came to, and the seeds at which one ended badly."""

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

from app.errors import FolderError
from tools.hostile.machine import ROOT, code_digest, memory_disk

Record = dict[str, Any]

LONGEST_S = 10.0  # of work on one input
LONGEST_WAIT_S = 120.0  # and without work: other programs may keep a process waiting
BLOCK = 2000  # seeds of one child: it starts anew often enough to leave nothing behind
_MOST_FINDINGS = 40  # then something is so wrong that more tell nothing
_POLL_S = 0.2
_SUMS = ("outcomes", "families", "reasons")
_LARGEST = (("slowest_s", "slowest_seed"), ("largest_mib", "largest_seed"))


def new_record() -> Record:
    """Nothing tried yet."""
    sums: Record = {name: {} for name in _SUMS}
    return {**sums, "next": 0, "seconds": 0.0, "findings": [], "digest": code_digest(), **_nothing_large()}


def fuzz(record: Record, inputs: int, save: Callable[[Record], None], workers: int = 1) -> Record:
    """Goes on with ``record`` until so many inputs were tried; a record of other code begins anew.

    Args:
        record: of ``new_record``, or of an earlier call that was stopped.
        inputs: how many, seeds 0 to ``inputs`` - 1.
        save: gets the record after each round of blocks, and when one is interrupted.
        workers: children at once, each with a block of seeds.
    """
    if record.get("digest") != code_digest():
        record = new_record()
    folder = Path(tempfile.mkdtemp(prefix="hostile-", dir=memory_disk()))
    try:
        while record["next"] < inputs and len(record["findings"]) < _MOST_FINDINGS:
            start, before, found = time.monotonic(), record["next"], len(record["findings"])
            last = min(inputs, before + workers * BLOCK)
            blocks = [(first, min(first + BLOCK, last)) for first in range(before, last, BLOCK)]
            try:
                _try_blocks(record, blocks, folder)
            finally:
                record["seconds"] += time.monotonic() - start
                if (record["next"], len(record["findings"])) != (before, found):
                    save(record)
    finally:
        shutil.rmtree(folder)
    return record


def _try_blocks(record: Record, blocks: list[tuple[int, int]], folder: Path) -> None:
    """Adds what blocks of seeds came to, all at once; when interrupted, the seeds tried without a gap, and findings."""
    tried = [{**new_record(), "next": first} for first, _ in blocks]
    stopping = Event()
    try:
        with ThreadPoolExecutor(len(blocks)) as pool:
            try:
                list(pool.map(lambda block, ends: _try_block(block, ends[1], folder, stopping), tried, blocks))
            except BaseException:
                stopping.set()  # the pool waits for its threads
                raise
    finally:
        for block, (first, _) in zip(tried, blocks, strict=True):
            if record["next"] == first:
                _add(record, block)
            else:
                _add_findings(record, block)


def _try_block(record: Record, last: int, parent: Path, stopping: Event) -> None:
    """Tries the seeds from ``next`` to before ``last``; a child that ends badly is followed by another."""
    folder = parent / str(record["next"])
    folder.mkdir()
    while record["next"] < last and not stopping.is_set():
        _run_child(record, last - record["next"], folder, stopping)
    shutil.rmtree(folder)


def _run_child(record: Record, count: int, folder: Path, stopping: Event) -> None:
    """One child; if it ends badly, the seed is noted and ``next`` is behind it. ``stopping`` ends it."""
    first = record["next"]
    for name in ("seed", "tally.json"):
        (folder / name).unlink(missing_ok=True)
    with (folder / "stderr").open("wb") as errors:
        command = [sys.executable, "-m", "tools.hostile.fuzz_child", str(first), str(count), str(folder)]
        with subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,  # a terminal's Ctrl-C is for the parent: a child that it ends would be a finding
        ) as child:
            try:
                hung = _watch(child, folder / "seed", stopping)
            finally:
                child.kill()  # nothing to one that has ended
    if (folder / "tally.json").exists():
        _add(record, json.loads((folder / "tally.json").read_text()))
    if child.returncode and not stopping.is_set():
        seed = _seed(folder / "seed")
        if seed is None:
            raise FolderError(f"the fuzzer's child cannot start: {_last_line(folder)}")
        end = "hang" if hung else _ending(child.returncode)
        record["findings"].append({"seed": seed, "end": end, "message": _last_line(folder)})
        for again in range(record["next"], seed):  # tried, but not counted yet
            record["next"] = again
            _run_child(record, 1, folder, stopping)
            if stopping.is_set():
                return
        record["next"] = seed + 1


def _watch(child: "subprocess.Popen[bytes]", marker: Path, stopping: Event) -> bool:
    """Waits until the child has ended, is to be stopped, or works too long on one seed; whether it is the last."""
    seed, since, used = None, time.monotonic(), 0.0
    while True:
        try:
            child.wait(_POLL_S)
            return False
        except subprocess.TimeoutExpired:
            if stopping.is_set():
                return False
            now, working = _seed(marker), _processor_s(child.pid)
            if now != seed:
                seed, since, used = now, time.monotonic(), working
            elif seed is not None and (working - used > LONGEST_S or time.monotonic() - since > LONGEST_WAIT_S):
                return True


def _processor_s(pid: int) -> float:
    """Seconds that a process has worked; 0 if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime, stime


def _seed(marker: Path) -> int | None:
    if not marker.exists() or marker.stat().st_size < 8:
        return None
    (seed,) = struct.unpack("<q", marker.read_bytes())
    return int(seed)


def _add(record: Record, tally: Record) -> None:
    """Adds what a child, or a block of seeds, came to."""
    for name in _SUMS:
        record[name] = dict(Counter(record[name]) + Counter(tally[name]))
    for number, seed in _LARGEST:
        if tally[number] > record[number]:
            record[number], record[seed] = tally[number], tally[seed]
    _add_findings(record, tally)
    record["next"] = tally["next"]


def _add_findings(record: Record, tally: Record) -> None:
    """Adds findings; those of an interrupted run's later blocks are met again."""
    known = {each["seed"] for each in record["findings"]}
    record["findings"] += [each for each in tally.get("findings", []) if each["seed"] not in known]


def _nothing_large() -> Record:
    return {name: start for names in _LARGEST for name, start in zip(names, (0.0, -1), strict=True)}


def _ending(code: int) -> str:
    return f"exit code {code}" if code > 0 else signal.Signals(-code).name


def _last_line(folder: Path) -> str:
    lines = (folder / "stderr").read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""
