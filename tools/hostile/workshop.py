"""What every fault needs: a bundle, five phantoms, their label maps from a run without faults, and a fresh folder."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.errors import FolderError
from tools.hostile.bundles import write_bundle
from tools.hostile.processes import run_app
from tools.phantom import write_phantoms

CASES = 5
_SHAPE_ZYX = (48, 64, 64)
_SPACING_ZYX_MM = (6.0, 6.0, 6.0)


@dataclass(frozen=True)
class Outcome:
    """What a fault led to.

    Attributes:
        name: of the fault.
        tried: how often.
        expected: in words.
        failures: what was not as expected; none is what one hopes for.
        notes: numbers and words for the table.
        skipped: why it could not be tried here; empty if it was.
    """

    name: str
    tried: int
    expected: str
    failures: tuple[str, ...] = ()
    notes: str = ""
    skipped: str = ""


Fault = Callable[["Workshop"], Outcome]


@dataclass(frozen=True)
class Workshop:
    """Folders of the faults.

    Attributes:
        folder: parent of all.
        bundle: the tiny one.
        inputs: five phantoms.
        expected: file name -> SHA-256 of the label map of a run without faults.
        share: part of the full number of trials.
        image: a container image of the app; empty for none.
    """

    folder: Path
    bundle: Path
    inputs: Path
    expected: dict[str, str]
    share: float = 1.0
    image: str = ""

    def times(self, full: int) -> int:
        """How often to try: the share of ``full``, at least once."""
        return max(1, round(full * self.share))

    def fresh(self, name: str) -> Path:
        """An empty folder."""
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def command(self, outputs: Path, *more: object) -> list[object]:
        """The app's arguments for all phantoms."""
        return [*arguments(self.inputs, outputs, self.bundle), *more]

    def wrong(self, outputs: Path, complete: bool = False) -> list[str]:
        """What is wrong with an output folder: names that are no label map's, and label maps that are not whole.

        Args:
            outputs: where the label maps are.
            complete: whether all of them have to be there.
        """
        found = hashes(outputs)
        wrong = [f"{name} was left" for name in found if name not in self.expected]
        wrong += [f"{name} is not whole" for name in found if found[name] != self.expected.get(name, found[name])]
        return wrong + ([f"{name} is missing" for name in self.expected if name not in found] if complete else [])


def make_workshop(folder: Path, share: float = 1.0, image: str = "") -> Workshop:
    """Writes bundle and phantoms, and runs them once.

    Raises:
        FolderError: that run failed.
    """
    bundle = write_bundle(folder / "bundle")
    list(write_phantoms(folder / "phantoms", CASES, 1, None, False, _SHAPE_ZYX, _SPACING_ZYX_MM))
    inputs, outputs = folder / "phantoms" / "images", folder / "expected"
    done = run_app(*arguments(inputs, outputs, bundle))
    if done.exit_code:
        raise FolderError(f"the run without faults ended with {done.exit_code}: {done.stderr}")
    return Workshop(folder, bundle, inputs, hashes(outputs), share, image)


def arguments(inputs: Path, outputs: Path, bundle: Path) -> list[object]:
    """The app's arguments: one thread, fp32, so that equal input gives equal bytes."""
    files = ["--input-dir", inputs, "--output-dir", outputs, "--bundle", bundle]
    return [
        *files,
        "--device",
        "cpu",
        "--backend",
        "openvino",
        "--precision",
        "fp32",
        "--threads",
        1,
        "--mode",
        "normal",
    ]


def hashes(folder: Path) -> dict[str, str]:
    """Name -> SHA-256 of what lies in a folder, dot-files too; {} if it is not there."""
    if not folder.is_dir():
        return {}
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def report_in(path: Path) -> dict[str, Any]:
    """A report of the app."""
    report: dict[str, Any] = json.loads(path.read_text())
    return report
