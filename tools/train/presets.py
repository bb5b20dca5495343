"""Named training plans: the paper's two, nnU-Net's rules applied to one's own data, and two small ones."""

from collections.abc import Callable
from dataclasses import replace

from app.errors import UsageError
from app.plan import (
    SCHEMA_VERSION,
    IntensityPlan,
    InterpolationPlan,
    NetworkPlan,
    Plan,
    PostprocessingPlan,
    SliceCountRule,
    SlidingWindowPlan,
    SpacingPlan,
)
from app.volume import Shape, Vector
from tools.train.augmentation import NNUNET_2D, NNUNET_3D, SMALL_DATA
from tools.train.cases import FLARE22_ORGANS
from tools.train.fingerprint import Fingerprint
from tools.train.planning import TrainPlan
from tools.train.rules import ANISOTROPY, Configuration, median_shape, plan_2d, plan_3d, target_spacing

# The paper's enforced spacing (section 2.2); only --spacing header uses it.
PAPER_HEADER_RULE = SliceCountRule(in_plane_mm=0.75, slice_mm=0.5, few_slices=150, many_slices=600, smallest_factor=0.8)


def make_plan(name: str, organs: tuple[str, ...] = FLARE22_ORGANS, fingerprint: Fingerprint | None = None) -> TrainPlan:
    """The plan of a preset.

    ``paper-3d`` and ``paper-2d``: the paper's networks and protocol, literally; target spacing and intensities,
    which it does not print, come from the fingerprint by its rules. ``planned-3d`` and ``planned-2d``: all from the
    fingerprint. ``compact-3d`` (two CPU cores, hours), ``locator-3d`` and ``phantom-3d`` (minutes) need none.

    Raises:
        UsageError: no such preset, or it needs a fingerprint and there is none.
    """
    if name in _LITERAL:
        return _LITERAL[name](organs)
    if name not in _FROM_DATA:
        raise UsageError(f"preset {name}: expected one of {', '.join(PRESETS)}")
    if fingerprint is None:
        raise UsageError(f"preset {name} takes spacing and intensities from the data; run prepare on them first")
    return _FROM_DATA[name](organs, fingerprint)


def _paper_3d(organs: tuple[str, ...], fingerprint: Fingerprint) -> TrainPlan:
    """112 x 160 x 128, six stages: 30,794,784 parameters with 14 classes."""
    network = NetworkPlan(
        features_per_stage=(32, 64, 128, 256, 320, 320),
        strides=((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2)),
        kernel_sizes=((3, 3, 3),) * 6,
    )
    return _nnunet_plan("paper-3d", organs, fingerprint, Configuration((112, 160, 128), network, 2))


def _paper_2d(organs: tuple[str, ...], fingerprint: Fingerprint) -> TrainPlan:
    """512 x 512, eight stages: 41,285,472 parameters with 14 classes."""
    network = NetworkPlan(
        features_per_stage=(32, 64, 128, 256, 480, 480, 480, 480),
        strides=((1, 1), *((2, 2),) * 7),
        kernel_sizes=((3, 3),) * 8,
    )
    return _nnunet_plan("paper-2d", organs, fingerprint, Configuration((512, 512), network, 12))


def _planned_3d(organs: tuple[str, ...], fingerprint: Fingerprint) -> TrainPlan:
    spacing = _target_spacing(fingerprint)
    shape = median_shape(fingerprint.spacings_zyx_mm, fingerprint.shapes_zyx, spacing)
    found = plan_3d(spacing, shape, len(fingerprint.scans), len(organs) + 1)
    return _nnunet_plan("planned-3d", organs, fingerprint, found)


def _planned_2d(organs: tuple[str, ...], fingerprint: Fingerprint) -> TrainPlan:
    spacing = _target_spacing(fingerprint)
    shape = median_shape(fingerprint.spacings_zyx_mm, fingerprint.shapes_zyx, spacing)
    found = plan_2d(spacing, shape, len(fingerprint.scans), len(organs) + 1)
    return _nnunet_plan("planned-2d", organs, fingerprint, found)


