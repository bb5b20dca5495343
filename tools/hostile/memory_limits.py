"""Too little memory, foreseen from the header: under a limit of address space, in a control group, in a container.

And scans that no memory holds, whose files are small: each is refused before anything of its size is allocated.
"""

import os
import re
import resource
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header

from tools.hostile.containers import run_container
from tools.hostile.gzip_streams import bomb
from tools.hostile.machine import memory_disk
from tools.hostile.processes import Done, run_app
from tools.hostile.workshop import Outcome, Workshop, arguments, report_in

_GROUPS = Path("/sys/fs/cgroup")
_GROUP = "3dcps-hostile"
_LIMIT_BYTES = 700 * 2**20
_ADDRESS_SPACE_BYTES = 4 * 2**30
_LARGE_XYZ, _HUGE_XYZ = (512, 512, 1300), (1024, 1024, 2000)  # 682 MB and 4.2 GB of int16
_PEAK_MIB = 400.0  # of a process that allocated nothing of a scan's size


def scans_beyond_all_memory(shop: Workshop) -> Outcome:
    """Promises of 32767^3 and, in NIfTI-2, 60,000^3 voxels, kept by nobody, by a sparse file, by a gzip bomb."""
    outputs, report = shop.fresh("promises_labels"), shop.folder / "promises.json"
    with tempfile.TemporaryDirectory(prefix="hostile-", dir=memory_disk()) as folder:
        inputs = Path(folder)
        words = {**_write_bombs(inputs), **_write_promises(inputs, 1, 32767), **_write_promises(inputs, 2, 60000)}
        done = run_app(*arguments(inputs, outputs, shop.bundle), "--report", report, "--max-memory", "250m")
    name = "promises of 32767^3 and 60,000^3 voxels, gzip bombs"
    expected = "refused before anything is allocated, the numbers in the message"
    if done.crashed:  # without a report
        return Outcome(name, len(words), expected, (f"exit code {done.exit_code}, {done.stderr[-300:]}",))
    told = report_in(report)
    peak_mib = told["peak_memory_mib"]
    peak = "unknown" if peak_mib is None else f"{peak_mib:.0f} MiB"
    errors = {case["case_id"]: case["error"] or "" for case in told["cases"]}
    failures = [f"{name}: {errors[name]}" for name, word in words.items() if word not in errors[name]]
    if done.exit_code != 1 or (peak_mib or 0) > _PEAK_MIB:
        failures.append(f"exit code {done.exit_code}, peak {peak}, {done.stderr[-300:]}")
    notes = f"peak of the process {peak}; slowest case {_slowest(told['cases']):.2f} s"
    return Outcome(name, len(words), expected, tuple(failures), notes)


def _write_promises(folder: Path, version: int, side: int) -> dict[str, str]:
    """Writes cubes of this side; gives case -> words of its message."""
    shape = (side,) * 3
    header = _header(version, shape)
    promise = f"header promises {side}x{side}x{side} voxels"
    (folder / f"{side}_empty.nii").write_bytes(header + bytes(1000))
    (folder / f"{side}_packed.nii.gz").write_bytes(bomb(header, 2**20))
    words = {f"{side}_empty": promise, f"{side}_packed": promise}
    sparse = folder / f"{side}_sparse.nii"
    sparse.write_bytes(header)
    try:
        os.truncate(sparse, len(header) + 2 * side**3)
        words[sparse.stem] = f"{side}x{side}x{side} voxels (z, y, x) need"
    except OSError:  # no memory disk here, and ext4's files end at 16 TB
        sparse.unlink()
    return words


def _write_bombs(folder: Path) -> dict[str, str]:
    """Writes sound streams of 4 GB and of 160 MB of zeros; gives case -> words of its message."""
    for name, shape in (("bomb", _HUGE_XYZ), ("small_bomb", (512, 512, 300))):
        (folder / f"{name}.nii.gz").write_bytes(bomb(_header(1, shape), 2 * int(np.prod(shape))))
    return {
        "bomb": "header promises 1024x1024x2000 voxels (4194304000 bytes), ",
        "small_bomb": "300x512x512 voxels (z, y, x) need",
    }


