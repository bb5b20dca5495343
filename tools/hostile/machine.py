"""What a record of these tools says about where it was made."""

import os
import shlex
import sys
from datetime import UTC, datetime
from typing import Any

from tools.machine import ROOT, commit, digest_of, machine_facts

__all__ = ["ROOT", "circumstances", "code_digest", "memory_disk"]

_TRIED = ("app/**/*.py", "tools/hostile/*.py")
_TELLING = {"__main__.py", "table.py", "records.py"}  # of tools/hostile: change nothing that is tried


def code_digest() -> str:
    """SHA-256 of the code that is tried or tries: what was counted with another one does not count."""
    return digest_of(_TRIED, "hostile", _TELLING)


def circumstances() -> dict[str, Any]:
    """Machine, commit, command and time."""
    return {
        "machine": machine_facts(),
        "commit": commit(),
        "command": shlex.join(["python", "-m", "tools.hostile", *sys.argv[1:]]),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def memory_disk() -> str | None:
    """Where files cost no disk and may be as long as a header can promise; None where there is no such place."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
