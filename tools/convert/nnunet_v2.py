"""nnU-Net v2's results folder, read by its own rules, as what a bundle holds."""

from typing import Any

from app.plan import PostprocessingPlan
from tools.convert.architectures import Architecture, build, is_plain, network_plan, own_weights, read_architecture
from tools.convert.inference_facts import V2, Facts, Imported, build_plan, integers, numbers
from tools.convert.key_tables import V2_KEYS, translate
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
from tools.convert.safe_pickle import load_checkpoint

# Trainers of nnunetv2 2.8.1 that build the network of the plans; mirroring is in the checkpoint.
_VARIANTS = """
    _1epoch _5epochs _10epochs _20epochs _50epochs _100epochs _250epochs _500epochs _750epochs _2000epochs _4000epochs
    _8000epochs _250epochs_NoMirroring _2000epochs_NoMirroring _4000epochs_NoMirroring _8000epochs_NoMirroring
    DA5 DA5ord0 DA5_10epochs NoDA NoMirroring _onlyMirror01 _onlyMirror01_1500ep _onlyMirror01_DA5 _noDummy2DDA
    CELoss DiceLoss DiceCELoss_noSmooth Topk10Loss DiceTopK10Loss NoDeepSupervision
    Adam Adam1en3 Adam3en4 CosAnneal _warmup Benchmark_5epochs Benchmark_5epochs_noDataLoading
"""
TRAINERS = frozenset({"nnUNetTrainer", *(f"nnUNetTrainer{name}" for name in _VARIANTS.split())})
_READERS = ("SimpleITKIO", "NibabelIO")  # both give the axes as they are stored, z first
_RESAMPLER = "resample_data_or_seg_to_shape"


def read_model(request: Request) -> Imported:
    """The model of one fold.

    Raises:
        ModelError: a file is missing or refused, or the model does what a bundle cannot say.
    """
    path = fold_folder(request, "fold_all") / request.checkpoint
    checkpoint, source = load_checkpoint(path), str(path)
    trainer = str(entry(checkpoint, "trainer_name", source))
    same_as = known_trainer(request, trainer, TRAINERS, source)
    chosen = str(entry(entry(checkpoint, "init_args", source), "configuration", source))
    plans_path, dataset_path = request.model / "plans.json", request.model / "dataset.json"
    plans, dataset = read_json(plans_path), read_json(dataset_path)
    where = f"{plans_path}: {chosen}"
    configuration = _resolve(plans, chosen, str(plans_path))
    _refuse_other_inference(plans, dataset, configuration, where)
    labels = _labels(entry(dataset, "labels", str(dataset_path)), str(dataset_path))
    architecture = read_architecture(configuration, where)
    weights, in_app = _weights(checkpoint, architecture, len(labels) + 1, source)
    facts = Facts(
        labels=labels,
        network=network_plan(architecture, in_app, where),
        intensity=_intensity(plans, str(plans_path)),
        spacing_mm=numbers(entry(configuration, "spacing", where), f"{where}: spacing"),
        patch_size=integers(entry(configuration, "patch_size", where), f"{where}: patch_size"),
        transpose_forward=integers(
            entry(plans, "transpose_forward", str(plans_path)), f"{plans_path}: transpose_forward"
        ),
        mirror_axes=integers(checkpoint.get("inference_allowed_mirroring_axes") or (), f"{source}: mirroring axes"),
        postprocessing=_postprocessing(request),
    )
    plan = build_plan(V2, request, facts, where)
    notes = (f"configuration {chosen}", trainer_note(trainer, same_as))
    return Imported(V2, plan, weights, None if in_app else architecture, notes)


def _resolve(plans: dict[str, Any], name: str, source: str) -> dict[str, Any]:
    """A configuration with what it inherits from others."""
    configurations = entry(plans, "configurations", source)
    found: dict[str, Any] = {}
    visited: list[str] = []
    parent: Any = name
    while parent is not None:
        refuse_unless(parent not in visited, source, f"{' <- '.join(visited)} inherit in a circle", "expected an end")
        visited.append(parent)
        own = entry(configurations, parent, f"{source}: configurations")
        found = {**own, **found}
        parent = own.get("inherits_from")
    return found


