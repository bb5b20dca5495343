"""Everything that nnU-Net does around the network, as a plan: what the two versions share and where they differ."""

from dataclasses import dataclass
from typing import Any, Literal

from app.plan import (
    SCHEMA_VERSION,
    Accumulator,
    IntensityPlan,
    InterpolationPlan,
    NetworkPlan,
    Plan,
    PostprocessingPlan,
    SlidingWindowPlan,
    SpacingPlan,
)
from app.volume import Shape, Vector
from tools.convert.architectures import Architecture
from tools.convert.model_folder import ModelError, Request, refuse_unless
from tools.convert.onnx_graph import Weights
from tools.train.presets import PAPER_HEADER_RULE

_GRID = (512, 512, 512)  # only --spacing resample uses it; nnU-Net has no limit


@dataclass(frozen=True)
class Version:
    """Where v1 and v2 differ at inference.

    Attributes:
        normalise: v1 normalises what it has resampled, v2 resamples what it has normalised.
        average: v1 averages softmax probabilities of tiles and mirrored copies, v2 logits.
        accumulator: v2's Gaussian map and sums are half precision, and so are its interpolated logits.
    """

    title: str
    normalise: Literal["after_resampling", "before_resampling"]
    average: Literal["logits", "probabilities"]
    accumulator: Accumulator


V1 = Version("nnU-Net v1", "after_resampling", "probabilities", "float32")
V2 = Version("nnU-Net v2", "before_resampling", "logits", "float16")


@dataclass(frozen=True)
class Facts:
    """What the model's own files say; 2-D patches and spacings have two entries, in the order of the network's axes.

    Attributes:
        intensity: mean, sd, 0.5th and 99.5th percentile of foreground voxels, HU.
        mirror_axes: of the network: 0 is its first axis, for 2-D that of rows.
    """

    labels: tuple[str, ...]
    network: NetworkPlan
    intensity: tuple[float, float, float, float]
    spacing_mm: tuple[float, ...]
    patch_size: tuple[int, ...]
    transpose_forward: tuple[int, ...]
    mirror_axes: tuple[int, ...]
    postprocessing: PostprocessingPlan


@dataclass(frozen=True)
class Imported:
    """A model as a bundle holds it.

    Attributes:
        weights: by our names, or by the architecture's own if there is one.
        architecture: for a network that ``app.network`` cannot build.
        notes: what a user of the bundle has to know.
    """

    version: Version
    plan: Plan
    weights: Weights
    architecture: Architecture | None
    notes: tuple[str, ...]


def build_plan(version: Version, request: Request, facts: Facts, source: str) -> Plan:
    """The plan of a model.

    Raises:
        ModelError: the facts contradict each other.
    """
    mean, sd, low, high = facts.intensity
    # Both pad with 0 after normalising; a plan says it in HU, which can be normalised only within the clip.
    refuse_unless(
        low <= mean <= high, source, f"mean {mean:g} HU outside of [{low:g}, {high:g}]", "cannot say the padding in HU"
    )
    flat = facts.network.dimensions == 2
    patch = (1, *facts.patch_size) if flat else facts.patch_size
    target = (1.0, *facts.spacing_mm[-2:]) if flat else facts.spacing_mm
    try:
        return Plan(
            schema_version=SCHEMA_VERSION,
            name=request.name,
            labels=facts.labels,
            orientation="as_stored",
            mode=request.mode,
            network=facts.network,
            intensity=IntensityPlan((low, high), mean, sd, version.normalise),
            spacing=SpacingPlan(_vector(target), "off", _GRID, PAPER_HEADER_RULE, keep_first_axis=flat),
            interpolation=InterpolationPlan(
                image_order=3, separate_z_above=3.0, clip_overshoot=True, logits_precision=version.accumulator
            ),
            sliding_window=SlidingWindowPlan(
                patch_size=_shape(patch),
                tile_step_size=request.tile_step_size,
                gaussian_sigma_scale=0.125,
                average=version.average,
                pad_hu=mean,
                mirror_axes=_mirror_axes(facts.mirror_axes, flat),
                accumulator=version.accumulator,
                sum_order="least_memory" if version.accumulator == "float32" else "by_axis",
            ),
            postprocessing=facts.postprocessing,
            transpose_forward=_shape(facts.transpose_forward),
            crop_to_nonzero=True,
        )
    except ValueError as error:
        raise ModelError(f"{source}: {error}") from error


def numbers(values: Any, source: str) -> tuple[float, ...]:
    """A list of numbers that nnU-Net wrote, whether a list, a tuple or an array."""
    try:
        return tuple(float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise ModelError(f"{source}: found {values!r}; expected a list of numbers") from error


def integers(values: Any, source: str) -> tuple[int, ...]:
    """Likewise, whole numbers."""
    found = numbers(values, source)
    refuse_unless(all(value.is_integer() for value in found), source, f"found {values!r}", "expected whole numbers")
    return tuple(int(value) for value in found)


def _mirror_axes(axes: tuple[int, ...], flat: bool) -> tuple[Literal[0, 1, 2], ...]:
    named: tuple[Literal[0, 1, 2], ...] = (1, 2) if flat else (0, 1, 2)
    if not set(axes) <= set(range(len(named))):
        raise ValueError(f"mirror axes {list(axes)}; expected some of {list(range(len(named)))}")
    return tuple(named[axis] for axis in axes)


def _vector(values: tuple[float, ...]) -> Vector:
    if len(values) != 3:
        raise ValueError(f"spacing {list(values)}; expected one entry an axis")
    return (values[0], values[1], values[2])


def _shape(values: tuple[int, ...]) -> Shape:
    if len(values) != 3:
        raise ValueError(f"{list(values)}; expected one entry an axis")
    return (values[0], values[1], values[2])
