"""Where, with what and from which code something was measured: seconds mean nothing without it."""

import hashlib
import os
import platform
import subprocess
from collections.abc import Container, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_PACKAGES = ("openvino", "numpy", "scipy", "nibabel", "isal", "SimpleITK")
_BF16_FLAGS = {"avx512_bf16", "amx_bf16"}


def machine_facts() -> dict[str, Any]:
    """Processor, cores that this process may use, bf16 or not, memory, kernel, versions."""
    return {
        "host": platform.node(),
        "cpu": processor_name(),
        "cores": len(os.sched_getaffinity(0)),
        "bf16": has_bf16(),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def processor_name() -> str:
    """As the kernel has it; the architecture if it has none."""
    return _cpuinfo("model name") or platform.machine()


def has_bf16() -> bool:
    """Whether the CPU multiplies in bf16; emulation, which OpenVINO may offer too, is slower than fp32."""
    return bool(_BF16_FLAGS & set((_cpuinfo("flags") or "").split()))


def commit() -> dict[str, Any]:
    """The commit and whether files differ from it; None outside of a clone."""
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
        changes = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "changed_files": None}
    return {"commit": found.stdout.strip(), "changed_files": len(changes.stdout.splitlines())}


def digest_of(patterns: Iterable[str], tool: str, telling: Container[str]) -> str:
    """SHA-256 of the files of these patterns, without those of ``tools/TOOL`` that only tell what was found."""
    digest = hashlib.sha256()
    for pattern in patterns:
        for path in sorted(ROOT.glob(pattern)):
            if path.parent.name != tool or path.name not in telling:
                digest.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def _cpuinfo(key: str) -> str | None:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith(key):
            return line.partition(":")[2].strip()
    return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
