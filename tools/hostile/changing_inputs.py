"""Faults of the input: a scan that is rewritten, cut short, grown, removed or swapped while it is read."""

import gzip
import os
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from app.volume import Geometry
from tools.hostile.processes import finish, frozen_when, read_position, start
from tools.hostile.workshop import Outcome, Workshop, arguments
from tools.phantom import Phantom, write_image

_SHAPE_ZYX = (96, 512, 512)
_IDENTITY = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))

Harm = Callable[[Path], None]


def _rewrite(scan: Path) -> None:
    with scan.open("r+b") as stream:
        stream.seek(-(2**20), os.SEEK_END)
        stream.write(bytes(2**20))


def _cut(scan: Path) -> None:
    os.truncate(scan, 352 + 2**22 + 1000)


def _grow(scan: Path) -> None:
    with scan.open("ab") as stream:
        stream.write(bytes(1000))


def _replace(scan: Path) -> None:
    other = scan.with_name(".other")
    other.write_bytes(scan.read_bytes()[:-5000] + bytes(5000))
    other.replace(scan)


# name -> (harm, words of the message)
_HARMS: dict[str, tuple[Harm, tuple[str, ...]]] = {
    "rewritten in place": (_rewrite, ("changed while it was read",)),
    "cut short": (_cut, ("changed while it was read", "the file is truncated")),
    "grown": (_grow, ("changed while it was read",)),
    "replaced": (_replace, ("changed while it was read",)),
    "removed": (Path.unlink, ("cannot be read (No such file or directory)",)),
}


def input_changed_while_read(shop: Workshop) -> Outcome:
    """Each harm is done to the first of two scans while the run is frozen in the middle of reading it."""
    failures = []
    for name, (harm, words) in _HARMS.items():
        inputs, outputs = shop.fresh("changing"), shop.fresh("changing_labels")
        scan = _write_large_scan(inputs / "a.nii")
        _small_scan(inputs / "b.nii.gz")
        with start(*arguments(inputs, outputs, shop.bundle)) as child:
            with frozen_when(child, partial(_is_within, child, scan)) as frozen:
                if frozen:
                    harm(scan)
            done = finish(child)
        left = sorted(path.name for path in outputs.iterdir())
        said = any(word in done.stderr for word in words)
        if not frozen:
            failures.append(f"{name}: reading was not seen; exit code {done.exit_code}, {done.stderr[-300:]}")
        elif done.crashed or done.exit_code != 1 or not said or left != ["b.nii.gz"]:
            failures.append(f"{name}: exit code {done.exit_code}, {left}, {done.stderr[-300:]}")
    expected = "that case fails and its message says why; the next one is segmented"
    return Outcome(f"input {', '.join(_HARMS)} while it is read", len(_HARMS), expected, tuple(failures))


def _is_within(child: "subprocess.Popen[str]", scan: Path) -> bool:
    return read_position(child, scan) > 2**22


def _write_large_scan(path: Path) -> Path:
    """48 MiB of air: long enough to be met in the middle."""
    packed = path.with_name(".packed.nii.gz")
    voxels = np.full((1, *_SHAPE_ZYX[1:]), -1000, dtype=np.int16)
    write_image(packed, Phantom(voxels, voxels.astype(np.uint8), _geometry((1, *_SHAPE_ZYX[1:]))))
    content = bytearray(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    content[46:48] = _SHAPE_ZYX[0].to_bytes(2, "little")  # dim[3]
    path.write_bytes(bytes(content) + bytes(content[352:]) * (_SHAPE_ZYX[0] - 1))
    return path


def _small_scan(path: Path) -> None:
    voxels = np.full((8, 8, 8), 40, dtype=np.int16)
    write_image(path, Phantom(voxels, voxels.astype(np.uint8), _geometry((8, 8, 8))))


def _geometry(shape_zyx: tuple[int, int, int]) -> Geometry:
    return Geometry(shape_zyx, (3.0, 1.0, 1.0), _IDENTITY, (0.0, 0.0, 0.0))
