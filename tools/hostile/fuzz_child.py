"""One process of the fuzzer: seed after seed through the app, until something is wrong; that ends the process.

``python -m tools.hostile.fuzz_child FIRST COUNT FOLDER``. The seed under way stands in ``FOLDER/seed``, what the done
ones came to in ``FOLDER/tally.json``: the parent, ``fuzz``, finds the culprit there if this process crashes or hangs.
"""

import gzip
import json
import logging
import os
import re
import resource
import shutil
import struct
import sys
import time
import warnings
from collections import Counter
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import nibabel

from app.cases import find_cases
from app.errors import AppError
from app.machine_limits import mapped_bytes, resident_bytes
from app.options import Options
from app.plan import Plan
from app.progress import SilentProgress
from app.report import RunRecord
from app.runs import run
from app.sources import NetworkSource, NetworkSources
from app.volume_io import read_header
from tools.hostile.constant import LABEL, ConstantPredictor, Finding, plans
from tools.hostile.mutation import HostileInput, make_input

ALLOWED_BYTES = 96 * 2**20  # above what the process holds at rest; --max-memory, in effect
SLACK_BYTES = 32 * 2**20  # prediction may be this much too low
_ADDRESS_SPACE_BYTES = 2**30  # further room, beyond which allocation fails
_AT_ONCE = 25  # inputs of one run
_SEED_DIGITS = 8
_NO_SCAN = "no name of a scan"
_NIBABEL_EVERY = 20


