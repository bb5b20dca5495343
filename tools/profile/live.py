"""One line on a terminal that tells how a long run is doing."""

import sys
import time

from tools.profile.recording import Sample

_EVERY_S = 0.5
_CLEAR_LINE = "\r\x1b[K"


class LiveLine:
    """Seconds, cores, memory and GPU memory on stderr, twice a second; nothing where that is no terminal."""

    def __init__(self, label: str, shown: bool) -> None:
        self._label, self._shown = label, shown
        self._start_s = time.monotonic()
        self._before: Sample | None = None

    def show(self, sample: Sample) -> None:
        """Shows a sample if it is time to."""
        before = self._before
        if not self._shown or (before and sample.monotonic_s < before.monotonic_s + _EVERY_S):
            return
        self._before = sample
        parts = [f"{self._label}: {sample.monotonic_s - self._start_s:.0f} s"]
        if before and sample.cpu_s is not None and before.cpu_s is not None:
            cores = (sample.cpu_s - before.cpu_s) / (sample.monotonic_s - before.monotonic_s)
            parts.append(f"{cores:.1f} cores")
        if sample.memory_mib is not None:
            parts.append(f"{sample.memory_mib:.0f} MiB")
        if sample.gpu_mib is not None:
            parts.append(f"GPU {sample.gpu_mib:.0f} MiB")
        print(_CLEAR_LINE + ", ".join(parts), end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Removes the line."""
        if self._shown:
            print(_CLEAR_LINE, end="", file=sys.stderr, flush=True)
