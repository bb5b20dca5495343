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
        save: gets the record after each round of blocks.
        workers: children at once, each with a block of seeds.
    """
    if record.get("digest") != code_digest():
        record = new_record()
    folder = Path(tempfile.mkdtemp(prefix="hostile-", dir=memory_disk()))
    try:
        while record["next"] < inputs and len(record["findings"]) < _MOST_FINDINGS:
            start = time.monotonic()
            last = min(inputs, record["next"] + workers * BLOCK)
            blocks = [(first, min(first + BLOCK, last)) for first in range(record["next"], last, BLOCK)]
            with ThreadPoolExecutor(workers) as pool:
                for block in list(pool.map(lambda ends: _try_block(ends[0], ends[1], folder), blocks)):
                    _add(record, block)
            record["seconds"] += time.monotonic() - start
            save(record)
    finally:
        shutil.rmtree(folder)
    return record


def _try_block(first: int, last: int, parent: Path) -> Record:
    """What the seeds from ``first`` to before ``last`` came to; a child that ends badly is followed by another."""
    folder = parent / str(first)
    folder.mkdir()
    record = {**new_record(), "next": first}
    while record["next"] < last:
        _run_child(record, last - record["next"], folder)
    shutil.rmtree(folder)
    return record


def _run_child(record: Record, count: int, folder: Path) -> None:
    """One child; if it ends badly, the seed is noted and ``next`` is behind it."""
    first = record["next"]
    for name in ("seed", "tally.json"):
        (folder / name).unlink(missing_ok=True)
    with (folder / "stderr").open("wb") as errors:
        command = [sys.executable, "-m", "tools.hostile.fuzz_child", str(first), str(count), str(folder)]
        child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=errors)
        hung = _watch(child, folder / "seed")
    if (folder / "tally.json").exists():
        _add(record, json.loads((folder / "tally.json").read_text()))
    if child.returncode:
        seed = _seed(folder / "seed")
        if seed is None:
            raise FolderError(f"the fuzzer's child cannot start: {_last_line(folder)}")
        end = "hang" if hung else _ending(child.returncode)
        record["findings"].append({"seed": seed, "end": end, "message": _last_line(folder)})
        for again in range(record["next"], seed):  # tried, but not counted yet
            record["next"] = again
            _run_child(record, 1, folder)
        record["next"] = seed + 1


def _watch(child: "subprocess.Popen[bytes]", marker: Path) -> bool:
    """Waits for the child; whether it had to be killed since one seed took too long."""
    seed, since, used = None, time.monotonic(), 0.0
    while True:
        try:
            child.wait(_POLL_S)
            return False
        except subprocess.TimeoutExpired:
            now, working = _seed(marker), _processor_s(child.pid)
            if now != seed:
                seed, since, used = now, time.monotonic(), working
            elif seed is not None and (working - used > LONGEST_S or time.monotonic() - since > LONGEST_WAIT_S):
                child.send_signal(signal.SIGKILL)
                child.wait()
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
    record["findings"] += tally.get("findings", [])
    record["next"] = tally["next"]


def _nothing_large() -> Record:
    return {name: start for names in _LARGEST for name, start in zip(names, (0.0, -1), strict=True)}


def _ending(code: int) -> str:
    return f"exit code {code}" if code > 0 else signal.Signals(-code).name


def _last_line(folder: Path) -> str:
    lines = (folder / "stderr").read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""
