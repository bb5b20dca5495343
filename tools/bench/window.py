"""One window, again and again, in a process of its own: ``python -m tools.bench.window BUNDLE --out FILE.json``.

Loads the network as the app does and predicts one tile of noise. What is left out is all that the app does besides.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np

from app.backends import create_predictor
from app.bundle import load_bundle
from app.errors import EXIT_OK
from app.machine_limits import processor_limit
from tools.exit_codes import exit_code_of

_LEAST_S = 3.0
_LEAST_WINDOWS = 5
_MOST_WINDOWS = 200


def main(argv: list[str] | None = None) -> int:
    """Measures and writes the JSON; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench.window", description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    parser.add_argument("--seconds", type=float, default=_LEAST_S, help="predict for so long, 5 windows at least")
    arguments = parser.parse_args(argv)

    def run() -> int:
        record = measure_window(arguments.bundle, arguments.precision, arguments.seconds)
        arguments.out.write_text(json.dumps(record) + "\n", encoding="utf-8")
        return EXIT_OK

    return exit_code_of(run)


def measure_window(bundle_folder: Path, precision: str, least_s: float) -> dict[str, float]:
    """``window_s``: median of windows after the first; ``first_window_s``; ``load_s``; ``windows``: how many."""
    start = time.perf_counter()
    bundle = load_bundle(bundle_folder)
    predictor, _ = create_predictor(bundle, "openvino", "cpu", precision, processor_limit())  # type: ignore[arg-type]
    load_s = time.perf_counter() - start
    noise = np.random.default_rng(0).standard_normal(bundle.plan.sliding_window.patch_size, dtype=np.float32)
    seconds: list[float] = []
    while len(seconds) < _LEAST_WINDOWS + 1 or (sum(seconds) < least_s and len(seconds) < _MOST_WINDOWS):
        start = time.perf_counter()
        predictor.predict(noise)
        seconds.append(time.perf_counter() - start)
    first, *rest = seconds
    return {"window_s": median(rest), "first_window_s": first, "load_s": load_s, "windows": len(rest)}


if __name__ == "__main__":
    sys.exit(main())