class Tally:
    """What the inputs came to."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.families: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.slowest_s, self.slowest_seed = 0.0, -1
        self.largest_mib, self.largest_seed = 0.0, -1

    def add(self, given: HostileInput, error: str | None, seconds: float, grown_bytes: int) -> None:
        """Counts an input; ``error`` is None if there is a label map."""
        self.outcomes["label map" if error is None else "refused"] += 1
        self.families.update(given.families or ("healthy",))
        if error is not None:
            self.reasons[_reason(error)] += 1
        if seconds > self.slowest_s:
            self.slowest_s, self.slowest_seed = seconds, given.seed
        if grown_bytes / 2**20 > self.largest_mib:
            self.largest_mib, self.largest_seed = grown_bytes / 2**20, given.seed

    def write(self, path: Path, following: int) -> None:
        """Writes it, and the seed that comes next."""
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps({"next": following, **vars(self)}))
        partial.replace(path)


class _Watch(SilentProgress):
    """Says which seed is under way, and what each took."""

    def __init__(self, marker: int) -> None:
        self.seconds: dict[int, float] = {}
        self.grown_bytes: dict[int, int] = {}
        self._marker, self._seed, self._start, self._at_rest = marker, -1, 0.0, 0

    def mark(self, seed: int) -> None:
        """Says that this seed is under way."""
        os.pwrite(self._marker, struct.pack("<q", seed), 0)

    def make(self, seed: int) -> HostileInput:
        """Its input."""
        self.mark(seed)
        return make_input(seed)

    def start_case(self, case_id: str) -> None:
        """Every name begins with its seed."""
        self._seed = int(case_id[:_SEED_DIGITS])
        self.mark(self._seed)
        self._at_rest = _restart_peak()
        self._start = time.process_time()

    def finish_case(self) -> None:
        """Measures it."""
        self.seconds[self._seed] = time.process_time() - self._start  # others keep it waiting, too
        self.grown_bytes[self._seed] = grown = _peak_bytes() - self._at_rest
        if grown > ALLOWED_BYTES + SLACK_BYTES:
            raise Finding(f"took {grown // 2**20} MiB; expected at most {ALLOWED_BYTES // 2**20}")


def main() -> int:
    """Runs the seeds; 0 if all went as it must, else an exception ends the process."""
    first, count, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    logging.getLogger("app").setLevel(logging.CRITICAL)
    logging.getLogger("app").addHandler(logging.NullHandler())
    warnings.simplefilter("error")  # numpy's too: a warning would be a line that no user understands
    ways = plans()
    tally = Tally()
    with (folder / "seed").open("wb", buffering=0) as marker:
        watch = _Watch(marker.fileno())
        check([watch.make(first)], *ways[0], folder, watch)  # imports and caches: nobody's memory
        room = mapped_bytes() + _ADDRESS_SPACE_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (room, room))
        for start in range(first, first + count, _AT_ONCE):
            following = min(start + _AT_ONCE, first + count)
            watch = _Watch(marker.fileno())
            given = [watch.make(seed) for seed in range(start, following)]
            errors = check(given, *ways[start // _AT_ONCE % len(ways)], folder, watch)
            for each in given:
                tally.add(each, errors[each.seed], watch.seconds.get(each.seed, 0), watch.grown_bytes.get(each.seed, 0))
            tally.write(folder / "tally.json", following)
    return 0


def check(
    given: list[HostileInput], plan: Plan, options: Options, folder: Path, watch: _Watch
) -> dict[int, str | None]:
    """Runs inputs as the command line does; by seed the message of a refusal, or None if there is a right label map.

    Raises:
        Finding: of an input there is neither, or both, or something else changed.
    """
    inputs, outputs = folder / "inputs", folder / "outputs"
    for side in (inputs, outputs):
        shutil.rmtree(side, ignore_errors=True)
        side.mkdir(parents=True)
    paths = {each.seed: _write(each, inputs) for each in given}
    options = replace(options, max_memory_bytes=resident_bytes() + ALLOWED_BYTES, read_ahead=False)
    record = RunRecord(options={})
    errors: dict[int, str | None] = dict.fromkeys(paths, _NO_SCAN)
    try:
        cases = find_cases(inputs, outputs)
        sources = NetworkSources(NetworkSource(plan, lambda: (ConstantPredictor(plan.classes), ())))
        run(cases, sources, options, watch, record)
    except AppError as error:
        if len(given) > 1:  # one bad case never stops the others
            raise Finding(f"the run stopped: {error}") from error
        errors = dict.fromkeys(errors, str(error))
    for case in record.cases:
        errors[int(case.case_id[:_SEED_DIGITS])] = case.error
        if (case.status == "segmented") != (case.error is None):
            raise Finding(f"status {case.status} with error {case.error!r}")
    for each in given:
        watch.mark(each.seed)
        _check_outcome(each, errors[each.seed], paths[each.seed], outputs)
    return errors


def _write(given: HostileInput, inputs: Path) -> Path:
    path = inputs / f"{given.seed:0{_SEED_DIGITS}d}{given.name}"
    path.write_bytes(given.content)
    if given.sparse_bytes > len(given.content):
        os.truncate(path, given.sparse_bytes)
    return path


def _check_outcome(given: HostileInput, error: str | None, path: Path, outputs: Path) -> None:
    left = [path.name for path in outputs.glob(f"{given.seed:0{_SEED_DIGITS}d}*")]
    if error is not None:
        if left:
            raise Finding(f"refused ({error}), but there is {left}")
        if error != _NO_SCAN and path.name not in error and str(path.parent) not in error:
            raise Finding(f"the message names no file: {error}")
        if given.healthy:
            raise Finding(f"a healthy file was refused: {error}")
        return
    if len(left) != 1 or not left[0].endswith(".nii.gz"):
        raise Finding(f"segmented, but there is {left}")
    header = read_header(path)
    if header is None or path.stat().st_size != max(len(given.content), given.sparse_bytes):
        raise Finding("the input changed")
    shape_xyz = header.geometry.shape_zyx[::-1]
    _check_label_map(outputs / left[0], shape_xyz)
    if given.seed % _NIBABEL_EVERY == 0:
        found = nibabel.load(outputs / left[0])
        if found.shape != shape_xyz:
            raise Finding(f"nibabel reads a label map of {found.shape}; expected {shape_xyz}")


def _check_label_map(path: Path, shape_xyz: tuple[int, ...]) -> None:
    """Reads the file with the standard library alone: magic, shape, type, and not a voxel that nobody predicted."""
    content = gzip.decompress(path.read_bytes())
    version_1 = content[:4] == struct.pack("<i", 348)
    layout: dict[str, Any] = (
        {"dim": ("<8h", 40), "type": ("<h", 70), "offset": ("<f", 108), "magic": (344, b"n+1\0")}
        if version_1
        else {"dim": ("<8q", 16), "type": ("<h", 12), "offset": ("<q", 168), "magic": (4, b"n+2\0\r\n\x1a\n")}
    )
    dim = struct.unpack_from(*_place(layout["dim"], content))
    (code,) = struct.unpack_from(*_place(layout["type"], content))
    (offset,) = struct.unpack_from(*_place(layout["offset"], content))
    start, magic = layout["magic"]
    if content[start : start + len(magic)] != magic or code != 2 or dim[1:4] != shape_xyz:
        raise Finding(f"label map with {content[start : start + 8]!r}, type {code}, dim {dim}; expected {shape_xyz}")
    voxels = content[int(offset) :]
    if len(voxels) != prod(shape_xyz) or set(voxels) - {0, LABEL} or LABEL not in voxels:
        raise Finding(f"label map of {len(voxels)} voxels with labels {sorted(set(voxels))}")


def _place(field: tuple[str, int], content: bytes) -> tuple[str, bytes, int]:
    return field[0], content, field[1]


def _restart_peak() -> int:
    """Resident bytes, from which the peak now counts again."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident_bytes()


def _peak_bytes() -> int:
    (line,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(line) * 1024


def _reason(error: str) -> str:
    """The message without what differs from file to file, short enough to count."""
    text = re.sub(r"^.*?/inputs(/\d{8}[^:]*)?: ", "", error.replace("\n", " "))
    text = re.sub(r"b'.*?'", "BYTES", text).partition(";")[0]
    return re.sub(r"-?(\d[\d.e+x-]*|nan|inf)\b", "N", text)[:60]


if __name__ == "__main__":
    sys.exit(main())
