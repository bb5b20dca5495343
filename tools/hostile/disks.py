"""Faults of where label maps go: a disk that is full at every page, a folder that vanishes or is closed midway."""

import ctypes
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from tools.hostile.processes import Done, finish, frozen_when, run_app, start
from tools.hostile.workshop import CASES, Outcome, Workshop, hashes

_PAGE_BYTES = 4096
_PR_CAPBSET_DROP, _CAP_DAC_OVERRIDE = 24, 1  # linux/prctl.h, linux/capability.h
_MOST_PAGES = 64
_WHILE_BUSY_S = 0.001


class Busy(Exception):
    """The harm cannot be done at this moment."""


def full_disk_at_every_write(shop: Workshop) -> Outcome:
    """Disks from one page to what five label maps and the report take, page by page."""
    expected = "exit code 3 with 'No space left'; whole label maps only, no temporary file; enough space: exit code 0"
    name = "disk full at every page of five label maps and a report"
    failures, pages, code = [], 0, 3
    while code and pages < _MOST_PAGES:
        pages += max(1, round(1 / shop.share)) if pages else 1
        with small_disk(shop.fresh("disk"), pages + 1) as disk:  # the folder itself takes none, but at least one is
            if disk is None:
                return Outcome(name, 0, expected, skipped="only root may mount a small disk")
            outputs = disk / "labels"
            done = run_app(*shop.command(outputs, "--report", disk / "report.json"))
            code = done.exit_code
            failures += [f"{pages} pages: {wrong}" for wrong in shop.wrong(outputs, complete=code == 0)]
            failures += [f"{pages} pages: {path.name} was left" for path in disk.glob(".*")]
            if done.crashed or code not in (0, 3) or (code == 3 and "No space left on device" not in done.stderr):
                failures.append(f"{pages} pages: exit code {code}, {done.stderr[-300:]}")
    if code:
        failures.append(f"{pages} pages are not enough")
    return Outcome(name, pages, expected, tuple(failures), f"{pages} pages of {_PAGE_BYTES} bytes are enough")


def folder_removed(shop: Workshop) -> Outcome:
    """The output folder is deleted once the first label map is in it."""

    def remove(outputs: Path) -> None:
        shutil.rmtree(outputs)

    return _midway(shop, "output folder removed midway", remove, "No such file or directory")


def folder_replaced_by_a_file(shop: Workshop) -> Outcome:
    """The output folder becomes a file."""

    def replace(outputs: Path) -> None:
        shutil.rmtree(outputs)
        outputs.write_text("in the way")

    return _midway(shop, "output folder replaced by a file midway", replace, "Not a directory")


def folder_made_read_only(shop: Workshop) -> Outcome:
    """The output folder loses its permission to write; the run gives up root's right to write all the same."""
    harm = partial(Path.chmod, mode=0o555)
    return _midway(shop, "output folder made read-only midway", harm, "Permission denied", _obey_permissions)


def disk_made_read_only(shop: Workshop) -> Outcome:
    """The file system is mounted read-only, as a kernel does after errors of a disk."""
    name = "file system made read-only midway"
    with small_disk(shop.fresh("disk"), 4 * _MOST_PAGES) as disk:
        if disk is None:
            return Outcome(name, 0, "exit code 3", skipped="only root may mount a small disk")

        def close(outputs: Path) -> None:
            command = ["mount", "-o", "remount,ro", str(outputs.parent)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if "busy" in done.stderr:  # the kernel refuses it while a file there is open for writing
                raise Busy
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)}: {done.stderr}")

        return _midway(shop, name, close, "Read-only file system", outputs=disk / "labels")


@contextmanager
def small_disk(folder: Path, pages: int) -> Iterator[Path | None]:
    """The folder as a disk of so many pages; None where it cannot be mounted."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={pages * _PAGE_BYTES},mode=777", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True, check=False).returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def _midway(
    shop: Workshop,
    name: str,
    harm: Callable[[Path], None],
    words: str,
    before: Callable[[], None] | None = None,
    outputs: Path | None = None,
) -> Outcome:
    """Does harm to the output folder while the run is frozen, as soon as the first label map has its name."""
    outputs = outputs or shop.fresh("midway") / "labels"
    outputs.mkdir()
    with start(*shop.command(outputs), before=before) as child:
        while True:
            with frozen_when(child, lambda: any(outputs.glob("*.nii.gz"))) as frozen, suppress(Busy):
                done_before = [path.name for path in outputs.glob("*.nii.gz")] if frozen else []
                if frozen and len(done_before) < CASES:
                    harm(outputs)
                break
            time.sleep(_WHILE_BUSY_S)  # to the end of what it is writing
        done = finish(child)
    return Outcome(
        name,
        1,
        f"exit code 3, '{words}' and what is done",
        tuple(_check_midway(shop, done, done_before, outputs, words)),
    )


def _obey_permissions() -> None:
    """Drops CAP_DAC_OVERRIDE from what the next program can have."""
    ctypes.CDLL(None).prctl(_PR_CAPBSET_DROP, _CAP_DAC_OVERRIDE)


def _check_midway(shop: Workshop, done: Done, before: list[str], outputs: Path, words: str) -> Iterator[str]:
    if not 0 < len(before) < CASES:
        ended = f"exit code {done.exit_code}, {done.stderr[-300:]}"
        yield f"{len(before)} label maps were there when it was frozen; {ended}"
    elif done.crashed or done.exit_code != 3 or words not in done.stderr or "cases are done" not in done.stderr:
        yield f"exit code {done.exit_code}, {done.stderr[-400:]}"
    yield from shop.wrong(outputs)
    if outputs.is_dir() and not set(before) <= set(hashes(outputs)):
        yield "a label map that was there is gone"
