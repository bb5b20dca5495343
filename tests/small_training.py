"""A training of seconds: three phantoms, the smallest patches, and what its folder holds."""

from pathlib import Path
from typing import Any

import torch

from tools.phantom import main as phantom_main
from tools.train.__main__ import main as train_main
from tools.train.training_log import read_lines

ALONE = ["--workers", "0", "--threads", "1"]
# In fp32: oneDNN's bf16 weight gradients over two planes, as these patches have at the bottom, vary from call to call.
TINY = [
    "--set", "train_patch_size=[16,16,16]", "--set", "labelled_batch=1", "--set", "unlabelled_batch=1",
    "--set", "iterations_per_epoch=1", "--set", "ramp_up_epochs=4", "--precision", "fp32", *ALONE,
]  # fmt: skip


def make_cache(folder: Path) -> Path:
    """Phantoms 0 and 1 with labels and 2 without, prepared for ``phantom-3d``; the scans are beside it in ``data``."""
    data = folder / "data"
    shape = ["--shape", "32", "48", "48", "--spacing", "6", "6", "6"]
    assert phantom_main(["--out", str(data), "--count", "3", "--labels", *shape]) == 0
    (data / "labels" / "phantom_002.nii.gz").unlink()
    prepare = ["prepare", "--data", str(data), "--preset", "phantom-3d", "--out", str(folder / "cache")]
    assert train_main([*prepare, "--workers", "1"]) == 0
    return folder / "cache"


def log_of(run: Path) -> list[dict[str, Any]]:
    return read_lines(run) if (run / "log.jsonl").exists() else []


def checkpoint(run: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(run / "checkpoint.pt", weights_only=True)
    return state


def assert_equal(found: object, expected: object) -> None:
    """Equal to the bit, through dicts and lists."""
    assert type(found) is type(expected)
    if isinstance(found, dict) and isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in found:
            assert_equal(found[key], expected[key])
    elif isinstance(found, list) and isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)
    elif isinstance(found, torch.Tensor) and isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    else:
        assert found == expected
