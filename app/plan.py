"""Every constant of inference, read from a bundle's ``plan.json`` and validated once.

An unknown key, a missing key or a value of the wrong type is an error that names the key: a plan of
another version must not be half understood.
"""

import json
from dataclasses import dataclass, field
from typing import Literal

from app.errors import BundleError
from app.json_values import build_value
from app.volume import Shape, Vector

SCHEMA_VERSION = 1

Mode = Literal["fastest", "normal"]
SpacingKind = Literal["off", "header", "resample"]
Accumulator = Literal["float32", "float16"]
Crop = Literal["none", "body", "organs"]


@dataclass(frozen=True)
class NetworkPlan:
    """nnU-Net's U-Net, by stage from full resolution down.

    Attributes:
        features_per_stage: channels of each encoder stage.
        strides: stride of each stage's first convolution, per axis (z, y, x) or (y, x); the first is all 1.
        kernel_sizes: kernel of each stage's convolutions, per axis; odd.
        residual: identity shortcut around the second block of a stage (the paper's text; its code has none).
        decoder_kernels: a decoder level has the kernel of its own encoder stage (v2) or of the one below it (v1); they
            differ only where kernels do.
        decoder_biases: transposed convolutions and heads have biases (v2).
        described_by: ``onnx`` if the other entries do not say all (v2's residual encoders): the torch backend, which
            builds the network from them, then cannot serve it.
        siblings: networks of this architecture whose logits are averaged (2: both of a CPS pair).
    """

    features_per_stage: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernel_sizes: tuple[tuple[int, ...], ...]
    residual: bool = False
    decoder_kernels: Literal["own", "below"] = "own"
    decoder_biases: bool = False
    described_by: Literal["plan", "onnx"] = "plan"
    siblings: int = 1

    def __post_init__(self) -> None:
        stages = len(self.features_per_stage)
        if stages < 2 or len(self.strides) != stages or len(self.kernel_sizes) != stages:
            raise ValueError("features_per_stage, strides and kernel_sizes need one entry a stage, two stages at least")
        lengths = {len(entry) for entry in (*self.strides, *self.kernel_sizes)}
        if lengths not in ({2}, {3}):
            raise ValueError("strides and kernel_sizes must all have 2 entries (2-D) or all 3 (3-D)")
        if any(stride != 1 for stride in self.strides[0]):
            raise ValueError("the first stage works at full resolution: its strides must be 1")
        if any(value < 1 for value in (*self.features_per_stage, *(s for stage in self.strides for s in stage))):
            raise ValueError("features and strides must be positive")
        if any(kernel < 1 or kernel % 2 == 0 for stage in self.kernel_sizes for kernel in stage):
            raise ValueError("kernel sizes must be odd")
        if self.siblings < 1:
            raise ValueError("siblings must be positive")

    def decoder_kernel(self, stage: int) -> tuple[int, ...]:
        """Kernel of the decoder level that joins encoder stage ``stage``."""
        return self.kernel_sizes[stage + 1 if self.decoder_kernels == "below" else stage]

    @property
    def dimensions(self) -> int:
        """2 or 3."""
        return len(self.strides[0])


@dataclass(frozen=True)
class IntensityPlan:
    """HU -> network input: clip, subtract, divide. Clip [-200, 300], 50, 110 turns water (0 HU) into -0.4545.

    Attributes:
        clip_hu, subtract_hu, divide_hu: the three steps.
        normalise: before or after resampling (nnU-Net v2, v1).
    """

    clip_hu: tuple[float, float]
    subtract_hu: float
    divide_hu: float
    normalise: Literal["after_resampling", "before_resampling"] = "after_resampling"

    def __post_init__(self) -> None:
        if not self.clip_hu[0] < self.clip_hu[1]:
            raise ValueError("clip_hu must be [low, high] with low < high")
        if not self.divide_hu > 0:
            raise ValueError("divide_hu must be positive")

    def normalised(self, hu: float) -> float:
        """One HU value as the network sees it."""
        return (min(max(hu, self.clip_hu[0]), self.clip_hu[1]) - self.subtract_hu) / self.divide_hu


@dataclass(frozen=True)
class SliceCountRule:
    """The paper's enforced spacing, a header override chosen by the number of slices S (section 2.2).

    S < ``few_slices``: in-plane ``in_plane_mm``, slices keep their true spacing. Up to ``many_slices``:
    slices ``slice_mm`` too. Above: ``slice_mm * max(smallest_factor, many_slices / S)``; with 0.5, 600 and
    0.8, a scan of 750 or more slices gets 0.4 mm.
    """

    in_plane_mm: float
    slice_mm: float
    few_slices: int
    many_slices: int
    smallest_factor: float

    def __post_init__(self) -> None:
        if not (self.in_plane_mm > 0 and self.slice_mm > 0 and 0 < self.smallest_factor <= 1):
            raise ValueError("spacings must be positive and smallest_factor in (0, 1]")
        if not 0 < self.few_slices <= self.many_slices:
            raise ValueError("few_slices must be positive and not above many_slices")


