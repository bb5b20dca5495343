"""All faults, in the order of the table."""

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tools.hostile.backends import faulty_backends
from tools.hostile.changing_inputs import input_changed_while_read
from tools.hostile.disks import (
    disk_made_read_only,
    folder_made_read_only,
    folder_removed,
    folder_replaced_by_a_file,
    full_disk_at_every_write,
)
from tools.hostile.memory_limits import container, control_group, limit_of_address_space, scans_beyond_all_memory
from tools.hostile.stopped import kill_at_any_moment, report_after_skipping, sigterm, two_runs_at_once
from tools.hostile.workshop import Fault, make_workshop

FAULTS: dict[str, Fault] = {
    "kill": kill_at_any_moment,
    "sigterm": sigterm,
    "two-runs": two_runs_at_once,
    "skip-existing": report_after_skipping,
    "full-disk": full_disk_at_every_write,
    "folder-removed": folder_removed,
    "folder-replaced": folder_replaced_by_a_file,
    "folder-read-only": folder_made_read_only,
    "disk-read-only": disk_made_read_only,
    "input-changed": input_changed_while_read,
    "promises": scans_beyond_all_memory,
    "ulimit": limit_of_address_space,
    "control-group": control_group,
    "container": container,
    "backend": faulty_backends,
}


def try_faults(names: Iterable[str], share: float, image: str, save: Callable[[str, dict[str, Any]], None]) -> None:
    """Tries the faults one after another; ``save`` gets each name with what came of it."""
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        Path(folder).chmod(0o755)  # one fault is that of an ordinary user
        shop = make_workshop(Path(folder), share, image)
        for name in names:
            save(name, asdict(FAULTS[name](shop)))
