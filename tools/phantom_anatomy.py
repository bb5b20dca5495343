"""The average patient of the phantom: where 13 abdominal organs lie, how large and how dense they are.

Places are millimetres (z, y, x) = (superior, posterior, left) from a point inside the body at the height of the
first lumbar vertebra, as in ``app.volume.Geometry``. Sizes follow what an adult's CT shows, rounded.
"""

from dataclasses import dataclass

from app.volume import Vector

AIR_HU, LUNG_HU, FAT_HU, BOWEL_HU, BONE_HU = -1000.0, -850.0, -105.0, 25.0, 280.0
MUSCLE_HU, HEART_HU = (52.0, 58.0, 64.0), (42.0, 220.0, 140.0)  # by phase

BODY_RADII_YX_MM = (116.0, 164.0)
FAT_RIM_MM, MUSCLE_RIM_MM = 13.0, 11.0


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid along the patient's axes."""

    centre: Vector
    radii: Vector


@dataclass(frozen=True)
class Tube:
    """Round segments from point to point, with a radius at each."""

    points: tuple[Vector, ...]
    radii: tuple[float, ...]


Parts = tuple[Ellipsoid | Tube, ...]


@dataclass(frozen=True)
class Organ:
    """An organ as a union of parts.

    Attributes:
        name: as in the bundle's plan.
        hu: in the native, arterial and portal venous phase.
        parts: what it is made of.
    """

    name: str
    hu: tuple[float, float, float]
    parts: Parts


# FLARE's order: the organ at index i has label i + 1.
ORGANS = (
    Organ(
        "liver",
        (56, 72, 112),
        (Ellipsoid((42, -8, -79), (68, 70, 64)), Ellipsoid((56, -42, -8), (34, 38, 62))),
    ),
    Organ("right kidney", (32, 165, 175), (Ellipsoid((-38, 44, -66), (52, 25, 27)),)),
    Organ("spleen", (48, 125, 118), (Ellipsoid((50, 42, 104), (46, 40, 25)),)),
    Organ(
        "pancreas",
        (40, 105, 90),
        (Tube(((-28, -14, -34), (-10, -20, -20), (0, -22, 8), (12, -2, 40), (24, 14, 70)), (14, 12, 9, 9, 8)),),
    ),
    Organ("aorta", (42, 310, 150), (Tube(((400, 30, 16), (100, 34, 14), (0, 28, 8), (-400, 26, 4)), (13, 12, 11, 9)),)),
    Organ(
        "inferior vena cava",
        (42, 85, 135),
        (Tube(((112, 0, -26), (60, 12, -27), (0, 22, -24), (-400, 28, -20)), (13, 12, 11, 10)),),
    ),
    Organ(
        "right adrenal gland",
        (28, 70, 62),
        (
            Tube(((36, 30, -24), (24, 38, -27), (14, 44, -36)), (5, 4, 4)),
            Tube(((24, 38, -27), (14, 48, -27)), (4, 4)),
        ),
    ),
    Organ(
        "left adrenal gland",
        (28, 70, 62),
        (Tube(((34, 20, 36), (22, 28, 39), (10, 36, 46)), (5, 4, 4)), Tube(((22, 28, 39), (10, 38, 34)), (4, 4))),
    ),
    Organ("gallbladder", (10, 10, 12), (Tube(((0, -46, -52), (-26, -58, -58)), (12, 17)),)),
    Organ("esophagus", (38, 52, 58), (Tube(((400, 22, 2), (110, 16, 10), (78, 0, 24), (70, -8, 38)), (9, 9, 10, 9)),)),
    Organ(
        "stomach",
        (32, 38, 42),
        (Tube(((74, 4, 58), (44, -26, 66), (8, -56, 50), (-12, -58, 14), (-6, -50, -18)), (37, 34, 26, 20, 13)),),
    ),
    Organ(
        "duodenum",
        (35, 62, 66),
        (
            Tube(
                ((-6, -48, -24), (-14, -32, -50), (-44, -8, -54), (-62, 4, -34), (-60, 0, 4), (-40, -12, 30)),
                (12, 12, 13, 12, 11, 10),
            ),
        ),
    ),
    Organ("left kidney", (32, 165, 175), (Ellipsoid((-26, 46, 66), (54, 25, 27)),)),
)

LUNGS: Parts = (Ellipsoid((168, 4, -76), (98, 84, 62)), Ellipsoid((172, 4, 78), (98, 84, 60)))
HEART: Parts = (Ellipsoid((150, -38, 22), (44, 42, 52)),)
SPINE: Parts = (Tube(((400, 66, 0), (-400, 62, 0)), (20, 22)), Tube(((400, 96, 0), (-400, 94, 0)), (9, 9)))
