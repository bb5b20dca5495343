"""A training patch from a scan: batchgeneratorsv2's transforms, which are nnU-Net's own, with CT effects between."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from batchgeneratorsv2.transforms.intensity.brightness import (  # type: ignore[import-untyped]
    MultiplicativeBrightnessTransform,
)
from batchgeneratorsv2.transforms.intensity.contrast import ContrastTransform  # type: ignore[import-untyped]
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform  # type: ignore[import-untyped]
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform  # type: ignore[import-untyped]
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform  # type: ignore[import-untyped]
from batchgeneratorsv2.transforms.spatial.low_resolution import (  # type: ignore[import-untyped]
    SimulateLowResolutionTransform,
)
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform  # type: ignore[import-untyped]
from batchgeneratorsv2.transforms.utils.random import RandomTransform  # type: ignore[import-untyped]
from torch import Tensor

from app.plan import Plan
from app.volume import Shape
from tools.train import ct_effects
from tools.train.augmentation import AugmentationPlan
from tools.train.spatial import ReadBox, SpatialSampler, factor


class Augmenter:
    """Makes augmented patches by one plan.

    Args:
        plan: the changes.
        app: intensities, organs and mirror axes.
        patch_size: voxels (z, y, x); z = 1 for a 2-D network.
    """

    def __init__(self, plan: AugmentationPlan, app: Plan, patch_size: Shape) -> None:
        self._plan, self._app, self._patch_size = plan, app, patch_size
        self._flat = app.network.dimensions == 2
        axes = app.sliding_window.mirror_axes
        if self._flat and (patch_size[0] != 1 or 0 in axes):
            raise ValueError(
                f"a 2-D network trains on (1, y, x), mirrored along y and x; found {patch_size} and {axes}"
            )
        self._sample = SpatialSampler(plan, patch_size, in_plane=self._flat or plan.in_plane_only)
        self._intensity = _intensity_transforms(plan)
        self._mirror = MirrorTransform(tuple(axis - 1 for axis in axes) if self._flat else axes)
        intensity = app.intensity
        self._low, self._high = (intensity.normalised(hu) for hu in intensity.clip_hu)
        self._per_hu = 1 / intensity.divide_hu
        self._air = intensity.normalised(app.sliding_window.pad_hu)
        self._repeats_edges = app.sliding_window.padding == "edge"

    def __call__(
        self, read: ReadBox, start: Shape, spacing_z_mm: float, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor | None]:
        """(float32 image, uint8 label or None), both (z, y, x) of the patch size.

        Args:
            read: gives boxes of the scan.
            start: first voxel of the patch before it is turned and scaled about its centre; may be negative.
            spacing_z_mm: of the scan's grid.
            rng: where all randomness comes from.
        """
        with _seeded_library(rng):
            image, label = self._sample(read, start)
            image = self._change_ct(image, label, spacing_z_mm, rng)
            data = {"image": self._with_channel(image)}
            for transform in self._intensity:
                data = transform(**data)
            image = self._without_channel(data["image"])
            if self._plan.clip:
                image.clamp_(self._low, self._high)
            if rng.random() < self._plan.field_of_view_probability:
                self._cut_field_of_view(image, label, rng)
            data = self._mirror(image=self._with_channel(image), segmentation=self._with_channel(label))
        image, label = self._without_channel(data["image"]), self._without_channel(data["segmentation"])
        return image.contiguous(), None if label is None else label.contiguous()

    def _change_ct(self, image: Tensor, label: Tensor | None, spacing_z_mm: float, rng: np.random.Generator) -> Tensor:
        """What injector, reconstruction, scanner, dose and calibration might have done otherwise, in this order."""
        plan, low, high, per_hu = self._plan, self._low, self._high, self._per_hu
        phase, organ_hu, kernel, thickness, dose, shift = rng.random(6) < (
            plan.contrast_phase_probability, plan.organ_hu_probability, plan.kernel_probability,
            plan.slice_thickness_probability, plan.dose_probability, plan.hu_shift_probability,
        )  # fmt: skip
        if label is not None and (phase or organ_hu):
            shifts = self._draw_organ_shifts(image, label, bool(phase), bool(organ_hu), rng)
            image = ct_effects.shift_organs(image, label, shifts, low, per_hu)
        if kernel:
            image = ct_effects.change_kernel(image, rng.uniform(*plan.kernel_sharpening))
        if thickness and not self._flat:
            image = self._thicken(image, spacing_z_mm, rng)
        if dose:
            sigma, grain = rng.uniform(*plan.dose_noise_hu) * per_hu, rng.uniform(0, 1)
            generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
            image = ct_effects.add_noise(image, sigma, grain, low, high, per_hu, generator)
        if shift:
            image = ct_effects.shift_all(image, rng.uniform(-1, 1) * plan.hu_shift * per_hu, low, high, per_hu)
        return image

    def _draw_organ_shifts(
        self, image: Tensor, label: Tensor, phase: bool, organ_hu: bool, rng: np.random.Generator
    ) -> npt.NDArray[np.float64]:
        """(classes,) shifts in the image's unit: to another contrast phase, then each organ for itself."""
        organs, classes, intensity = self._app.labels, self._app.classes, self._app.intensity
        shifts = np.zeros(classes)
        if phase:
            hu = ct_effects.phase_hu(organs, rng.uniform(0, ct_effects.PHASES - 1))
            hu += ct_effects.spread_hu(organs, rng)
            target = (np.clip(hu, *intensity.clip_hu) - intensity.subtract_hu) * self._per_hu
            means = ct_effects.tissue_means(image, label, classes, intensity.normalised(ct_effects.TISSUE_HU))
            shifts[1:] = np.nan_to_num(target - means[1:])
        if organ_hu:
            shifts[1:] += rng.uniform(-1, 1, len(organs)) * self._plan.organ_hu_shift * self._per_hu
        return shifts

    def _thicken(self, image: Tensor, spacing_mm: float, rng: np.random.Generator) -> Tensor:
        thickness = rng.uniform(*self._plan.slice_thickness_mm)
        increment = thickness * rng.uniform(0.6, 1.0)  # slices touch or overlap
        first = rng.uniform(0, increment)
        if thickness <= spacing_mm:  # finer than the grid: nothing to see
            return image
        matrix = ct_effects.slice_matrix(len(image), spacing_mm, thickness, increment, first)
        return ct_effects.thicken_slices(image, matrix)

    def _cut_field_of_view(self, image: Tensor, label: Tensor | None, rng: np.random.Generator) -> None:
        """Leaves, in place, mostly a slab along z, surrounded as inference surrounds it; else the patient leaves the
        field sideways or to front or back, where scanners write air."""
        kept = [slice(0, length) for length in self._patch_size]
        axis = int(rng.choice((1, 2))) if self._flat else int(rng.choice(3, p=(0.6, 0.15, 0.25)))
        length = self._patch_size[axis]
        thickness = max(1, round(rng.uniform(*self._plan.field_of_view_part) * length))
        start = int(rng.integers(0, length - thickness + 1))
        kept[axis] = slice(start, start + thickness)
        air = None if axis == 0 and self._repeats_edges else self._air
        ct_effects.fill_outside(image, label, (kept[0], kept[1], kept[2]), air)

    def _with_channel(self, values: Tensor | None) -> Tensor | None:
        """(z, y, x) as the library wants it: (1, z, y, x), or the one slice (1, y, x) of a 2-D network."""
        return values if self._flat or values is None else values[None]

    def _without_channel(self, values: Any) -> Any:
        return values if self._flat or values is None else values[0]


