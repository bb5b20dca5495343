"""The fingerprint of a data set: shapes, spacings, and the intensities of all voxels of all scans.

nnU-Net takes intensities from the organs only, so it needs labels. The paper takes all voxels, so that unlabelled
scans count. They are gathered in histograms of 1 HU, so that
memory does not depend on the number of voxels.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from app.atomic_files import write_text
from app.errors import UsageError
from app.json_values import build_value
from app.orientation import axis_map_to_lps
from app.volume import AIR_HU, Shape, Vector, Volume

FIRST_HU = int(AIR_HU)
LAST_HU = 32767


@dataclass(frozen=True)
class Intensities:
    """Statistics over all voxels of one or more scans, HU.

    Voxels below -1024 HU count as -1024: scanners fill what they did not see with -2000 or -3024, and that is
    air like the rest. Nothing else is clipped; the percentiles are numpy's (linear between neighbours).
    """

    voxels: int
    mean_hu: float
    sd_hu: float
    percentile_00_5_hu: float
    percentile_99_5_hu: float


@dataclass(frozen=True)
class ScanFingerprint:
    """One scan, its axes turned to LPS."""

    case_id: str
    labelled: bool
    shape_zyx: Shape
    spacing_zyx_mm: Vector
    intensities: Intensities


@dataclass(frozen=True)
class Fingerprint:
    """A data set.

    Attributes:
        scans: sorted by id.
        intensities: of all their voxels together; a large scan weighs more than a small one.
    """

    scans: tuple[ScanFingerprint, ...]
    intensities: Intensities

    @property
    def shapes_zyx(self) -> list[Shape]:
        """Of every scan."""
        return [scan.shape_zyx for scan in self.scans]

    @property
    def spacings_zyx_mm(self) -> list[Vector]:
        """Of every scan."""
        return [scan.spacing_zyx_mm for scan in self.scans]


@dataclass(frozen=True, eq=False)
class Counts:
    """A histogram without its empty ends: voxels of ``first_hu``, ``first_hu + 1`` and so on. About 30 kB a scan."""

    first_hu: int
    voxels: npt.NDArray[np.int64]


class Histogram:
    """How many voxels there are of each HU from -1024 to 32767; values beyond count as the ends."""

    def __init__(self) -> None:
        self._counts = np.zeros(LAST_HU - FIRST_HU + 1, dtype=np.int64)

    def add(self, volume: Volume) -> None:
        """Counts the voxels of a scan, slice by slice, rounded to whole HU."""
        for plane in volume.voxels:
            hu = plane.astype(np.float32) * np.float32(volume.slope) + np.float32(volume.intercept)
            bins = np.clip(np.rint(hu), FIRST_HU, LAST_HU).astype(np.int32) - FIRST_HU
            counted = np.bincount(bins.ravel())
            self._counts[: len(counted)] += counted

    def add_counts(self, counts: Counts) -> None:
        """Adds what another histogram counted."""
        start = counts.first_hu - FIRST_HU
        self._counts[start : start + len(counts.voxels)] += counts.voxels

    def counts(self) -> Counts:
        """All that was counted."""
        lowest, highest = self.extremes_hu()
        return Counts(lowest, self._counts[lowest - FIRST_HU : highest - FIRST_HU + 1].copy())

    def extremes_hu(self) -> tuple[int, int]:
        """(lowest, highest) HU that was counted."""
        used = np.flatnonzero(self._counts)
        return FIRST_HU + int(used[0]), FIRST_HU + int(used[-1])

    def statistics(self) -> Intensities:
        """Mean, standard deviation and percentiles of all that was counted."""
        values = np.arange(FIRST_HU, LAST_HU + 1, dtype=np.float64)
        voxels = int(self._counts.sum())
        mean = float(self._counts @ values) / voxels
        variance = float(self._counts @ (values - mean) ** 2) / voxels
        return Intensities(voxels, mean, variance**0.5, self._percentile(0.5), self._percentile(99.5))

    def _percentile(self, percent: float) -> float:
        """Of the sorted voxels the one at rank percent/100 (n - 1), interpolated between two."""
        reached = np.cumsum(self._counts)
        rank = percent / 100 * (int(reached[-1]) - 1)
        below, above = (int(np.searchsorted(reached, whole, side="right")) for whole in (np.floor(rank), np.ceil(rank)))
        return FIRST_HU + below + (above - below) * (rank - float(np.floor(rank)))


def lps_grid(volume: Volume) -> tuple[Shape, Vector]:
    """(voxels, spacing in mm) of a scan along z, y, x after its axes are turned to LPS."""
    geometry = axis_map_to_lps(volume.geometry).apply_to_geometry(volume.geometry)
    return geometry.shape_zyx, geometry.spacing_zyx_mm


def pool(scans: Sequence[ScanFingerprint], counts: Sequence[Counts]) -> Fingerprint:
    """The fingerprint of a data set from those of its scans."""
    total = Histogram()
    for one in counts:
        total.add_counts(one)
    return Fingerprint(tuple(sorted(scans, key=lambda scan: scan.case_id)), total.statistics())


def write_fingerprint(path: Path, fingerprint: Fingerprint) -> None:
    """Writes JSON, all at once or not at all."""
    write_text(path, json.dumps(asdict(fingerprint), indent=1) + "\n")


def read_fingerprint(path: Path) -> Fingerprint:
    """The fingerprint in a JSON file.

    Raises:
        UsageError: the file cannot be read or is not a fingerprint.
    """
    try:
        fingerprint = build_value(Fingerprint, json.loads(path.read_text(encoding="utf-8")), "fingerprint")
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: {error}; expected the fingerprint that prepare writes") from error
    assert isinstance(fingerprint, Fingerprint)
    return fingerprint
