"""nnU-Net v1's results folder, read by its own rules, as what a bundle holds."""

import ast
from pathlib import Path
from typing import Any

import numpy as np
import torch

from app.plan import NetworkPlan, PostprocessingPlan
from tools.convert.inference_facts import V1, Facts, Imported, build_plan, integers, numbers
from tools.convert.key_tables import V1_KEYS, translate
from tools.convert.model_folder import (
    ModelError,
    Request,
    entry,
    fold_folder,
    known_trainer,
    read_json,
    refuse_unless,
    trainer_note,
)
from tools.convert.onnx_graph import Weights
from tools.convert.safe_pickle import load_checkpoint, load_plain_pickle

# Trainers of nnunet 1.7.1 that neither build another network nor predict otherwise, and that of 3D-CPS.
_NOT_MIRRORING = frozenset({"nnUNetTrainerV2_noMirroring", "nnUNetTrainerV2_noDataAugmentation"})
_VARIANTS = """
    SSL fp16 fp32 DA5 warmup fullEvals cycleAtEnd copy1 copy2 copy3 copy4
    Adam Adam_ReduceOnPlateau Adam_nnUNetTrainerlr SGD_ReduceOnPlateau SGD_fixedSchedule SGD_lr1en1 SGD_lr1en3
    momentum09 momentum095 momentum098 momentum09in2D
    Loss_CE Loss_CEGDL Loss_Dice Loss_Dice_squared Loss_DiceTopK10 Loss_TopK10 Loss_MCC
"""
TRAINERS = _NOT_MIRRORING | {"nnUNetTrainerV2", *(f"nnUNetTrainerV2_{name}" for name in _VARIANTS.split())}
_PREPROCESSORS = {2: "PreprocessorFor2D", 3: "GenericPreprocessor"}
_STAGE_ARGUMENT = 5  # of those trainers: plans, fold, output, data, batch dice, stage, ...


def read_model(request: Request) -> Imported:
    """The model of one fold.

    As nnU-Net does, the plans are those stored beside the checkpoint, not ``plans.pkl``, which may be of a later plan.

    Raises:
        ModelError: a file is missing or refused, or the model does what a bundle cannot say.
    """
    folder = fold_folder(request, "all")
    description = folder / f"{request.checkpoint}.model.pkl"
    info = load_plain_pickle(description)
    source = str(description)
    trainer = known_trainer(request, str(entry(info, "name", source)), TRAINERS, source)
    plans = entry(info, "plans", source)
    stage = _stage(plans, entry(info, "init", source), source)
    weights, weight_notes = _weights(folder / f"{request.checkpoint}.model")
    flat = len(entry(stage, "patch_size", source)) == 2
    _refuse_other_inference(plans, flat, source)
    network = _network(plans, stage, weights, source)
    labels, label_notes = _labels(request.model, plans, source)
    mirrored = () if trainer in _NOT_MIRRORING else (0, 1) if flat else (0, 1, 2)
    facts = Facts(
        labels=labels,
        network=network,
        intensity=_intensity(plans, source),
        spacing_mm=numbers(entry(stage, "current_spacing", source), f"{source}: current_spacing"),
        patch_size=integers(stage["patch_size"], f"{source}: patch_size"),
        transpose_forward=integers(plans.get("transpose_forward") or (0, 1, 2), f"{source}: transpose_forward"),
        mirror_axes=mirrored,
        postprocessing=_postprocessing(request, labels),
    )
    plan = build_plan(V1, request, facts, source)
    notes = (trainer_note(info["name"], trainer), *weight_notes, *label_notes)
    return Imported(V1, plan, weights, None, notes)


def _stage(plans: dict[str, Any], init: Any, source: str) -> dict[str, Any]:
    """The plans of the stage that was trained: 0 is low resolution where there are two."""
    stages = entry(plans, "plans_per_stage", source)
    stage = init[_STAGE_ARGUMENT] if isinstance(init, tuple | list) and len(init) > _STAGE_ARGUMENT else None
    if stage is None and len(stages) == 1:
        stage = next(iter(stages))
    found: dict[str, Any] = entry(stages, stage, f"{source}: plans_per_stage")
    return found


def _weights(path: Path) -> tuple[Weights, tuple[str, ...]]:
    """(weights by our names, what to say about them)."""
    state = entry(load_checkpoint(path), "state_dict", str(path))
    notes: tuple[str, ...] = ()
    if isinstance(state, tuple | list):
        notes = (f"a CPS checkpoint with {len(state)} networks; the first was taken",)
        refuse_unless(bool(state), str(path), "no network", "expected a state dict")
        state = state[0]
    fits = isinstance(state, dict) and all(isinstance(value, torch.Tensor) for value in state.values())
    refuse_unless(fits, str(path), f"state_dict is a {type(state).__name__}", "expected a dictionary of tensors")
    found = {str(key).removeprefix("module."): value.float().numpy() for key, value in state.items()}
    if not any(key.startswith("tu.") for key in found):
        raise ModelError(f"{path}: no transposed convolutions (tu.*); a network that upsamples by interpolation")
    return translate(found, V1_KEYS, str(path)), notes


