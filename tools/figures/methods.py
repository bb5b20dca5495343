"""Methods side by side, as in the paper's Figure 5: a row for each case with scan, reference and every method's organs.

In the corner of a method's panel stands the mean DSC of the whole scan, not of the slice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path

import numpy as np
from PIL import Image

from app.errors import CaseError, UsageError
from app.volume import LabelArray
from tools.evaluate.cases import files_by_case
from tools.evaluate.flare import CORRECTED, score_case
from tools.figures.labelled_scan import Box, LabelledScan, choose_planes, read_labelled_scans, visible_box
from tools.figures.sheet import Panel, Sheet, key_height_px, write_picture
from tools.figures.slices import WINDOW_LEVEL_HU, WINDOW_WIDTH_HU, organ_tags, render_slice

_DICE_ALONE = replace(CORRECTED, no_nsd_below_dsc=inf)  # surfaces take a hundred times longer
_PANEL_PX, _LARGEST_WIDTH_PX, _LEAST_WIDTH_PX = 480, 2000, 1000
_MARGIN_PX, _GAP_PX, _HEADER_PX, _CAPTION_PX = 36, 16, 100, 32
_SCALE_BAR_MM, _NEAR_MM = 50, 20
_REMARK = "Numbers in corners: mean DSC of the whole scan over the organs that reference or method have."


@dataclass(frozen=True)
class CaseRow:
    """One case: the scan with its reference, then with each method's label map, near the slice that is shown.

    Attributes:
        case_id: its name.
        reference: the scan and the reference.
        methods: the same scan and what each method made of it, by the method's name.
        dsc: of the whole scan, by the method's name; None where neither has an organ.
        slice_z: which axial slice is shown, counted on the patient's axes.
        first_z: where the part that is kept begins.
        slices: of the whole scan.
    """

    case_id: str
    reference: LabelledScan
    methods: Mapping[str, LabelledScan]
    dsc: Mapping[str, float | None]
    slice_z: int
    first_z: int
    slices: int


def read_case_rows(
    scans: Path,
    references: Path,
    methods: Mapping[str, Path],
    cases: Sequence[str] = (),
    slices: Mapping[str, int] | None = None,
) -> list[CaseRow]:
    """The cases of several folders, files belonging together by name as in ``tools.evaluate``.

    Args:
        scans: folder with ``X_0000.nii.gz`` or whatever else the app reads, files only.
        references: folder with ``X.nii.gz``.
        methods: folder of each method's label maps, by its name.
        cases: which, in this order; empty: all that have a reference.
        slices: number of the slice to show, from the feet, the lowest is 1; left out: the one with most organs.

    Raises:
        AppError: a folder, file or slice is missing, or files do not belong together.
    """
    folders = {"--scans": scans, "--references": references} | {f"--method {n}": path for n, path in methods.items()}
    files = {option: files_by_case(folder, option, "volume") for option, folder in folders.items()}
    chosen = list(cases) or sorted(files["--references"])
    if unknown := sorted(set(slices or {}) - set(chosen)):
        raise UsageError(f"--slice {unknown[0]}: not among the cases {', '.join(chosen)}")
    return [_read_row(case_id, files, tuple(methods), (slices or {}).get(case_id)) for case_id in chosen]


def draw_methods(rows: Sequence[CaseRow], title: str) -> Image.Image:
    """The picture as RGB pixels; the rows' methods must be the same."""
    names = tuple(rows[0].methods)
    columns = 2 + len(names)
    room = _LARGEST_WIDTH_PX - 2 * _MARGIN_PX - (columns - 1) * _GAP_PX
    width = min(_PANEL_PX, room // columns)
    right = max(_MARGIN_PX + columns * width + (columns - 1) * _GAP_PX, _LEAST_WIDTH_PX - _MARGIN_PX)
    boxes = [visible_box(row.reference) for row in rows]
    scales = [_px_per_mm(row, box, width) for row, box in zip(rows, boxes, strict=True)]
    panels, top = [], _HEADER_PX
    for row, box, scale in zip(rows, boxes, scales, strict=True):
        panels.append(_panels(row, box, width, scale, top + _CAPTION_PX))
        top = panels[-1][0].top_px + panels[-1][0].height_px + _GAP_PX
    organs = _shown_organs(rows)
    sheet = Sheet(right + _MARGIN_PX, top + key_height_px(len(organs), right - _MARGIN_PX) + _MARGIN_PX // 2)
    window = f"window: level {WINDOW_LEVEL_HU:.0f} HU, width {WINDOW_WIDTH_HU:.0f} HU"
    sheet.header(_MARGIN_PX, right, title, "Axial slices seen from the feet. R: the patient's right.", window)
    for found, scale in zip(panels, scales, strict=True):
        for panel in found:
            sheet.panel(panel)
        sheet.scale_bar(found[0], _SCALE_BAR_MM * scale, f"{_SCALE_BAR_MM} mm")
    sheet.key(_MARGIN_PX, top, right, organs, _REMARK)
    return sheet.pixels()


def write_methods(rows: Sequence[CaseRow], out_png: Path, title: str, palette: bool = False) -> None:
    """Writes the picture; equal inputs give equal bytes.

    Raises:
        FolderError: it cannot be written.
    """
    write_picture(draw_methods(rows, title), out_png, palette)


def mean_dsc(prediction: LabelArray, reference: LabelArray) -> float | None:
    """Over the organs that either has, in the slices that ``corrected`` scores; None if there is none.

    Liver 0.9, a spleen that the prediction lacks, nothing else: 0.45.
    """
    scores = score_case(prediction, reference, (1.0, 1.0, 1.0), _DICE_ALONE).values()
    there = [score.dsc for score in scores if score.dsc is not None]
    return sum(there) / len(there) if there else None


def _read_row(
    case_id: str, files: Mapping[str, Mapping[str, list[Path]]], methods: Sequence[str], number: int | None
) -> CaseRow:
    paths = []
    for option, by_case in files.items():
        found = by_case.get(case_id, [])
        if len(found) != 1:
            what = ", ".join(map(str, found)) or f"nothing among {', '.join(sorted(by_case))}"
            raise CaseError(f"{option}: {what} for case {case_id}; expected one file of this name")
        paths.append(found[0])
    labels = tuple(organ.name for organ in CORRECTED.organs)
    reference, *others = read_labelled_scans(paths[0], paths[1:], labels)
    count = reference.label_map.shape[0]
    if number is not None and not 1 <= number <= count:
        raise UsageError(f"--slice {case_id}={number}: {paths[0]} has slices 1 to {count}")
    slice_z = choose_planes(reference)[0] if number is None else number - 1
    near = round(_NEAR_MM / reference.geometry.spacing_zyx_mm[0])
    first, stop = max(0, slice_z - near), min(count, slice_z + near + 1)
    by_method = dict(zip(methods, others, strict=True))
    return CaseRow(
        case_id=case_id,
        reference=reference.slab(first, stop),
        methods={name: found.slab(first, stop) for name, found in by_method.items()},
        dsc={name: mean_dsc(found.label_map, reference.label_map) for name, found in by_method.items()},
        slice_z=slice_z,
        first_z=first,
        slices=count,
    )


def _panels(row: CaseRow, box: Box, width_px: int, px_per_mm: float, top_px: int) -> list[Panel]:
    """Scan, reference, methods: one size, side by side."""
    cut = (row.slice_z - row.first_z, *box[1:])
    hu, reference = row.reference.hu(cut), row.reference.label_map
    shape_px = (max(1, round(hu.shape[0] * row.reference.geometry.spacing_zyx_mm[1] * px_per_mm)), width_px)
    left_px = [_MARGIN_PX + index * (width_px + _GAP_PX) for index in range(2 + len(row.methods))]
    position = f"slice {row.slice_z + 1} of {row.slices}"
    scan = render_slice(hu, reference[cut] * 0, shape_px)
    panels = [Panel(row.case_id, position, scan, left_px[0], top_px, marks=("R", "L", "A", "P"))]
    columns: list[tuple[str, LabelArray, float | None]] = [("Reference", reference, None)]
    columns += [(name, found.label_map, row.dsc[name]) for name, found in row.methods.items()]
    for (name, label_map, dsc), left in zip(columns, left_px[1:], strict=True):
        image, tags = render_slice(hu, label_map[cut], shape_px), organ_tags(label_map[cut], shape_px)
        corner = "" if dsc is None else f"DSC {dsc:.3f}"
        panels.append(Panel(name, "", image, left, top_px, tags=tags, corner=corner))
    return panels


def _px_per_mm(row: CaseRow, box: Box, width_px: int) -> float:
    columns = int(box[2].stop - box[2].start)
    return width_px / (columns * row.reference.geometry.spacing_zyx_mm[2])


def _shown_organs(rows: Sequence[CaseRow]) -> dict[str, bool]:
    """Every organ, and whether it is in a panel."""
    shown: set[int] = set()
    for row in rows:
        for found in (row.reference, *row.methods.values()):
            shown |= set(np.unique(found.label_map[row.slice_z - row.first_z]).tolist())
    return {organ.name: organ.label in shown for organ in CORRECTED.organs}
