"""From a checkpoint to a bundle that the app serves."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from app.bundle import TWIN_FOLDER, write_hashes
from app.errors import UsageError
from app.plan import Plan
from tools.convert.bundles import write_bundle
from tools.train.checkpoint import load_checkpoint
from tools.train.planning import PLAN_FILE, TrainPlan, changed, read_train_plan

Choice = Literal["1", "2", "both"]

_LEARNT = ("network", "labels", "orientation", "intensity", "transpose_forward", "crop_to_nonzero")
_EXPORTED = {"1": "network 1", "2": "network 2", "both": "mean of the siblings' logits"}


def export_bundle(
    run: Path,
    folder: Path,
    name: str,
    choice: Choice = "1",
    raw: bool = False,
    twin: bool = False,
    changes: Sequence[str] = (),
) -> Plan:
    """Writes a bundle of a training: network 1 as the paper, its sibling 2, or both.

    ``both`` averages the logits of the two siblings, at twice the time. Where the training keeps running means of the
    weights, these are written, since they are what its validation scores; ``raw`` writes the weights themselves.
    All are rounded to bfloat16's eight digits (binary), so that the app runs the same network in fp32 and bf16: most of
    what bf16 changes in label maps otherwise comes from rounding the 27 weights of each filter of the first layer.
    ``twin`` writes the other sibling too, beside the chosen one, for the app's ``--uncertainty``. ``changes`` of the
    plan (``KEY=VALUE``) serve the same network, intensities and grid with other windows or another spacing rule.

    Raises:
        AppError: there is no training in ``run``.
        UsageError: the training has no such network, a change is not one of serving, or ``folder`` holds other files.
    """
    if twin and choice == "both":
        raise UsageError("--twin: the twin of both siblings is neither; choose --network 1 or 2")
    if folder.exists() and any(folder.iterdir()) and not (folder / "plan.json").exists():
        raise UsageError(f"{folder}: holds something that is no bundle; expected a new folder")
    trained = read_train_plan(run / PLAN_FILE)
    plan = changed(trained, changes)
    _check_served(plan, trained)
    state = load_checkpoint(run)
    averages = [] if raw else state["trainer"]["averages"]
    networks = averages or state["trainer"]["networks"]
    weights = _weights(networks, choice, run)
    other: Choice = "1" if choice == "2" else "2"
    weights_of_twin = _weights(networks, other, run) if twin else None
    siblings = len(networks) if choice == "both" else 1
    exported = replace(plan.app, name=name, network=replace(plan.app.network, siblings=siblings))
    state_of_weights = f"{'running means' if averages else 'last state'} of the weights"
    what = f"{_EXPORTED[choice]}, {state_of_weights}"
    write_bundle(folder, exported, weights, _model_card(name, trained, state["progress"], what))
    if weights_of_twin is not None:
        what = f"{_EXPORTED[other]}, {state_of_weights}; the twin of {_EXPORTED[choice]}"
        card = _model_card(f"{name}-twin", trained, state["progress"], what)
        write_bundle(folder / TWIN_FOLDER, replace(exported, name=f"{name}-twin"), weights_of_twin, card)
        write_hashes(folder)
    return exported


def _check_served(plan: TrainPlan, trained: TrainPlan) -> None:
    """Raises UsageError where a plan is not another way to serve what was trained."""
    different = [key for key in _LEARNT if getattr(plan.app, key) != getattr(trained.app, key)]
    if plan.app.spacing.target_zyx_mm != trained.app.spacing.target_zyx_mm:
        different.append("spacing.target_zyx_mm")
    if replace(plan, app=trained.app) != trained:
        different.append("values of the training")
    if different:
        raise UsageError(
            f"--set: {', '.join(different)} cannot be changed after the training; expected windows, spacing rule, "
            "interpolation, mode or post-processing (app...)"
        )


def _weights(networks: list[dict[str, Any]], choice: Choice, run: Path) -> dict[str, Any]:
    """float32 arrays by name, each value in bfloat16's grid and small enough for float16."""
    weights = {key: value.bfloat16().float().numpy() for key, value in _choose(networks, choice, run).items()}
    largest = max(float(np.abs(value).max()) for value in weights.values())
    if not largest < float(np.finfo(np.float16).max):
        raise UsageError(f"{run}: weights up to {largest:g} do not fit float16; the training has diverged")
    return weights


def _choose(networks: list[dict[str, Any]], choice: Choice, run: Path) -> dict[str, Any]:
    if choice == "both" and len(networks) > 1:
        pair = enumerate(networks)
        return {f"{sibling}.{key}": value for sibling, weights in pair for key, value in weights.items()}
    index = 1 if choice in ("2", "both") else 0
    if index >= len(networks):
        raise UsageError(f"{run}: a supervised training has one network; choose --network 1, without --twin")
    return networks[index]


def _model_card(name: str, plan: TrainPlan, progress: dict[str, Any], exported: str) -> str:
    """What is known from the run itself; data and scores are the trainer's to add."""
    app = plan.app
    return (
        f"# {name}\n\n"
        f"* **Network.** {app.network.dimensions}-D U-Net, features {list(app.network.features_per_stage)}, "
        f"patch {list(app.sliding_window.patch_size)}, spacing {list(app.spacing.target_zyx_mm)} mm (z, y, x); "
        f"exported: {exported}.\n"
        f"* **Training.** {progress['step']} iterations of {plan.labelled_batch} labelled and {plan.unlabelled_batch} "
        f"unlabelled patches of {list(plan.train_patch_size)}; {progress['wall_s'] / 3600:.1f} h, "
        f"{progress['cpu_s'] / 3600:.1f} CPU hours.\n"
        "* **Data, scores, failures.** Not written yet.\n"
        "* **Intended use.** Research. Not a medical device, not for diagnosis.\n"
    )
