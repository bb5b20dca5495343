"""Which random changes a training patch undergoes: numbers only; ``transforms.py`` makes the changes."""

from dataclasses import asdict, dataclass, replace

from app.volume import Vector

Range = tuple[float, float]

OFF = 0.0


@dataclass(frozen=True)
class AugmentationPlan:
    """Random changes of a training patch; ``*_probability`` is per patch, a range is drawn from uniformly.

    A range of factors or exponents with 1 inside is drawn from below and above 1 equally often, as in v1.

    The first block is nnU-Net v1's and its values are the defaults; the second is for small data and off by
    default. Mirroring is not here: its axes are ``app.sliding_window.mirror_axes``, since inference may mirror
    only what training mirrored. What needs the label map (``organ_hu``, ``contrast_phase``) leaves unlabelled
    scans alone.

    Attributes:
        rotation_degrees_zyx: largest angle about each axis; a 2-D network turns about z only.
        scaling: size of what is seen as a part of its true size is 1 / factor: 1.4 shrinks organs, 0.7 grows them.
        scaling_per_axis_probability: of a scaled patch, that each axis draws its own factor.
        elastic_scale: sigma of the smoothing of the displacements, as a part of the patch.
        elastic_magnitude: largest displacement as a part of that sigma; up to 0.2 nothing folds.
        in_plane_only: rotate, scale and deform within slices (nnU-Net's dummy 2-D, for patches flat along z).
        noise_variance: v1's name; the standard deviation of white noise, in units of the normalised image.
        blur_sigma: voxels.
        brightness, contrast: factors, about 0 and about the mean of the patch.
        low_resolution: zoom factor of the low resolution that is simulated.
        gamma: exponent; inverted: of the negated image.
        organ_hu_shift: largest shift of one organ's mean, HU; every organ draws its own.
        hu_shift: largest shift of the whole scan, HU.
        slice_thickness_mm: thickness of the slices that are simulated along z.
        kernel_sharpening: weight of the high in-plane frequencies that are added (positive, a sharp kernel) or
            taken (negative, a soft one).
        dose_noise_hu: standard deviation of the noise, with the grain of CT, that a lower dose adds. A quarter
            of the dose doubles the noise: 12 HU become 24, for which sqrt(24^2 - 12^2) = 21 HU are added.
        field_of_view_part: part of the patch that a cut field of view leaves along one axis; the rest becomes air,
            above and below what inference surrounds a scan with (``SlidingWindowPlan.padding``).
        clip: keep within the plan's intensity range, as every image at inference is. nnU-Net does not.
    """

    rotation_probability: float = 0.2
    rotation_degrees_zyx: Vector = (30.0, 30.0, 30.0)
    scaling_probability: float = 0.2
    scaling: Range = (0.7, 1.4)
    scaling_per_axis_probability: float = OFF
    elastic_probability: float = OFF
    elastic_scale: Range = (0.1, 0.25)
    elastic_magnitude: Range = (0.0, 0.2)
    in_plane_only: bool = False
    noise_probability: float = 0.1
    noise_variance: Range = (0.0, 0.1)
    blur_probability: float = 0.1  # v1: 0.2 a sample, and then 0.5 a channel
    blur_sigma: Range = (0.5, 1.0)
    brightness_probability: float = 0.15
    brightness: Range = (0.75, 1.25)
    contrast_probability: float = 0.15
    contrast: Range = (0.75, 1.25)
    low_resolution_probability: float = 0.125  # v1: 0.25 a sample, and then 0.5 a channel
    low_resolution: Range = (0.5, 1.0)
    gamma_probability: float = 0.3
    gamma_inverted_probability: float = 0.1
    gamma: Range = (0.7, 1.5)

    organ_hu_probability: float = OFF
    organ_hu_shift: float = 40.0
    contrast_phase_probability: float = OFF
    hu_shift_probability: float = OFF
    hu_shift: float = 40.0
    slice_thickness_probability: float = OFF
    slice_thickness_mm: Range = (1.0, 7.5)
    kernel_probability: float = OFF
    kernel_sharpening: Range = (-0.9, 1.2)
    dose_probability: float = OFF
    dose_noise_hu: Range = (0.0, 35.0)
    field_of_view_probability: float = OFF
    field_of_view_part: Range = (0.3, 0.9)
    clip: bool = False

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name.endswith("_probability") and not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; expected a probability")
            if isinstance(value, tuple) and len(value) == 2 and value[0] > value[1]:
                raise ValueError(f"{name} is {list(value)}; expected [low, high]")
        if min(*self.scaling, *self.low_resolution, *self.slice_thickness_mm, *self.elastic_scale) <= 0:
            raise ValueError("scaling, low_resolution, slice_thickness_mm and elastic_scale must be positive")
        if not 0 < self.field_of_view_part[0] <= self.field_of_view_part[1] <= 1:
            raise ValueError("field_of_view_part must lie in (0, 1]")


# Published nnU-Net v1 values (nnUNetTrainerV2, moreDA). Images are interpolated linearly where v1 takes cubic splines.
NNUNET_3D = AugmentationPlan()
NNUNET_2D = replace(NNUNET_3D, rotation_degrees_zyx=(180.0, 0.0, 0.0))

SMALL_DATA = AugmentationPlan(
    rotation_probability=0.5,
    rotation_degrees_zyx=(20.0, 12.0, 12.0),  # patients turn on the table and tilt little
    scaling_probability=0.6,
    scaling_per_axis_probability=0.7,
    elastic_probability=0.1,
    noise_probability=OFF,  # dose noise and kernels are the CT's own noise and blur
    blur_probability=OFF,
    brightness_probability=OFF,
    contrast_probability=0.15,
    contrast=(0.8, 1.2),
    low_resolution_probability=0.2,
    gamma_probability=0.15,
    gamma_inverted_probability=OFF,
    gamma=(0.8, 1.25),
    # Both draw the organs' edges anew, which shows a network where the labels end: half of the patches stay without.
    organ_hu_probability=0.3,
    organ_hu_shift=30.0,
    contrast_phase_probability=0.3,
    hu_shift_probability=0.3,
    slice_thickness_probability=0.4,
    kernel_probability=0.4,
    dose_probability=0.4,
    field_of_view_probability=0.15,
    clip=True,
)

WITHOUT = AugmentationPlan(
    rotation_probability=OFF,
    scaling_probability=OFF,
    noise_probability=OFF,
    blur_probability=OFF,
    brightness_probability=OFF,
    contrast_probability=OFF,
    low_resolution_probability=OFF,
    gamma_probability=OFF,
    gamma_inverted_probability=OFF,
)
