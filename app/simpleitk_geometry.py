"""Where the grid of SimpleITK's image lies: its world is (left, posterior, superior), the app's the same reversed."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from app.errors import CaseError
from app.orientation import as_matrix, as_vector
from app.volume import Geometry, Shape, Vector

_LEAST_VOLUME = 1e-6  # that the unit vectors of three axes span; less, and two are parallel but for rounding


def geometry_from_lps(
    shape_zyx: Shape, spacing_xyz: npt.ArrayLike, direction_xyz: npt.ArrayLike, origin_xyz: Vector, path: Path
) -> Geometry:
    """The geometry of SimpleITK's image, with the length of an axis in the spacing alone.

    A MetaImage's ``TransformMatrix`` comes through as it is stored: 1 0 0 0 2 0 0 0 3 with spacing 1 1 1 is a grid of
    1 x 2 x 3 mm.

    Args:
        shape_zyx: voxels along each array axis.
        spacing_xyz: multiplies the columns of ``direction_xyz``, 3x3, to the edges of a voxel in mm.
        direction_xyz: see ``spacing_xyz``.
        origin_xyz: mm.
        path: for the message.

    Raises:
        CaseError: the axes are not independent.
    """
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        edges = (np.asarray(direction_xyz, dtype=np.float64).reshape(3, 3) * np.asarray(spacing_xyz))[::-1, ::-1]
        spacing = np.linalg.norm(edges, axis=0)
        direction = edges / spacing
        spanned = abs(np.linalg.det(direction))
    if not spanned >= _LEAST_VOLUME:  # or NaN
        raise CaseError(
            f"{path}: its axes {edges.T[::-1, ::-1].tolist()} mm are not independent; expected three that span a "
            "voxel. Repair the header"
        )
    return Geometry(
        shape_zyx=shape_zyx,
        spacing_zyx_mm=as_vector(spacing),
        direction=as_matrix(direction),
        origin_zyx_mm=as_vector(origin_xyz[::-1]),
    )
