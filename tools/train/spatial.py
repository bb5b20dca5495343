"""Rotation, scaling and elastic deformation of a patch, sampled from no more of the scan than they look at.

batchgeneratorsv2 (nnU-Net's library) draws and samples; here is how much to read, which it leaves to its user.
"""

from collections.abc import Callable, Sequence
from math import ceil
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.intensity.contrast import BGContrast  # type: ignore[import-untyped]
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform  # type: ignore[import-untyped]
from torch import Tensor

from app.volume import Float32Array, LabelArray, Shape
from tools.train.augmentation import AugmentationPlan, Range

# (start, shape), both (z, y, x) -> image and label (None: unlabelled) there, padded outside the scan.
ReadBox = Callable[[Shape, Shape], tuple[Float32Array, LabelArray | None]]


class SpatialSampler:
    """Draws a spatial transform, reads its box, samples image (linear) and label (nearest neighbour) once.

    Args:
        plan: probabilities and ranges.
        patch_size: voxels (z, y, x).
        in_plane: transform within slices: those of a 2-D network, or nnU-Net's dummy 2-D.
    """

    def __init__(self, plan: AugmentationPlan, patch_size: Shape, in_plane: bool) -> None:
        self._patch_size, self._in_plane = patch_size, in_plane
        self._sides: tuple[int, ...] = patch_size[1:] if in_plane else patch_size
        self._transform = _transform(plan, self._sides)
        self._like = torch.empty((1, *self._sides), device="meta")  # the library asks it for its shape only

    def __call__(self, read: ReadBox, start: Shape) -> tuple[Tensor, Tensor | None]:
        """(float32 image, uint8 label or None), both (z, y, x) of the patch size.

        Draws from NumPy's and PyTorch's global generators, as the library does.

        Args:
            read: gives boxes of the scan.
            start: first voxel of the patch before it is turned and scaled about its centre; may be negative.
        """
        drawn = self._transform.get_parameters(image=self._like)
        margin = box_margin(drawn["affine"], drawn["elastic_offsets"], self._sides)
        if drawn["grid"] is not None:
            # In the grid, x first, 1 is half a patch from the centre; it has to be half a box.
            parts = [side / (side + 2 * m) for side, m in zip(self._sides, margin, strict=True)]
            drawn["grid"] *= torch.tensor(parts[::-1])
        z, y, x = (0, *margin) if self._in_plane else margin
        depth, height, width = self._patch_size
        image, label = read((start[0] - z, start[1] - y, start[2] - x), (depth + 2 * z, height + 2 * y, width + 2 * x))
        data = {
            "image": self._with_channels(torch.from_numpy(image)),
            "segmentation": None if label is None else self._with_channels(torch.from_numpy(label)),
        }
        data = self._transform.apply(data, **drawn)
        return self._without_channels(data["image"]), self._without_channels(data["segmentation"])

    def _with_channels(self, values: Tensor) -> Tensor:
        """Slices are the channels of a transform in plane; else there is one channel."""
        return values if self._in_plane else values[None]

    def _without_channels(self, values: Any) -> Any:
        return values if self._in_plane or values is None else values[0]


def box_margin(
    affine: np.typing.NDArray[np.float64] | None, offsets: Tensor | None, sides: Sequence[int]
) -> tuple[int, ...]:
    """Voxels to read beyond each face of the patch (negative: less than the patch is looked at).

    A voxel at x from the centre looks at ``affine @ (x + offset - mean offset)``. A patch of 64 scaled by 1.4 looks
    31.5 * 1.4 = 44.1 voxels from the centre, the patch itself reaches 31.5: the margin is 13.
    """
    if affine is None and offsets is None:
        return (0,) * len(sides)
    reach = (np.array(sides) - 1) / 2
    if offsets is not None:
        flat = offsets.reshape(-1, len(sides))
        reach = reach + (flat.abs().amax(dim=0) + flat.mean(dim=0).abs()).numpy()
    if affine is not None:
        reach = np.abs(affine) @ reach
    return tuple(ceil(far - (side - 1) / 2 - 1e-6) for far, side in zip(reach.tolist(), sides, strict=True))


def factor(bounds: Range) -> Any:
    """How the library draws a factor: v1's way, below and above 1 equally often; if all lies on one side, uniformly.

    Left alone, it would draw half of [0.5, 0.8] from 0.8 to 1.
    """
    return BGContrast(bounds) if bounds[1] >= 1 else bounds


def _transform(plan: AugmentationPlan, sides: tuple[int, ...]) -> Any:
    """The library's transform. What is drawn inside it has to come from the global generator, as its own draws do."""

    def angle(dim: int, **_: Any) -> float:
        """About z, y, x for dim 0, 1, 2; in plane about z."""
        limit = np.deg2rad(plan.rotation_degrees_zyx[dim if len(sides) == 3 else 0])
        return float(np.random.uniform(-limit, limit))  # noqa: NPY002

    def displacement(dim: int, deformation_scale: float, **_: Any) -> float:
        part = np.random.uniform(*plan.elastic_magnitude)  # noqa: NPY002
        return float(part * deformation_scale * sides[dim])

    return SpatialTransform(
        sides,
        patch_center_dist_from_border=0,
        random_crop=False,
        p_elastic_deform=plan.elastic_probability,
        elastic_deform_scale=plan.elastic_scale,
        elastic_deform_magnitude=displacement,
        p_rotation=plan.rotation_probability,
        rotation=angle,
        p_scaling=plan.scaling_probability,
        scaling=factor(plan.scaling),
        p_synchronize_scaling_across_axes=1 - plan.scaling_per_axis_probability,
        mode_seg="nearest",
        border_mode_seg="border",  # never met: the box holds all that is looked at, padding included
        padding_mode_image="border",
    )