def _network(plans: dict[str, Any], stage: dict[str, Any], weights: Weights, source: str) -> NetworkPlan:
    convolutions = plans.get("conv_per_stage", 2)
    refuse_unless(convolutions == 2, source, f"{convolutions} convolutions a stage", "expected 2")
    pooling = [
        integers(item, f"{source}: pool_op_kernel_sizes") for item in entry(stage, "pool_op_kernel_sizes", source)
    ]
    kernels = [integers(item, f"{source}: conv_kernel_sizes") for item in entry(stage, "conv_kernel_sizes", source)]
    fits = {side for kernel in kernels for side in kernel} <= {1, 3}
    refuse_unless(fits, source, f"kernels {kernels}", "expected sides of 1 and 3, the others lose their padding")
    first = [weights.get(f"enc.{index}.0.0.weight", np.empty(0)) for index in range(len(kernels))]
    try:
        return NetworkPlan(
            features_per_stage=tuple(len(weight) for weight in first),
            strides=((1,) * len(kernels[0]), *pooling),
            kernel_sizes=tuple(kernels),
            decoder_kernels="below",
        )
    except ValueError as error:
        raise ModelError(f"{source}: {error}") from error


def _refuse_other_inference(plans: dict[str, Any], flat: bool, source: str) -> None:
    """Refuses what is not one CT channel through the standard preprocessor and export."""
    channels = entry(plans, "num_modalities", source)
    refuse_unless(channels == 1, source, f"{channels} modalities", "a bundle takes one image a case")
    schemes = list(entry(plans, "normalization_schemes", source).values())
    refuse_unless(schemes == ["CT"], source, f"normalisation {', '.join(map(str, schemes))}", "expected CT")
    masks = list(entry(plans, "use_mask_for_norm", source).values())
    refuse_unless(not any(masks), source, "use_mask_for_norm is set", "a bundle normalises every voxel alike")
    expected = _PREPROCESSORS[2 if flat else 3]
    preprocessor = plans.get("preprocessor_name") or expected
    refuse_unless(preprocessor == expected, source, f"preprocessor {preprocessor}", f"expected {expected}")
    export = plans.get("segmentation_export_params") or {}
    standard = {"force_separate_z": None, "interpolation_order": 1, "interpolation_order_z": 0}
    refuse_unless({**standard, **export} == standard, source, f"export with {export}", f"expected {standard}")


def _intensity(plans: dict[str, Any], source: str) -> tuple[float, float, float, float]:
    where = f"{source}: intensityproperties"
    properties = entry(entry(entry(plans, "dataset_properties", source), "intensityproperties", where), 0, where)
    keys = ("mean", "sd", "percentile_00_5", "percentile_99_5")
    mean, sd, low, high = numbers([entry(properties, key, where) for key in keys], where)
    return (mean, sd, low, high)


def _labels(model: Path, plans: dict[str, Any], source: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(organ names, notes): those of ``dataset.json`` if it lies in the folder, else class_1 and so on."""
    classes = integers(entry(plans, "all_classes", source), f"{source}: all_classes")
    expected = tuple(range(1, len(classes) + 1))
    refuse_unless(tuple(sorted(classes)) == expected, source, f"labels {classes}", f"expected {expected}")
    path = model / "dataset.json"
    if not path.exists():
        return tuple(f"class_{label}" for label in expected), (f"no {path.name} in {model.name}: labels have no names",)
    names = entry(read_json(path), "labels", str(path))
    return tuple(str(entry(names, str(label), f"{path}: labels")) for label in expected), ()


def _postprocessing(request: Request, labels: tuple[str, ...]) -> PostprocessingPlan:
    """What ``nnUNet_predict`` does after prediction: nothing without the file in the model's folder."""
    path = request.model / "postprocessing.json"
    if not path.exists() or not request.postprocessing:
        return PostprocessingPlan()
    content = read_json(path)
    classes = entry(content, "for_which_classes", str(path))
    hint = "leave it out with --no-postprocessing"
    organs = []
    for item in range(1, len(labels) + 1) if classes is None else classes:
        members = item if isinstance(item, list) else [item]
        fits = len(members) == 1 and members[0] in range(1, len(labels) + 1)
        refuse_unless(
            fits, str(path), f"the largest component of {item}", f"a bundle keeps that of single labels; {hint}"
        )
        organs.append(labels[members[0] - 1])
    sizes = _literal(content.get("min_valid_object_sizes", "None"), path)
    refuse_unless(sizes is None or not organs, str(path), f"min_valid_object_sizes {sizes}", f"expected none; {hint}")
    return PostprocessingPlan(largest_component=tuple(dict.fromkeys(organs)))


def _literal(text: Any, path: Path) -> Any:
    """nnU-Net writes ``str`` of a dictionary into its JSON."""
    try:
        return ast.literal_eval(str(text))
    except (ValueError, SyntaxError) as error:
        raise ModelError(f"{path}: min_valid_object_sizes {text!r}; expected a dictionary") from error