def _nnunet_plan(
    name: str, organs: tuple[str, ...], fingerprint: Fingerprint, configuration: Configuration
) -> TrainPlan:
    """The paper's protocol around a network: 1000 epochs x 250, SGD, everything else as nnU-Net v1 has it."""
    z, y, x = (1, *configuration.patch_size) if configuration.network.dimensions == 2 else configuration.patch_size
    flat_3d = replace(NNUNET_3D, in_plane_only=max(y, x) > ANISOTROPY * z)
    return TrainPlan(
        app=_nnunet_app(name, organs, fingerprint, configuration.network, (z, y, x)),
        train_patch_size=(z, y, x),
        labelled_batch=configuration.batch_size,
        unlabelled_batch=configuration.batch_size,
        epochs=1000,
        iterations_per_epoch=250,
        learning_rate=0.01,
        weight_decay=3e-5,
        momentum=0.99,
        ramp_up_epochs=500,
        augmentation=NNUNET_2D if configuration.network.dimensions == 2 else flat_3d,
    )


def _nnunet_app(
    name: str, organs: tuple[str, ...], fingerprint: Fingerprint, network: NetworkPlan, patch_zyx: Shape
) -> Plan:
    """Inference as in the paper's validation: true spacing, normal mode, step 0.7, mirroring where trained."""
    intensities = fingerprint.intensities
    return Plan(
        schema_version=SCHEMA_VERSION,
        name=name,
        labels=organs,
        orientation="LPS",
        mode="normal",
        network=network,
        intensity=IntensityPlan(
            clip_hu=(intensities.percentile_00_5_hu, intensities.percentile_99_5_hu),
            subtract_hu=intensities.mean_hu,
            divide_hu=intensities.sd_hu,
        ),
        spacing=SpacingPlan(
            target_zyx_mm=_target_spacing(fingerprint),
            enforce="off",
            largest_grid_zyx=(512, 512, 512),
            header=PAPER_HEADER_RULE,
            keep_first_axis=network.dimensions == 2,
        ),
        interpolation=InterpolationPlan(image_order=3, separate_z_above=3.0),
        sliding_window=SlidingWindowPlan(
            patch_size=patch_zyx,
            tile_step_size=0.7,
            gaussian_sigma_scale=0.125,
            average="probabilities",
            pad_hu=intensities.mean_hu,  # v1 pads with 0 after normalising
            mirror_axes=(1, 2) if network.dimensions == 2 else (0, 1, 2),
        ),
        postprocessing=PostprocessingPlan(),
    )