@dataclass(frozen=True)
class SpacingPlan:
    """The grid that the network works on.

    Attributes:
        target_zyx_mm: what it was trained at.
        enforce: what is done by default to bound the grid.
        largest_grid_zyx: voxels along each axis that ``resample`` does not exceed.
        header: the constants of ``header``.
        keep_first_axis: the first axis that the network sees keeps its spacing (nnU-Net's 2-D networks).
    """

    target_zyx_mm: Vector
    enforce: SpacingKind
    largest_grid_zyx: Shape
    header: SliceCountRule
    keep_first_axis: bool = False

    def __post_init__(self) -> None:
        if min(self.target_zyx_mm) <= 0 or min(self.largest_grid_zyx) < 1:
            raise ValueError("target_zyx_mm and largest_grid_zyx must be positive")


@dataclass(frozen=True)
class InterpolationPlan:
    """How images go to the network grid and logits come back.

    Attributes:
        image_order: spline order for the image: 0, 1 or 3.
        separate_z_above: nnU-Net's separate z. If the largest spacing exceeds the smallest more than this many
            times, the axis of the largest is interpolated with order 0, image and logits alike. None: never.
        logits_precision: of the interpolated logits that are compared. nnU-Net v2 keeps them in half precision, in
            which two classes may be equal: the first one wins.
        clip_overshoot: cubic splines do not leave the range of what they interpolate: the scan, or along a separate
            z the slice (as skimage's ``resize``, and with it nnU-Net).
    """

    image_order: Literal[0, 1, 3]
    separate_z_above: float | None = None
    clip_overshoot: bool = False
    logits_precision: Accumulator = "float32"


@dataclass(frozen=True)
class SlidingWindowPlan:
    """nnU-Net's sliding window.

    Attributes:
        patch_size: voxels (z, y, x); a 2-D network has z = 1.
        tile_step_size: largest step between tiles as a part of the patch.
        gaussian_sigma_scale: sigma of the importance map as a part of the patch.
        average: what overlapping tiles average (nnU-Net v1 probabilities, v2 logits).
        pad_hu: what surrounds a scan smaller than the patch, if ``padding`` is constant.
        padding: ``constant`` (nnU-Net), or ``edge``: the scan's outermost voxels again. A network with instance
            normalisation that sees 18 planes of a patient and 62 of air takes them for something else.
        mirror_axes: axes (0 = z, 1 = y, 2 = x) that ``--mirror`` flips: those that training mirrored.
        accumulator: type of the weighted sum; ``float16`` reproduces nnU-Net v2, whose map and sums are half precision.
        sum_order: of tiles that overlap: along the axis where that takes least memory, or nnU-Net's, axis after axis as
            the network sees them. It shows in sums of half precision only.
    """

    patch_size: Shape
    tile_step_size: float
    gaussian_sigma_scale: float
    average: Literal["logits", "probabilities"]
    pad_hu: float
    mirror_axes: tuple[Literal[0, 1, 2], ...]
    accumulator: Accumulator = "float32"
    sum_order: Literal["least_memory", "by_axis"] = "least_memory"
    padding: Literal["constant", "edge"] = "constant"

    def __post_init__(self) -> None:
        if min(self.patch_size) < 1:
            raise ValueError("patch_size must be positive")
        if not 0 < self.tile_step_size <= 1:
            raise ValueError("tile_step_size must be in (0, 1]")
        if not self.gaussian_sigma_scale > 0:
            raise ValueError("gaussian_sigma_scale must be positive")
        if len(set(self.mirror_axes)) != len(self.mirror_axes):
            raise ValueError("mirror_axes must not repeat an axis")


@dataclass(frozen=True)
class PostprocessingPlan:
    """Clean-up of the label map, by organ name.

    Attributes:
        largest_component: organs of which only the largest connected component stays, and others of some size.
        smallest_share: what such another one needs of the largest one's voxels; 1: only the largest stays (nnU-Net).
            A pancreas may lie in two parts in a scan: at 0.1 both stay, specks go.
        minimum_volume_ml: components of these organs that are smaller go.
    """

    largest_component: tuple[str, ...] = ()
    smallest_share: float = 1.0
    minimum_volume_ml: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.smallest_share <= 1:
            raise ValueError(f"smallest_share is {self.smallest_share}; expected a part of the largest, above 0 to 1")


