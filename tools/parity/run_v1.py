"""Runs under the Python of nnU-Net v1's environment: writes a model folder, or predicts one scan with it.

``run_v1.py write SPEC.json MODEL_DIR`` and ``run_v1.py predict MODEL_DIR IN_DIR OUT_DIR --mode normal --step 0.5``.
Only v1's own functions touch weights and voxels. Imports nothing of this repository.
"""

import argparse
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

# Checkpoints of 2019 hold more than tensors; since torch 2.6 a plain load refuses them.
torch.load = functools.partial(torch.load, weights_only=False)

from batchgenerators.utilities.file_and_folder_operations import save_pickle  # type: ignore[import-not-found]  # noqa: E402
from nnunet.inference.predict import predict_from_folder  # type: ignore[import-not-found]  # noqa: E402
from nnunet.training.network_training.nnUNetTrainerV2 import (  # type: ignore[import-not-found]  # noqa: E402
    nnUNetTrainerV2,
)

_CHECKPOINT = "model_final_checkpoint"
_ARRAYS = ("patch_size", "current_spacing", "original_spacing", "median_patient_size_in_voxels")
_NUMBERED = ("modalities", "normalization_schemes", "use_mask_for_norm")


def main() -> None:
    """Writes or predicts, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    write = commands.add_parser("write")
    write.add_argument("spec", type=Path)
    write.add_argument("model", type=Path)
    predict = commands.add_parser("predict")
    predict.add_argument("model", type=Path)
    predict.add_argument("scans", type=Path)
    predict.add_argument("out", type=Path)
    predict.add_argument("--mode", choices=("fastest", "normal"), required=True)
    predict.add_argument("--step", type=float, required=True)
    predict.add_argument("--mirror", action="store_true")
    arguments = parser.parse_args()
    if arguments.command == "write":
        write_model(json.loads(arguments.spec.read_text()), arguments.spec.parent, arguments.model)
    else:
        predict_folder(arguments)


def write_model(spec: dict[str, Any], spec_folder: Path, model: Path) -> None:
    """Writes ``plans.pkl`` and ``fold_0`` as a training of v1 leaves them, by its own ``save_checkpoint``."""
    plans = plans_as_v1_has_them(spec["plans"])
    fold = model / "fold_0"
    fold.mkdir(parents=True, exist_ok=True)
    trainer = nnUNetTrainerV2(str(model / "plans.pkl"), 0, str(model), str(model), True, 0, True, False, True)
    trainer.plans = plans
    trainer.initialize(training=False)
    if spec["weights"] is None:
        randomise(trainer.network, spec["seed"])
    else:
        arrays = np.load(spec_folder / spec["weights"])
        trainer.network.load_state_dict({name: torch.from_numpy(arrays[name]) for name in arrays.files})
    trainer.save_checkpoint(str(fold / f"{_CHECKPOINT}.model"), save_optimizer=True)
    save_pickle(plans, str(model / "plans.pkl"))


def plans_as_v1_has_them(plans: dict[str, Any]) -> dict[str, Any]:
    """JSON's lists and text keys turned into the arrays and whole-number keys of a real ``plans.pkl``."""
    stages = {int(stage): dict(values) for stage, values in plans["plans_per_stage"].items()}
    for values in stages.values():
        values.update({name: np.array(values[name]) for name in _ARRAYS})
    properties = dict(plans["dataset_properties"])
    properties["intensityproperties"] = {
        int(channel): {name: np.float32(value) for name, value in statistics.items()}
        for channel, statistics in properties["intensityproperties"].items()
    }
    numbered = {name: {int(key): value for key, value in plans[name].items()} for name in _NUMBERED}
    return {**plans, **numbered, "plans_per_stage": stages, "dataset_properties": properties}


def randomise(network: torch.nn.Module, seed: int) -> None:
    """Fills all parameters from a seed; norms stay near 1 and 0, so that no layer dies. ``run_v2.py`` has the same."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise * (2.0 / parameter[0].numel()) ** 0.5)
            else:
                parameter.add_(0.1 * noise)


def predict_folder(arguments: argparse.Namespace) -> None:
    """Label maps of a folder's scans by ``nnUNet_predict``'s own function, in single precision."""
    predict_from_folder(
        str(arguments.model),
        str(arguments.scans),
        str(arguments.out),
        folds=(0,),
        save_npz=False,
        num_threads_preprocessing=1,
        num_threads_nifti_save=1,
        lowres_segmentations=None,
        part_id=0,
        num_parts=1,
        tta=arguments.mirror,
        mixed_precision=False,
        overwrite_existing=True,
        mode=arguments.mode,
        step_size=arguments.step,
        checkpoint_name=_CHECKPOINT,
    )


if __name__ == "__main__":
    main()