def _compact_3d(organs: tuple[str, ...]) -> TrainPlan:
    """5.65 M parameters at 2.5 x 2 x 2 mm; about 0.8 s a patch, forward and backward, on two CPU cores in bf16."""
    network = NetworkPlan(
        features_per_stage=(16, 32, 64, 128, 256),
        strides=((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
        kernel_sizes=((3, 3, 3),) * 5,
    )
    app = _small_app("compact-3d", organs, network, (2.5, 2.0, 2.0))
    # Windows as wide and deep as an abdomen (a locator's box): one or two of them in place of 8 to 18 of the
    # training's patches, half the voxels and no worse labels (weights/training/comparisons/serving.md).
    windows = replace(app.sliding_window, patch_size=(80, 128, 192))
    return TrainPlan(
        app=replace(app, sliding_window=windows),
        train_patch_size=(64, 96, 96),
        labelled_batch=2,
        unlabelled_batch=1,
        epochs=60,
        iterations_per_epoch=50,
        learning_rate=1e-3,
        weight_decay=0.01,
        momentum=0.9,
        ramp_up_epochs=30,
        optimiser="adamw",  # a few thousand iterations only
        schedule="poly",
        labelled_as_unlabelled=True,  # of ten scans three are unlabelled
        augmentation=SMALL_DATA,
    )


def _locator_3d(_organs: tuple[str, ...]) -> TrainPlan:
    """0.35 M parameters at 6 mm: finds the abdomen in a whole scan with a window or two (``fit --supervised``).

    It need not tell organs apart, and what need not be told apart is learnt much sooner.
    """
    network = NetworkPlan(
        features_per_stage=(8, 16, 32, 64),
        strides=((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
        kernel_sizes=((3, 3, 3),) * 4,
    )
    app = _small_app("locator-3d", ("organs",), network, (6.0, 6.0, 6.0))
    window = replace(app.sliding_window, patch_size=(64, 64, 80))
    spacing = replace(app.spacing, largest_grid_zyx=(320, 128, 128))
    return TrainPlan(
        app=replace(app, sliding_window=window, spacing=spacing),
        train_patch_size=(48, 64, 72),
        labelled_batch=2,
        unlabelled_batch=1,
        epochs=40,
        iterations_per_epoch=50,
        learning_rate=2e-3,
        weight_decay=0.01,
        momentum=0.9,
        ramp_up_epochs=10,
        optimiser="adamw",
        schedule="poly",
        labelled_as_unlabelled=True,
        organs_as_one=True,
        augmentation=SMALL_DATA,
    )


def _phantom_3d(organs: tuple[str, ...]) -> TrainPlan:
    """0.35 M parameters at 3 mm, for trials of ten CPU minutes on synthetic scans.

    ``fit --stop-after-cpu-minutes 10`` ends them; the epochs are more than fit into that.
    """
    network = NetworkPlan(
        features_per_stage=(8, 16, 32, 64),
        strides=((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
        kernel_sizes=((3, 3, 3),) * 4,
    )
    app = _small_app("phantom-3d", organs, network, (3.0, 3.0, 3.0))
    return TrainPlan(
        app=replace(app, sliding_window=replace(app.sliding_window, patch_size=(32, 48, 48))),
        train_patch_size=(32, 48, 48),
        labelled_batch=1,
        unlabelled_batch=1,
        epochs=1000,
        iterations_per_epoch=20,
        learning_rate=2e-3,
        weight_decay=3e-5,
        momentum=0.99,
        ramp_up_epochs=8,
        optimiser="adamw",  # a few hundred iterations only
        plateau_patience=15,
        plateau_factor=0.5,
    )


def _small_app(name: str, organs: tuple[str, ...], network: NetworkPlan, spacing_zyx_mm: Vector) -> Plan:
    """What the small presets share: soft-tissue window, linear interpolation, edges repeated, no mirroring."""
    return Plan(
        schema_version=SCHEMA_VERSION,
        name=name,
        labels=organs,
        orientation="LPS",
        mode="normal",
        network=network,
        intensity=IntensityPlan(clip_hu=(-200.0, 300.0), subtract_hu=50.0, divide_hu=110.0),
        spacing=SpacingPlan(
            target_zyx_mm=spacing_zyx_mm,
            enforce="resample",
            largest_grid_zyx=(400, 320, 320),
            header=PAPER_HEADER_RULE,
        ),
        interpolation=InterpolationPlan(image_order=1),
        sliding_window=SlidingWindowPlan(
            patch_size=(16, 16, 16),
            tile_step_size=0.7,
            gaussian_sigma_scale=0.125,
            average="logits",
            pad_hu=-1024.0,  # air, as scanners write it where they do not look
            mirror_axes=(),  # a mirrored patient has his liver on the left
            padding="edge",
        ),
        postprocessing=PostprocessingPlan(),
    )


def _target_spacing(fingerprint: Fingerprint) -> Vector:
    return target_spacing(fingerprint.spacings_zyx_mm, fingerprint.shapes_zyx)


_FROM_DATA: dict[str, Callable[[tuple[str, ...], Fingerprint], TrainPlan]] = {
    "paper-3d": _paper_3d,
    "paper-2d": _paper_2d,
    "planned-3d": _planned_3d,
    "planned-2d": _planned_2d,
}
_LITERAL: dict[str, Callable[[tuple[str, ...]], TrainPlan]] = {
    "compact-3d": _compact_3d,
    "locator-3d": _locator_3d,
    "phantom-3d": _phantom_3d,
}
PRESETS = (*_FROM_DATA, *_LITERAL)
