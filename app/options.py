"""What the command line decides and the plan does not."""

from dataclasses import dataclass

from app.machine_limits import DEFAULT_MAX_MEMORY, parse_bytes
from app.plan import Crop, Mode, SpacingKind


@dataclass(frozen=True)
class Options:
    """How the scans of a run are segmented.

    Attributes:
        mode: restoration.
        spacing: enforced spacing.
        mirror: test-time mirroring along the plan's axes.
        crop: the part of a scan that is segmented.
        skip_existing: leave cases alone whose label map is there.
        max_memory_bytes: that this process may hold, if control groups and the machine allow it.
        read_ahead: the next scan is read while the network works on this one.
    """

    mode: Mode
    spacing: SpacingKind
    mirror: bool = False
    crop: Crop = "none"
    skip_existing: bool = False
    max_memory_bytes: int = parse_bytes(DEFAULT_MAX_MEMORY)
    read_ahead: bool = True
