"""Three orthogonal planes through a scan with its organs in colour, as a radiologist's workstation shows them.

Axial at the top left, coronal below it and sagittal beside that, all at one scale, so that left-right runs
on from axial to coronal and head-feet from coronal to sagittal; the legend with the volumes fills the corner.
"""

from pathlib import Path

from PIL import Image

from app.bundle import load_bundle
from app.postprocessing import organ_volumes_ml
from app.volume import Shape, Vector
from tools.figures.labelled_scan import Box, LabelledScan, choose_planes, read_labelled_scan, visible_box
from tools.figures.sheet import LEGEND_WIDTH_PX, Panel, Sheet, legend_height_px, write_picture
from tools.figures.slices import WINDOW_LEVEL_HU, WINDOW_WIDTH_HU, organ_tags, render_slice

DEFAULT_BUNDLE = Path(__file__).resolve().parents[2] / "weights" / "default"

_LARGEST_PX = (1500, 1900)  # width, height; the picture stays within, its form follows from the patient
_MARGIN_PX, _GAP_PX, _HEADER_PX, _CAPTION_PX = 36, 24, 100, 32
_SCALE_BAR_MM = 50


def write_planes(
    scan_path: Path,
    label_path: Path,
    out_png: Path,
    title: str,
    labels: tuple[str, ...] | None = None,
    palette: bool = False,
) -> None:
    """Writes the picture of a scan and its label map; equal inputs give equal bytes.

    Args:
        scan_path: whatever the app reads.
        label_path: its label map, on the same grid.
        out_png: the picture.
        title: its headline.
        labels: organ names, label 1 first; those of the default bundle if left out.
        palette: 256 colours, for a smaller file.

    Raises:
        AppError: a file cannot be read or written, or the two do not belong together.
    """
    names = labels or load_bundle(DEFAULT_BUNDLE).plan.labels
    write_picture(draw_planes(read_labelled_scan(scan_path, label_path, names), title), out_png, palette)


def draw_planes(scan: LabelledScan, title: str) -> Image.Image:
    """The picture as RGB pixels."""
    panels, px_per_mm = lay_out(scan)
    axial, _, sagittal = panels
    right = max(sagittal.left_px + sagittal.width_px, sagittal.left_px + LEGEND_WIDTH_PX)
    sheet = Sheet(right + _MARGIN_PX, sagittal.top_px + sagittal.height_px + _MARGIN_PX)
    geometry = scan.geometry
    shape = " × ".join(map(str, geometry.shape_zyx[::-1]))
    spacing = " × ".join(f"{length:.3g}" for length in geometry.spacing_zyx_mm[::-1])
    window = f"window: level {WINDOW_LEVEL_HU:.0f} HU, width {WINDOW_WIDTH_HU:.0f} HU"
    sheet.header(_MARGIN_PX, right, title, f"CT, {shape} voxels of {spacing} mm", window)
    for panel in panels:
        sheet.panel(panel)
    sheet.scale_bar(axial, _SCALE_BAR_MM * px_per_mm, f"{_SCALE_BAR_MM} mm")
    volumes_ml = organ_volumes_ml(scan.label_map, scan.labels, geometry.voxel_volume_ml)
    remark = "R: the patient's right. Numbers: values in the label map."
    sheet.legend(sagittal.left_px, axial.top_px, volumes_ml, remark)
    return sheet.pixels()


def lay_out(scan: LabelledScan) -> tuple[tuple[Panel, Panel, Panel], float]:
    """(axial, coronal and sagittal panel, rendered and in place; their scale in pixels per mm)."""
    box, planes = visible_box(scan), choose_planes(scan)
    extent_mm = _extent_mm(scan.geometry.spacing_zyx_mm, box)
    legend_px = legend_height_px(len(scan.labels))
    scale = _px_per_mm(extent_mm, legend_px)
    height, depth, width = (max(1, round(mm * scale)) for mm in extent_mm)
    left, top = _MARGIN_PX, _HEADER_PX + _CAPTION_PX
    right, below = left + width + _GAP_PX, top + max(depth, legend_px) + _GAP_PX + _CAPTION_PX
    # Where the planes lie in the box, from its first to its last face; rows of z run from the head down.
    cut_z, cut_y, cut_x = (
        (at - part.start + 0.5) / (part.stop - part.start) for at, part in zip(planes, box, strict=True)
    )
    marks = (("R", "L", "A", "P"), ("R", "L", "H", "F"), ("A", "P", "H", "F"))
    places = ((left, top), (left, below), (right, below))
    sizes_px = ((depth, width), (height, width), (height, depth))
    crossings = ((cut_x, cut_y), (cut_x, 1 - cut_z), (cut_y, 1 - cut_z))
    axial, coronal, sagittal = (
        _panel(scan, box, planes, axis, sizes_px[axis], places[axis], marks[axis], crossings[axis]) for axis in range(3)
    )
    return (axial, coronal, sagittal), scale


def _panel(
    scan: LabelledScan,
    box: Box,
    planes: Shape,
    axis: int,
    size_px: tuple[int, int],
    place_px: tuple[int, int],
    marks: tuple[str, str, str, str],
    crossings: tuple[float, float],
) -> Panel:
    """The plane across one axis; all but the axial one are turned head up."""
    cut = tuple(planes[axis] if i == axis else part for i, part in enumerate(box))
    hu, label_map = scan.hu(cut), scan.label_map[cut]
    if axis != 0:
        hu, label_map = hu[::-1], label_map[::-1]
    return Panel(
        name=("Axial", "Coronal", "Sagittal")[axis],
        position=f"slice {planes[axis] + 1} of {scan.label_map.shape[axis]}",
        image=render_slice(hu, label_map, size_px),
        left_px=place_px[0],
        top_px=place_px[1],
        marks=marks,
        crossings=crossings,
        tags=organ_tags(label_map, size_px),
    )


def _extent_mm(spacing_zyx_mm: Vector, box: Box) -> Vector:
    z, y, x = ((part.stop - part.start) * mm for part, mm in zip(box, spacing_zyx_mm, strict=True))
    return (z, y, x)


def _px_per_mm(extent_zyx_mm: Vector, legend_px: int) -> float:
    """The largest scale at which panels and legend fit side by side and one below the other."""
    height, depth, width = extent_zyx_mm
    across = _LARGEST_PX[0] - 2 * _MARGIN_PX - _GAP_PX
    down = _LARGEST_PX[1] - _HEADER_PX - 2 * _CAPTION_PX - _GAP_PX - _MARGIN_PX
    return min(
        across / (width + depth),
        (across - LEGEND_WIDTH_PX) / width,
        down / (height + depth),
        (down - legend_px) / height,
    )