@contextmanager
def _seeded_library(rng: np.random.Generator) -> Iterator[None]:
    """Inside, NumPy's and PyTorch's global generators, which the library draws from, follow from ``rng``.

    Afterwards they are as they were.
    """
    generator = torch.default_generator  # the CPU's alone
    numpy_state, torch_state = np.random.get_state(), generator.get_state()  # noqa: NPY002
    np.random.seed(int(rng.integers(2**32)))  # noqa: NPY002
    generator.manual_seed(int(rng.integers(2**63)))
    try:
        yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        generator.set_state(torch_state)


def _intensity_transforms(plan: AugmentationPlan) -> list[Any]:
    """nnU-Net's, in its order; those that never happen are left out."""
    ignored = (0,) if plan.in_plane_only else None
    transforms = (
        (plan.noise_probability, GaussianNoiseTransform(plan.noise_variance)),
        (plan.blur_probability, GaussianBlurTransform(plan.blur_sigma)),
        (plan.brightness_probability, MultiplicativeBrightnessTransform(factor(plan.brightness), False)),
        (plan.contrast_probability, ContrastTransform(factor(plan.contrast), True, False)),
        (plan.low_resolution_probability, SimulateLowResolutionTransform(plan.low_resolution, False, True, ignored)),
        (plan.gamma_inverted_probability, GammaTransform(factor(plan.gamma), 1, False, 1, 1)),
        (plan.gamma_probability, GammaTransform(factor(plan.gamma), 0, False, 1, 1)),
    )
    return [RandomTransform(transform, probability) for probability, transform in transforms if probability > 0]