@dataclass(frozen=True)
class ShortcutPlan:
    """What the network need not look at. Labels change a little with the windows' places; imported networks use none.

    Attributes:
        crop: the box that is segmented: of the whole scan, of the body, or of what the bundle's locator finds.
        margin_mm: around that box.
        least_ml: a locator that finds less than this in all has missed the abdomen, and the whole scan is segmented.
        skip_air: a window that holds nothing but air (or lung, clipped to the same value) is calculated once; labels
            stay the same.
    """

    crop: Crop = "none"
    margin_mm: float = 25.0
    least_ml: float = 100.0
    skip_air: bool = False

    def __post_init__(self) -> None:
        if not (self.margin_mm >= 0 and self.least_ml >= 0):
            raise ValueError("margin_mm and least_ml must not be negative")


@dataclass(frozen=True)
class Plan:
    """All of ``plan.json``.

    Attributes:
        labels: organ names; the organ at index i has label i + 1, background is 0.
        orientation: ``LPS`` turns the scan before the network and back after; ``as_stored`` does neither.
        mode: restoration unless the command line says otherwise.
        transpose_forward: order in which the network sees the axes that ``orientation`` gives (nnU-Net's name).
        crop_to_nonzero: only the box of voxels other than 0 HU is segmented (nnU-Net).
        warn_below_agreement: ``--uncertainty`` names organs whose DSC with the twin's is lower in a warning.
    """

    schema_version: int
    name: str
    labels: tuple[str, ...]
    orientation: Literal["LPS", "as_stored"]
    mode: Mode
    network: NetworkPlan
    intensity: IntensityPlan
    spacing: SpacingPlan
    interpolation: InterpolationPlan
    sliding_window: SlidingWindowPlan
    postprocessing: PostprocessingPlan
    transpose_forward: Shape = (0, 1, 2)
    crop_to_nonzero: bool = False
    shortcuts: ShortcutPlan = field(default_factory=ShortcutPlan)
    warn_below_agreement: float = 0.7

    def __post_init__(self) -> None:
        if self.shortcuts.crop != "none" and not self.can_be_cropped:
            raise ValueError("shortcuts.crop goes with neither crop_to_nonzero nor transpose_forward")
        if sorted(self.transpose_forward) != [0, 1, 2]:
            raise ValueError(f"transpose_forward is {list(self.transpose_forward)}; expected an order of 0, 1, 2")
        if self.schema_version != SCHEMA_VERSION:
            raise ValueError(f"schema_version is {self.schema_version}; this version reads {SCHEMA_VERSION}")
        if not 1 <= len(self.labels) <= 254 or len(set(self.labels)) != len(self.labels):
            raise ValueError("labels must be 1 to 254 different names")
        if not 0 <= self.warn_below_agreement <= 1:
            raise ValueError(f"warn_below_agreement is {self.warn_below_agreement}; expected a DSC, 0 to 1")
        unknown = {*self.postprocessing.largest_component, *self.postprocessing.minimum_volume_ml} - set(self.labels)
        if unknown:
            raise ValueError(f"postprocessing names organs that are not in labels: {', '.join(sorted(unknown))}")
        self._check_patch()

    def _check_patch(self) -> None:
        patch = self.sliding_window.patch_size
        if self.network.dimensions == 2 and patch[0] != 1:
            raise ValueError(f"a 2-D network needs patch_size [1, H, W], found {list(patch)}")
        for axis in range(self.network.dimensions):
            total = 1
            for stride in self.network.strides:
                total *= stride[axis]
            length = patch[3 - self.network.dimensions + axis]
            if length % total:
                raise ValueError(f"patch_size {list(patch)}: {length} is not a multiple of the total stride {total}")

    @property
    def can_be_cropped(self) -> bool:
        """Whether ``shortcuts.crop`` can bound what is segmented: there is no other crop and no other order of axes."""
        return not self.crop_to_nonzero and self.transpose_forward == (0, 1, 2)

    @property
    def classes(self) -> int:
        """Channels of the network's output: the organs and background."""
        return len(self.labels) + 1


def parse_plan(text: str, source: str) -> Plan:
    """The plan in a JSON text.

    Args:
        text: contents of ``plan.json``.
        source: the file's name, for messages.

    Raises:
        BundleError: not JSON, an unknown or missing key, a wrong type or an impossible value.
    """
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise BundleError(f"{source}: not JSON ({error}); expected the plan of a bundle") from error
    try:
        plan = build_value(Plan, data, "plan")
    except ValueError as error:
        raise BundleError(f"{source}: {error}") from error
    assert isinstance(plan, Plan)
    return plan
