"""What is measured: one row is a program, a network and a scan; the rows of a group take turns."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Literal

from app.errors import UsageError
from tools.parity.peer_models import Peer

NetworkName = Literal["default", "paper"]
Precision = Literal["fp32", "bf16"]
Mode = Literal["fastest", "normal"]

QUICK_SCAN = "ct_006"
SHIPPED = "-shipped"  # ends the names of rows that do what the bundle says, cropping included


@dataclass(frozen=True)
class Row:
    """One cold process, run as often as ``--repeats`` says.

    Attributes:
        group: rows of a group are interleaved (A B C A B C), so that their runs can be compared pair by pair.
        network: a name of ``networks``.
        program: ``window`` predicts one random window again and again: the floor's unit.
        scan: a name of ``scans``; None for a window.
        precision: ours; the peers calculate in fp32.
        mode: ours and v1's; v2 has ``normal`` only.
        spacing: ours: ``bundle`` is what the plan says, ``off`` the network's true spacing.
        crop: ours: ``none`` predicts all windows, as the peers do; ``bundle`` is what the plan says.
        heavy: not run unless ``--rows`` names it: minutes a run, or memory that a small machine lacks.
    """

    group: str
    network: NetworkName
    program: Literal["window", "app", "v1", "v2"]
    scan: str | None = None
    precision: Precision = "fp32"
    mode: Mode = "normal"
    spacing: Literal["bundle", "off"] = "bundle"
    crop: Literal["none", "bundle"] = "none"
    heavy: bool = False

    @property
    def contestant(self) -> str:
        """Program and settings: ``app-bf16-fastest``, ``v1-fastest``, ``v2``, ``window-fp32``."""
        if self.program == "window":
            return f"window-{self.precision}"
        if self.program == "app":
            settings = ("-off" if self.spacing == "off" else "") + (SHIPPED if self.crop == "bundle" else "")
            return f"app-{self.precision}-{self.mode}{settings}"
        return "v1-fastest" if self.program == "v1" else "v2"

    @property
    def name(self) -> str:
        """Unique: ``default/ct_001/app-bf16-fastest``."""
        return f"{self.network}/{self.scan or self.group}/{self.contestant}"

    @property
    def window_name(self) -> str:
        """The row that measures the bare window of this one's network and precision."""
        return f"{self.network}/{self.group}/window-{self.precision}"

    @property
    def peer(self) -> Peer | None:
        """Which nnU-Net runs, if one does."""
        return self.program if self.program in ("v1", "v2") else None


def all_rows(bf16: bool) -> list[Row]:
    """All rows, in the order of the table; a group's are consecutive.

    Args:
        bf16: whether this CPU calculates in it; without, its rows are left out, not measured in emulation.
    """
    precisions: tuple[Precision, ...] = ("fp32", "bf16") if bf16 else ("fp32",)
    rows: list[Row] = []
    for scan in ("ct_001", "ct_006", "ct_007", "ct_007_slices_621", "ct_007_slices_1200"):
        rows += _group("default", scan, precisions, v2_is_heavy="slices" in scan)
    rows += _tiled(precisions)
    rows += _group("paper", "ct_001", precisions)
    for scan in ("ct_006", "ct_007"):
        rows += _group("paper", scan, precisions, heavy=True)
    return rows


def quick_rows(bf16: bool) -> list[Row]:
    """The default network on one small scan, without the peers."""
    return [row for row in all_rows(bf16) if row.network == "default" and row.group == QUICK_SCAN and not row.peer]


def select_rows(rows: Sequence[Row], patterns: Sequence[str]) -> list[Row]:
    """The rows that a pattern names, and the windows that they need; without patterns all that are not heavy.

    ``default/ct_001`` names all rows below it, ``*/ct_001/app-*`` those that match as file names would.

    Raises:
        UsageError: a pattern names nothing.
    """
    if not patterns:
        return [row for row in rows if not row.heavy]
    chosen: set[str] = set()
    for pattern in patterns:
        found = [row for row in rows if fnmatch(row.name, pattern) or row.name.startswith(f"{pattern}/")]
        if not found:
            raise UsageError(f"--rows {pattern}: names no row; `python -m tools.bench --list` shows them all")
        chosen |= {row.name for row in found}
        chosen |= {row.window_name for row in found if row.program == "app"}
    return [row for row in rows if row.name in chosen]


def _group(
    network: NetworkName,
    scan: str,
    precisions: Sequence[Precision],
    heavy: bool = False,
    v2_is_heavy: bool = False,
) -> list[Row]:
    """Both precisions and modes of ours, the default bundle as it is shipped, and both peers, on one scan."""
    rows = [Row(scan, network, "window", precision=precision, heavy=heavy) for precision in precisions]
    modes: tuple[Mode, ...] = ("fastest", "normal")
    rows += [
        Row(scan, network, "app", scan, precision, mode, heavy=heavy) for precision in precisions for mode in modes
    ]
    if network == "default":
        rows += [Row(scan, network, "app", scan, precision, "normal", crop="bundle") for precision in precisions]
    # v2 brings the logits of all classes back to the scan's grid: 14 x 621 x 452 x 480 floats are 7 GiB, and it holds
    # them more than once.
    rows.append(Row(scan, network, "v1", scan, mode="fastest", heavy=heavy))
    rows.append(Row(scan, network, "v2", scan, heavy=heavy or v2_is_heavy))
    return rows


def _tiled(precisions: Sequence[Precision]) -> list[Row]:
    """160 and 1200 slices of 512 x 512 side by side: memory, and whether a window costs the same in both."""
    group = "ct_007_tiled"
    rows = [Row(group, "default", "window", precision=precision) for precision in precisions]
    for scan in ("ct_007_tiled_160", "ct_007_tiled_1200"):
        for precision in precisions:
            rows.append(Row(group, "default", "app", scan, precision, "normal"))
            rows.append(Row(group, "default", "app", scan, precision, "fastest", heavy=True))
            rows.append(Row(group, "default", "app", scan, precision, "fastest", spacing="off", heavy=True))
        rows.append(Row(group, "default", "v1", scan, mode="fastest", heavy=True))
    return rows