def limit_of_address_space(shop: Workshop) -> Outcome:
    """A scan too large for ``ulimit -v``."""
    inputs, outputs = _large_scan(shop, _HUGE_XYZ), shop.fresh("limited_labels")
    failures = []
    limits = (_ADDRESS_SPACE_BYTES, _ADDRESS_SPACE_BYTES)
    done = run_app(
        *arguments(inputs, outputs, shop.bundle), before=lambda: resource.setrlimit(resource.RLIMIT_AS, limits)
    )
    if not _foreseen(done, outputs, "the limit of address space (ulimit -v) allows"):
        failures.append(f"{_ADDRESS_SPACE_BYTES >> 20} MiB: exit code {done.exit_code}, {done.stderr[-300:]}")
    return Outcome("scan too large for ulimit -v", 1, "foreseen and said, exit code 1", tuple(failures), _need(done))


def control_group(shop: Workshop) -> Outcome:
    """A scan too large for the memory of a control group: the kernel would end the process."""
    name, expected = "scan too large for a control group's memory", "foreseen and said, exit code 1; not killed"
    inputs, outputs = _large_scan(shop, _LARGE_XYZ), shop.fresh("limited_labels")
    with _memory_group(_LIMIT_BYTES) as group:
        if group is None:
            return Outcome(name, 0, expected, skipped="no control group of memory can be made here")
        done = run_app(*arguments(inputs, outputs, shop.bundle), before=lambda: _enter(group))
    failures = () if _foreseen(done, outputs, str(group)) else (f"exit code {done.exit_code}, {done.stderr[-300:]}",)
    return Outcome(name, 1, expected, failures, _need(done))


def container(shop: Workshop) -> Outcome:
    """The same in a container with ``-m``."""
    name, expected = "scan too large for a container's -m", "foreseen and said, exit code 1; not killed (137)"
    if not shop.image:
        return Outcome(name, 0, expected, skipped="no image was given (--image)")
    inputs, outputs = _large_scan(shop, _LARGE_XYZ), shop.fresh("limited_labels")
    mounts = [f"{inputs}:/workspace/inputs:ro", f"{outputs}:/workspace/outputs", f"{shop.bundle}:/bundle:ro"]
    done = run_container(shop.image, mounts, ("--bundle", "/bundle"), "-m", str(_LIMIT_BYTES))
    failures = () if _foreseen(done, outputs, "memory") else (f"exit code {done.exit_code}, {done.stderr[-300:]}",)
    return Outcome(name, 1, expected, failures, _need(done))


def _foreseen(done: Done, outputs: Path, source: str) -> bool:
    said = "need" in done.stderr and "expected at most" in done.stderr and source in done.stderr
    return not done.crashed and done.exit_code == 1 and said and not list(outputs.iterdir())


def _need(done: Done) -> str:
    found = re.search(r"need (\d+) MiB.*expected at most (\d+) MiB", done.stderr)
    return f"needs {found[1]} MiB, {found[2]} MiB allowed" if found else ""


def _large_scan(shop: Workshop, shape_xyz: tuple[int, int, int]) -> Path:
    """A folder with a sparse file of zeros, which no bomb is: it is as long as it promises."""
    inputs = shop.fresh("large")
    scan = inputs / "large.nii"
    scan.write_bytes(_header(1, shape_xyz))
    os.truncate(scan, len(_header(1, shape_xyz)) + 2 * int(np.prod(shape_xyz)))
    return inputs


def _header(version: int, shape_xyz: tuple[int, int, int]) -> bytes:
    header = (Nifti1Header if version == 1 else Nifti2Header)()
    header.set_data_dtype(np.int16)
    header["dim"][:4] = (3, *shape_xyz)
    header["pixdim"][1:4] = 0.05 if max(shape_xyz) > 4000 else 0.5
    header["vox_offset"] = header.template_dtype.itemsize + 4
    return bytes(header.binaryblock) + struct.pack("<i", 0)


def _slowest(cases: list[dict[str, dict[str, float]]]) -> float:
    return max(sum(case["seconds"].values()) for case in cases)


@contextmanager
def _memory_group(limit_bytes: int) -> Iterator[Path | None]:
    """A new control group with this much memory, version 1 or 2; None where there can be none."""
    version_1 = (_GROUPS / "memory").is_dir()
    group = (_GROUPS / "memory" if version_1 else _GROUPS) / _GROUP
    try:
        group.mkdir(exist_ok=True)
        (group / ("memory.limit_in_bytes" if version_1 else "memory.max")).write_text(str(limit_bytes))
    except OSError:
        with suppress(OSError):  # it was not made, or another run is in it
            group.rmdir()
        yield None
        return
    try:
        yield group
    finally:
        group.rmdir()


def _enter(group: Path) -> None:
    (group / "cgroup.procs").write_text(str(os.getpid()))
