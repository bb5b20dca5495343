"""What memory a case needs is made of: its scan, the networks, the process, and the sum by stage."""

from dataclasses import dataclass

from app.volume import Geometry

_SMALL_BYTES = 30 * 2**20  # nibabel, isal, the heaps of the loader's and BLAS's threads: 39 MiB measured, some counted
_AFTER_PREPROCESSING = ("network", "restore", "postprocess", "write")


@dataclass(frozen=True)
class ScanHeader:
    """What the header of a scan says about its size.

    Attributes:
        geometry: of the stored grid.
        voxel_bytes: of the array that reading makes.
        reading_bytes: a voxel while it is read: twice as much where a library reads into memory of its own.
    """

    geometry: Geometry
    voxel_bytes: int
    reading_bytes: int


@dataclass(frozen=True)
class NetworkMemory:
    """What a network adds to the process.

    Attributes:
        libraries_bytes: its backend's, which all networks of a run share.
        weights_bytes: its file, and the copies that the backend makes.
        running_bytes: its layers' results, which a backend takes with the first window and keeps.
    """

    libraries_bytes: int = 0
    weights_bytes: int = 0
    running_bytes: int = 0

    def __add__(self, other: "NetworkMemory") -> "NetworkMemory":
        """Of both in one process."""
        return NetworkMemory(
            max(self.libraries_bytes, other.libraries_bytes),
            self.weights_bytes + other.weights_bytes,
            self.running_bytes + other.running_bytes,
        )


@dataclass(frozen=True)
class ProcessMemory:
    """What is resident apart from a case's own arrays.

    Attributes:
        loaded_bytes: Python, libraries, and the networks' weights.
        located_bytes: the same, and what the locator takes once it runs: before the scan is resampled.
        running_bytes: the same, and what the other networks take once they run.
    """

    loaded_bytes: int
    located_bytes: int
    running_bytes: int

    @classmethod
    def expected(
        cls, start_bytes: int, held_bytes: int, networks: NetworkMemory, locator: NetworkMemory | None = None
    ) -> "ProcessMemory":
        """From what was held before the networks were loaded and what is held now, if that is more than expected."""
        loaded = start_bytes + networks.libraries_bytes + networks.weights_bytes + _SMALL_BYTES
        located = loaded + (locator.running_bytes if locator else 0)
        return cls(*(max(held_bytes, size) for size in (loaded, located, loaded + networks.running_bytes)))


@dataclass(frozen=True)
class Need:
    """Peak memory of a case.

    Attributes:
        bytes_by_stage: read, locate, preprocess, network, restore, postprocess, write.
    """

    bytes_by_stage: dict[str, int]

    def with_read_ahead(self, reading_bytes: int) -> "Need":
        """The need if the next scan, which takes so much, is read while the network runs and kept from then on."""
        return Need(
            {
                stage: size + reading_bytes * (stage in _AFTER_PREPROCESSING)
                for stage, size in self.bytes_by_stage.items()
            }
        )

    @property
    def largest_stage(self) -> str:
        """The stage that decides."""
        return max(self.bytes_by_stage, key=lambda stage: self.bytes_by_stage[stage])

    @property
    def peak_bytes(self) -> int:
        """What that stage takes."""
        return max(self.bytes_by_stage.values())
