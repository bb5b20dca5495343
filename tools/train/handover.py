"""A training in one small file, half precision: enough to go on with on another machine or on other scans.

What is not in it are the optimisers; they start anew, with a learning rate that rises from 0.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from app.atomic_files import atomic_file, write_text
from app.errors import AppError, UsageError
from tools.train.cache import open_cache
from tools.train.checkpoint import load_checkpoint, save_checkpoint
from tools.train.guards import only_run
from tools.train.planning import PLAN_FILE, parse_train_plan, preprocessing_digest, read_train_plan
from tools.train.settings import Settings, read_settings, start_folder, write_settings
from tools.train.trainer import TrainerOptions, steps_to_full_decay
from tools.train.training_log import LOG_FILE

FORMAT = "3dcps-training-1"

Weights = dict[str, torch.Tensor]


def pack(run: Path, file: Path) -> None:
    """Writes the networks of a training (their running means, where it keeps them) with plan, options, progress, log.

    Raises:
        AppError: there is no training in ``run``, or it has diverged.
        FolderError: the file cannot be written.
    """
    state = load_checkpoint(run)
    pairs = ((f"{i}.{key}", value) for i, weights in enumerate(_of_state(state)) for key, value in weights.items())
    tensors = {key: value.half().contiguous() for key, value in pairs}
    if not all(bool(torch.isfinite(value).all()) for value in tensors.values()):
        raise AppError(f"{run}: weights do not fit float16; the training has diverged")
    record = {
        "plan": asdict(read_train_plan(run / PLAN_FILE)),
        "options": asdict(read_settings(run).trainer),
        "schedule": state["schedule"],
        "progress": state["progress"],
        "log": (run / LOG_FILE).read_text() if (run / LOG_FILE).exists() else "",
    }
    with atomic_file(file) as stream:
        stream.write(save(tensors, metadata={"format": FORMAT, "training": json.dumps(record)}))


def unpack(file: Path, run: Path, settings: Settings) -> None:
    """Makes the folder of a training that ``resume`` goes on with.

    Args:
        file: written by ``pack``.
        run: new folder.
        settings: cache, data folders and scans that are held out from now on; how networks learn is in the file.

    Raises:
        UsageError: the file is none of ``pack``'s, or the cache was prepared with another plan.
        AppError: there is a training in ``run``.
        FolderError: ``run`` cannot be written.
    """
    record, networks = _read(file)
    plan = parse_train_plan(json.dumps(record["plan"]), str(file))
    cache = Path(settings.cache)
    cases = open_cache(cache, settings.hold_out)
    if any(case.digest != preprocessing_digest(plan.app) for case in cases):
        raise UsageError(
            f"{cache}: prepared with other organs, spacing, interpolation or intensities than the training in {file}; "
            f"prepare the scans into a new folder with --plan {file}"
        )
    options = TrainerOptions(**record["options"])
    trainer = {
        "networks": networks,
        "averages": networks if options.ema_decay else [],
        "averaged": steps_to_full_decay(options.ema_decay),
        "optimisers": [],
        "scaler": {},
    }
    state = {"trainer": trainer, "schedule": record["schedule"], "progress": record["progress"]}
    with only_run(run):
        start_folder(run, plan)
        save_checkpoint(run, state)
        write_text(run / LOG_FILE, record["log"])
        write_settings(run, replace(settings, trainer=options, cases=tuple(case.case_id for case in cases)))


def trained_networks(sources: Sequence[str]) -> list[Weights]:
    """The networks of some trainings in the order given, for ``fit --start-from``.

    Args:
        sources: folders of trainings, or files that ``pack`` wrote. Of each all networks are taken, of ``SOURCE:2``
            the second alone; their running means where it keeps them.

    Raises:
        AppError: one of them is no training.
        UsageError: it has no such network.
    """
    networks: list[Weights] = []
    for source in sources:
        path, number = _chosen(source)
        found = _of_state(load_checkpoint(path)) if path.is_dir() else _read(path)[1]
        if number is not None and not 1 <= number <= len(found):
            raise UsageError(f"--start-from {source}: the training has {len(found)} network(s), no network {number}")
        networks += found if number is None else found[number - 1 : number]
    return networks


def _chosen(source: str) -> tuple[Path, int | None]:
    """Path and number of the network, None for all; a path that is there is meant as it stands."""
    path, colon, number = source.rpartition(":")
    if colon and number.isdecimal() and not Path(source).exists():
        return Path(path), int(number)
    return Path(source), None


def _of_state(state: dict[str, Any]) -> list[Weights]:
    networks: list[Weights] = state["trainer"]["averages"] or state["trainer"]["networks"]
    return networks


def _read(file: Path) -> tuple[dict[str, Any], list[Weights]]:
    """What a packed file says of its training, and the networks in float32."""
    try:
        with safe_open(file, framework="pt") as packed:
            metadata = packed.metadata() or {}
            tensors = {key: packed.get_tensor(key).float() for key in packed.keys()}  # noqa: SIM118 (no dict)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{file}: cannot be read ({error}); expected a file that `tools.train pack` wrote") from error
    if metadata.get("format") != FORMAT:
        raise UsageError(f"{file}: format {metadata.get('format')}; expected {FORMAT}, as `tools.train pack` writes it")
    prefixes = sorted({key.partition(".")[0] for key in tensors})
    return json.loads(metadata["training"]), [_with_prefix(tensors, prefix) for prefix in prefixes]


def _with_prefix(tensors: Weights, prefix: str) -> Weights:
    return {key.removeprefix(f"{prefix}."): value for key, value in tensors.items() if key.startswith(f"{prefix}.")}
