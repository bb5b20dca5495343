"""What augmentation costs: ``python -m tools.train.measure_augmentation --cache DIR``; JSON to stdout or --out.

Core-seconds are CPU time of the process over all its threads (``time.process_time``): a patch prepared on one thread
against forward and backward of one network on it. Then a training loop with workers: how long it stood waiting.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from app.errors import EXIT_OK
from app.network import UNet
from tools.exit_codes import exit_code_of
from tools.train.augmentation import NNUNET_2D, NNUNET_3D, SMALL_DATA, WITHOUT
from tools.train.cache import CaseCache, open_cache
from tools.train.fit import tune_process
from tools.train.losses import Target, deep_supervision_loss
from tools.train.planning import TrainPlan, read_train_plan
from tools.train.sampling import Batch, BatchLoader
from tools.train.trainer import resolve_precision

SCHEMA_VERSION = 1
_AUGMENTATIONS = {"small-data": SMALL_DATA, "nnunet-3d": NNUNET_3D, "nnunet-2d": NNUNET_2D, "none": WITHOUT}


def measure_patches(cases: list[CaseCache], plan: TrainPlan, labelled: bool, patches: int) -> dict[str, float]:
    """Core-seconds of a patch on one thread: mean, median and the 95th percentile over batches."""
    loader = BatchLoader(cases, plan, labelled, seed=0, workers=0)
    next(loader)  # imports, first reads
    spent, done = [], 0
    while done < patches:
        seconds, batch = _core_seconds(lambda: next(loader))
        spent.append(seconds / len(batch.image))
        done += len(batch.image)
    values = np.array(spent)
    return {"mean": values.mean(), "median": np.median(values), "percentile_95": np.percentile(values, 95)}


def measure_network(plan: TrainPlan, batch: Batch, repeats: int) -> dict[str, float]:
    """Core-seconds and wall seconds of a patch through one network, forward and backward, as trained; medians."""
    step = _training_step(plan)
    step(batch)
    core, wall = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        core.append(_core_seconds(lambda: step(batch))[0] / len(batch.image))
        wall.append((time.perf_counter() - start) / len(batch.image))
    return {"core_s": float(np.median(core)), "wall_s": float(np.median(wall))}


def measure_loop(cases: list[CaseCache], plan: TrainPlan, workers: int, steps: int) -> dict[str, float]:
    """Wall seconds of a step fed by workers, and of it the seconds that it waited for them."""
    step = _training_step(plan)
    loader = BatchLoader(cases, plan, labelled=True, seed=0, workers=workers)
    try:
        step(next(loader))  # the workers start, the first batch has to be waited for
        waited, start = loader.waited_s, time.perf_counter()
        for _ in range(steps):
            step(next(loader))
        wall = (time.perf_counter() - start) / steps
        return {"workers": workers, "step_wall_s": wall, "step_waited_s": (loader.waited_s - waited) / steps}
    finally:
        loader.close()


def _training_step(plan: TrainPlan) -> Callable[[Batch], None]:
    network = UNet(plan.app.network, plan.app.classes)

    precision = resolve_precision("auto", torch.device("cpu"))

    def step(batch: Batch) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            heads = network.deep_supervision(batch.image)
        target = Target(batch.label, batch.annotated)
        deep_supervision_loss(heads, [target.at_scale(head.shape[2:]) for head in heads]).backward()

    return step


def _core_seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def measure(cases: list[CaseCache], plan: TrainPlan, arguments: argparse.Namespace) -> dict[str, Any]:
    """All of it. ``share`` is augmentation over forward and backward of one network; CPS passes a patch through two."""
    plan = replace(plan, labelled_as_unlabelled=True, unlabelled_batch=max(1, plan.unlabelled_batch))
    record: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "plan": plan.app.name,
        "patch_size": plan.train_patch_size,
        "machine": {
            "processor": platform.processor(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "precision": resolve_precision("auto", torch.device("cpu")),
        },
        "patch_core_s": {
            "labelled": measure_patches(cases, plan, True, arguments.patches),
            "unlabelled": measure_patches(cases, plan, False, arguments.patches),
            "labelled, not augmented": measure_patches(
                cases, replace(plan, augmentation=WITHOUT), True, arguments.patches
            ),
        },
    }
    batch = next(BatchLoader(cases, plan, labelled=True, seed=0, workers=0))
    record["network_s"] = measure_network(plan, batch, arguments.repeats)
    record["share"] = record["patch_core_s"]["labelled"]["mean"] / record["network_s"]["core_s"]
    if arguments.steps:
        record["loop"] = measure_loop(cases, plan, arguments.workers, arguments.steps)
    return record


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.train.measure_augmentation", description=__doc__)
    parser.add_argument("--cache", type=Path, required=True, help="folder that prepare wrote")
    parser.add_argument("--plan", type=Path, help="a train_plan.json (default: the cache's)")
    parser.add_argument("--augmentation", choices=("plan", *_AUGMENTATIONS), default="plan", help="(default: plan)")
    parser.add_argument("--patches", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5, help="of forward and backward")
    parser.add_argument("--threads", type=int, default=1, help="of the network; waiting threads count as busy")
    parser.add_argument("--steps", type=int, default=0, help="steps of a training loop fed by workers")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    arguments = parser.parse_args(argv)
    tune_process(arguments.threads)
    return exit_code_of(lambda: _run(arguments), "interrupted; nothing was written")


def _run(arguments: argparse.Namespace) -> int:
    plan = read_train_plan(arguments.plan or arguments.cache / "train_plan.json")
    if arguments.augmentation != "plan":
        plan = replace(plan, augmentation=_AUGMENTATIONS[arguments.augmentation])
    text = json.dumps(measure(open_cache(arguments.cache, plan=plan.app), plan, arguments), indent=1) + "\n"
    if arguments.out:
        arguments.out.write_text(text)
    else:
        print(text, end="")
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
