"""A network that raises, or returns what no network should: the case fails, and no mask of zeros is written."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from app.bundle import load_bundle
from app.cases import find_cases
from app.errors import CaseError
from app.options import Options
from app.progress import SilentProgress
from app.report import RunRecord
from app.runs import run
from app.sources import NetworkSource, NetworkSources
from app.volume import Float32Array
from tools.hostile.workshop import CASES, Outcome, Workshop

_WORKING_WINDOWS = 3  # then the fault comes: some of the case is done already
_CLASSES = 4


@dataclass
class FaultyPredictor:
    """Works for some windows, then does ``fault``."""

    fault: Callable[[Float32Array], Float32Array]
    backend: str = "faulty"
    device: str = "cpu"
    precision: str = "fp32"
    windows: int = 0

    def made(self) -> tuple["FaultyPredictor", tuple[str, ...]]:
        """Itself, as a factory gives it."""
        return self, ()

    def predict(self, tile: Float32Array) -> Float32Array:
        """See ``Predictor.predict``."""
        self.windows += 1
        return self.fault(tile) if self.windows > _WORKING_WINDOWS else _logits(tile)


def _logits(tile: Float32Array) -> Float32Array:
    return np.ones((_CLASSES, *tile.shape), dtype=np.float32)


def _raise(error: Exception) -> Callable[[Float32Array], Float32Array]:
    def fault(_tile: Float32Array) -> Float32Array:
        raise error

    return fault


def _one_value(value: float) -> Callable[[Float32Array], Float32Array]:
    def fault(tile: Float32Array) -> Float32Array:
        logits = _logits(tile)
        logits[1, 2, 3, 4] = value
        return logits

    return fault


# name -> (what happens, words of the message)
FAULTS: dict[str, tuple[Callable[[Float32Array], Float32Array], str]] = {
    "raises RuntimeError": (_raise(RuntimeError("device lost")), "the network failed on a window (device lost)"),
    "raises CaseError": (_raise(CaseError("OpenVINO failed on a window (x)")), "OpenVINO failed on a window (x)"),
    "raises MemoryError": (_raise(MemoryError()), "not enough memory"),
    "one NaN": (_one_value(float("nan")), "numbers that are not finite"),
    "one infinity": (_one_value(float("inf")), "numbers that are not finite"),
    "a class too few": (lambda tile: _logits(tile)[1:], "returned shape"),
    "another patch": (lambda tile: _logits(tile)[:, 1:], "returned shape"),
    "a label map": (lambda tile: _logits(tile)[0], "returned shape"),
}


def faulty_backends(shop: Workshop) -> Outcome:
    """Each fault, in both modes, as the network of a run over all phantoms."""
    plan = load_bundle(shop.bundle).plan
    failures = []
    for name, (fault, words) in FAULTS.items():
        for mode in ("fastest", "normal"):
            outputs = shop.fresh("faulty")
            record = RunRecord(options={})
            predictor = FaultyPredictor(fault)
            options = Options("fastest" if mode == "fastest" else "normal", "off")
            sources = NetworkSources(NetworkSource(plan, predictor.made))
            run(find_cases(shop.inputs, outputs), sources, options, SilentProgress(), record)
            errors = [case.error or "" for case in record.cases]
            if record.count("failed") != CASES or not all(words in error for error in errors):
                failures.append(f"{name}, {mode}: {errors}")
            failures += [f"{name}, {mode}: {path.name} was written" for path in outputs.iterdir()]
    expected = "every case fails with the reason; nothing is written"
    return Outcome(f"network: {', '.join(FAULTS)}", 2 * len(FAULTS), expected, tuple(failures))
