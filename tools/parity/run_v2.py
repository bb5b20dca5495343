"""Runs under the Python of nnU-Net v2's environment: writes a model folder, or predicts one scan with it.

``run_v2.py write SPEC.json MODEL_DIR`` and ``run_v2.py predict MODEL_DIR IN_DIR OUT_DIR --step 0.5 [--mirror]``.
Only v2's own functions touch weights and voxels. Imports nothing of this repository.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor  # type: ignore[import-not-found]
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer  # type: ignore[import-not-found]
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager  # type: ignore[import-not-found]

_CHECKPOINT = "checkpoint_final.pth"


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
    predict.add_argument("--step", type=float, required=True)
    predict.add_argument("--mirror", action="store_true")
    arguments = parser.parse_args()
    if arguments.command == "write":
        write_model(json.loads(arguments.spec.read_text()), arguments.spec.parent, arguments.model)
    else:
        predict_folder(arguments)


def write_model(spec: dict[str, Any], spec_folder: Path, model: Path) -> None:
    """Writes plans, dataset and ``fold_0`` with the entries that v2's ``save_checkpoint`` gives a checkpoint."""
    plans, dataset, configuration = spec["plans"], spec["dataset"], spec["configuration"]
    manager = PlansManager(plans)
    network = nnUNetTrainer.build_network_architecture(
        manager,
        manager.get_configuration(configuration),
        1,
        manager.get_label_manager(dataset).num_segmentation_heads,
        enable_deep_supervision=True,
    )
    if spec["weights"] is None:
        randomise(network, spec["seed"])
    else:
        load_once_each(network, np.load(spec_folder / spec["weights"]))
    fold = model / "fold_0"
    fold.mkdir(parents=True, exist_ok=True)
    (model / "plans.json").write_text(json.dumps(plans, indent=4))
    (model / "dataset.json").write_text(json.dumps(dataset, indent=4))
    checkpoint = {
        "network_weights": network.state_dict(),
        "optimizer_state": torch.optim.SGD(network.parameters(), 0.01, momentum=0.99, nesterov=True).state_dict(),
        "grad_scaler_state": None,
        "logging": {"mean_fg_dice": [np.float64(0.5)], "lrs": [0.01], "dice_per_class_or_region": [[np.float32(0.5)]]},
        "_best_ema": np.float64(0.5),
        "current_epoch": 1,
        "init_args": {"plans": plans, "configuration": configuration, "fold": 0, "dataset_json": dataset},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": tuple(spec["mirror_axes"]),
    }
    torch.save(checkpoint, fold / _CHECKPOINT)


def load_once_each(network: torch.nn.Module, arrays: Any) -> None:
    """Loads weights given under the first of the names that v2's state dict has for each."""
    state = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    result = network.load_state_dict(state, strict=False)
    # named_parameters gives a shared parameter once, under its first name: these are all there are.
    missing = sorted({name for name, _ in network.named_parameters()} - set(state))
    if result.unexpected_keys or missing:
        raise ValueError(f"weights unexpected: {result.unexpected_keys}, missing: {missing}")


def randomise(network: torch.nn.Module, seed: int) -> None:
    """Fills all parameters from a seed; norms stay near 1 and 0, so that no layer dies."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise * (2.0 / parameter[0].numel()) ** 0.5)
            else:
                parameter.add_(0.1 * noise)


def predict_folder(arguments: argparse.Namespace) -> None:
    """Label maps of a folder's scans by ``nnUNetv2_predict``'s own class on the CPU, one process a stage."""
    predictor = nnUNetPredictor(
        tile_step_size=arguments.step,
        use_gaussian=True,
        use_mirroring=arguments.mirror,
        perform_everything_on_device=False,
        device=torch.device("cpu"),
        allow_tqdm=False,
    )
    predictor.initialize_from_trained_model_folder(str(arguments.model), (0,), _CHECKPOINT)
    predictor.predict_from_files(
        str(arguments.scans),
        str(arguments.out),
        num_processes_preprocessing=1,
        num_processes_segmentation_export=1,
    )


if __name__ == "__main__":
    main()