def _refuse_other_inference(
    plans: dict[str, Any], dataset: dict[str, Any], configuration: dict[str, Any], source: str
) -> None:
    """Refuses what is not one CT channel through the standard preprocessor and resampling."""
    previous = configuration.get("previous_stage")
    refuse_unless(previous is None, source, f"a cascade after {previous}", "a bundle holds one network")
    channels = dataset.get("channel_names", dataset.get("modality", {}))
    refuse_unless(len(channels) == 1, source, f"channels {channels}", "a bundle takes one image a case")
    schemes = list(entry(configuration, "normalization_schemes", source))
    refuse_unless(schemes == ["CTNormalization"], source, f"normalisation {schemes}", "expected CTNormalization")
    masked = any(entry(configuration, "use_mask_for_norm", source))
    refuse_unless(not masked, source, "use_mask_for_norm is set", "a bundle normalises every voxel alike")
    preprocessor = entry(configuration, "preprocessor_name", source)
    fits = preprocessor == "DefaultPreprocessor"
    refuse_unless(fits, source, f"preprocessor {preprocessor}", "expected DefaultPreprocessor")
    reader = entry(plans, "image_reader_writer", source)
    refuse_unless(reader in _READERS, source, f"reader {reader}", f"expected {' or '.join(_READERS)}")
    for what, order in (("data", 3), ("probabilities", 1)):
        function = entry(configuration, f"resampling_fn_{what}", source)
        refuse_unless(function == _RESAMPLER, source, f"resampling of {what} by {function}", f"expected {_RESAMPLER}")
        standard = {"is_seg": False, "order": order, "order_z": 0, "force_separate_z": None}
        found = {**standard, **entry(configuration, f"resampling_fn_{what}_kwargs", source)}
        refuse_unless(found == standard, source, f"resampling of {what} with {found}", f"expected {standard}")


def _labels(labels: Any, source: str) -> tuple[str, ...]:
    """Organ names by label. ``ignore`` has no channel in the network and is dropped."""
    entry(labels, "background", f"{source}: labels")
    numbered: dict[int, str] = {}
    for name, value in labels.items():
        members = value if isinstance(value, list) else [value]
        fits = len(members) == 1 and type(members[0]) is int
        refuse_unless(fits, source, f"label {name} is {value}", "regions (several labels in one) cannot be imported")
        numbered[members[0]] = name
    if (ignored := labels.get("ignore")) is not None:
        del numbered[ignored]
    expected = list(range(len(numbered)))
    refuse_unless(sorted(numbered) == expected, source, f"labels {sorted(numbered)}", f"expected {expected}")
    return tuple(numbered[label] for label in expected[1:])


def _weights(checkpoint: dict[str, Any], architecture: Architecture, classes: int, source: str) -> tuple[Weights, bool]:
    """(weights, whether they are by our names and ``app.network`` builds the network)."""
    state = entry(checkpoint, "network_weights", source)
    network = build(architecture, classes)
    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ModelError(f"{source}: the weights are not those of the network in plans.json ({error})") from error
    weights = {name: value.float().numpy() for name, value in own_weights(network).items()}
    if is_plain(architecture):
        return translate(weights, V2_KEYS, source), True
    return weights, False


def _intensity(plans: dict[str, Any], source: str) -> tuple[float, float, float, float]:
    new, old = "foreground_intensity_properties_per_channel", "foreground_intensity_properties_by_modality"
    where = f"{source}: {new}"
    properties = entry(plans.get(new, plans.get(old)), "0", where)
    keys = ("mean", "std", "percentile_00_5", "percentile_99_5")
    mean, sd, low, high = numbers([entry(properties, key, where) for key in keys], where)
    return (mean, max(sd, 1e-8), low, high)


def _postprocessing(request: Request) -> PostprocessingPlan:
    """None: ``nnUNetv2_predict`` does none, and what ``nnUNetv2_apply_postprocessing`` does a bundle cannot say.

    Its components touch by edges and corners too (scikit-image's default), the app's by faces.

    Raises:
        ModelError: the cross-validation found a post-processing, and it was not declined.
    """
    hint = "leave it out, as nnUNetv2_predict does, with --no-postprocessing"
    folders = sorted(request.model.glob("crossval_results_folds_*")) if request.postprocessing else []
    for folder in folders:
        pickled, path = folder / "postprocessing.pkl", folder / "postprocessing.json"
        if pickled.exists() and not path.exists():
            raise ModelError(f"{pickled}: a pickle that names functions; expected {path.name} beside it; {hint}")
        if path.exists():
            found = entry(read_json(path), "postprocessing_kwargs", str(path))
            refuse_unless(not found, str(path), f"the largest component (26 neighbours) of {found}", hint)
    return PostprocessingPlan()
