"""What a record of these tools says about where it was made."""

import hashlib
import shlex
import sys
from datetime import UTC, datetime
from typing import Any

from tools.bench.machine import ROOT, commit, machine_facts

__all__ = ["ROOT", "circumstances", "code_digest"]

_TRIED = ("app/**/*.py", "tools/hostile/*.py")
_TELLING = {"__main__.py", "table.py", "records.py"}  # of tools/hostile: change nothing that is tried


def code_digest() -> str:
    """SHA-256 of the code that is tried or tries: what was counted with another one does not count."""
    digest = hashlib.sha256()
    for pattern in _TRIED:
        for path in sorted(ROOT.glob(pattern)):
            if path.parent.name != "hostile" or path.name not in _TELLING:
                digest.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def circumstances() -> dict[str, Any]:
    """Machine, commit, command and time."""
    return {
        "machine": machine_facts(),
        "commit": commit(),
        "command": shlex.join(["python", "-m", "tools.hostile", *sys.argv[1:]]),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
    }
