"""Methods side by side: nibabel writes the cases, and the pixels tell which organ is in which panel."""

from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from app.errors import AppError
from app.volume import LabelArray
from tools.figures.__main__ import main
from tools.figures.methods import draw_methods, mean_dsc, read_case_rows
from tools.figures.organ_colours import organ_colour_rgb
from tools.figures.sheet import key_height_px

LIVER, SPLEEN = 1, 3


def save(path: Path, array: npt.NDArray[np.generic], height_mm: float = 0.0) -> None:
    path.parent.mkdir(exist_ok=True)
    affine = np.diag([-2.0, -2.0, 5.0, 1.0])  # LPS, as the arrays lie in the picture
    affine[2, 3] = height_mm
    nib.save(nib.Nifti1Image(array.transpose(2, 1, 0), affine), path)


def organs(first: int, last: int, label: int = LIVER) -> LabelArray:
    """8 x 8 voxels in slices ``first`` to ``last`` of 12x40x50."""
    labels = np.zeros((12, 40, 50), dtype=np.uint8)
    labels[first : last + 1, 16:24, 10:18] = label
    return labels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Cases a and b with two methods: A is right; B finds a part of the liver in a, and a spleen in b."""
    hu = np.full((12, 40, 50), -1000, dtype=np.int16)
    hu[:, 4:36, 4:46] = 40
    for case in "ab":
        save(tmp_path / "scans" / f"{case}_0000.nii.gz", hu)
        save(tmp_path / "references" / f"{case}.nii.gz", organs(2, 5))
        save(tmp_path / "A" / f"{case}.nii.gz", organs(2, 5))
    save(tmp_path / "B" / "a.nii.gz", organs(2, 3))
    save(tmp_path / "B" / "b.nii.gz", organs(2, 5, SPLEEN))
    return tmp_path


def draw(folder: Path, *more: str, out: str = "out.png") -> int:
    folders = ["--scans", str(folder / "scans"), "--references", str(folder / "references")]
    methods = ["--method", f"first={folder / 'A'}", "--method", f"second={folder / 'B'}"]
    return main(["methods", str(folder / out), *folders, *methods, *more])


def has(pixels: npt.NDArray[np.uint8], label: int) -> bool:
    return bool(np.all(np.abs(pixels.astype(int) - organ_colour_rgb(label)) <= 1, axis=2).any())


def panels(picture: npt.NDArray[np.uint8], rows: int) -> list[list[npt.NDArray[np.uint8]]]:
    """The picture without its key, cut into cells of one panel each."""
    key = key_height_px(13, picture.shape[1] - 72) + 18
    bands = np.array_split(picture[100:-key], rows)
    return [np.array_split(band[:, 36:-36], 4, axis=1) for band in bands]


def test_each_organ_is_in_its_panel(folder: Path) -> None:
    assert draw(folder, "--slice", "a=4", "--slice", "b=4") == 0
    with Image.open(folder / "out.png") as image:
        cells = panels(np.asarray(image.convert("RGB")), 2)
    assert [[has(cell, LIVER) for cell in row] for row in cells] == [
        [False, True, True, True],
        [False, True, True, False],
    ]
    assert [[has(cell, SPLEEN) for cell in row] for row in cells] == [[False] * 4, [False, False, False, True]]


def test_the_slice_is_the_middle_of_the_best_or_the_one_asked_for(folder: Path) -> None:
    methods = {"first": folder / "A"}
    rows = read_case_rows(folder / "scans", folder / "references", methods, slices={"b": 6})
    assert [(row.case_id, row.slice_z) for row in rows] == [("a", 4), ("b", 5)]  # 2 to 5 are equally good


def test_cases_keep_their_order(folder: Path) -> None:
    rows = read_case_rows(folder / "scans", folder / "references", {"second": folder / "B"}, ["b", "a"])
    assert [row.case_id for row in rows] == ["b", "a"]
    assert [int(row.methods["second"].label_map.max()) for row in rows] == [SPLEEN, LIVER]


def test_dsc_in_the_corner_by_hand() -> None:
    """Liver 2 x 2 / (2 + 4) slices; a spleen that only one has is 0; what neither has does not count."""
    assert mean_dsc(organs(2, 3), organs(2, 5)) == pytest.approx(2 / 3)
    spleen = np.roll(organs(2, 5, SPLEEN), 20, axis=2)
    assert mean_dsc(organs(2, 3) + spleen, organs(2, 5)) == pytest.approx(1 / 3)
    assert mean_dsc(organs(0, 11, 5), organs(2, 5, 5)) == 1.0  # an aorta beyond the reference's slices
    assert mean_dsc(organs(2, 5, 0), organs(2, 5, 0)) is None


def test_a_row_keeps_what_is_near_its_slice(folder: Path) -> None:
    """20 mm of slices of 5 mm on either side; the DSC is the whole scan's, whatever a method is called."""
    hu = np.full((40, 40, 50), 40, dtype=np.int16)
    hu[:, :4] = -1000
    labels = np.zeros(hu.shape, dtype=np.uint8)
    labels[2:30, 16:24, 10:18] = LIVER
    save(folder / "scans" / "c_0000.nii.gz", hu)
    save(folder / "references" / "c.nii.gz", labels)
    labels[16:] = 0
    save(folder / "A" / "c.nii.gz", labels)
    (row,) = read_case_rows(folder / "scans", folder / "references", {"Reference": folder / "A"}, ["c"], {"c": 8})
    assert (row.slice_z, row.first_z, row.slices) == (7, 3, 40)
    assert row.reference.label_map.shape == row.methods["Reference"].scan.voxels.shape == (9, 40, 50)
    assert row.dsc == {"Reference": pytest.approx(2 * 14 / (14 + 28))}
    assert draw_methods([row], "title").width >= 1000


@pytest.mark.parametrize("methods", [1, 3, 6])
def test_any_number_of_methods_fits(folder: Path, methods: int) -> None:
    folders = {f"method {index}": folder / "A" for index in range(methods)}
    image = draw_methods(read_case_rows(folder / "scans", folder / "references", folders, ["a"]), "title")
    assert 1000 <= image.width <= 2000
    assert has(np.asarray(image), LIVER)


def test_equal_inputs_give_equal_bytes(folder: Path) -> None:
    for name in ("one.png", "two.png"):
        assert draw(folder, "--cases", "a", "--palette", out=name) == 0
    assert (folder / "one.png").read_bytes() == (folder / "two.png").read_bytes()
    with Image.open(folder / "one.png") as image:
        assert image.mode == "P"


def test_what_does_not_belong_together_is_refused(folder: Path) -> None:
    def refusal(**methods: Path) -> str:
        with pytest.raises(AppError) as caught:
            read_case_rows(folder / "scans", folder / "references", methods, ["a"])
        return str(caught.value)

    save(folder / "moved" / "a.nii.gz", organs(2, 5), height_mm=5.0)
    assert f"{folder / 'moved' / 'a.nii.gz'}: not on the grid of" in refusal(x=folder / "moved")
    assert "the first voxel lies 5 mm away" in refusal(x=folder / "moved")
    save(folder / "short" / "a.nii.gz", organs(2, 5)[1:])
    assert "shape 11x40x50 instead of 12x40x50" in refusal(x=folder / "short")
    assert "Is this a label map" in refusal(x=folder / "scans")
    save(folder / "other" / "c.nii.gz", organs(2, 5))
    assert "--method x: nothing among c for case a" in refusal(x=folder / "other")
    assert "no such folder" in refusal(x=folder / "none")
    with pytest.raises(AppError, match=r"a\.nii\.gz: whole numbers from 0 to 1; expected a CT scan in HU"):
        read_case_rows(folder / "references", folder / "references", {"x": folder / "A"}, ["a"])


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (("--slice", "a=13"), "has slices 1 to 12"),
        (("--slice", "a=0"), "has slices 1 to 12"),
        (("--slice", "a=x"), "expected a whole number"),
        (("--slice", "c=1"), "not among the cases a, b"),
        (("--method", "first=again"), "each name once"),
        (("--method", "folder"), "expected NAME=DIR"),
    ],
)
def test_wrong_usage_ends_with_2(
    folder: Path, more: tuple[str, str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert draw(folder, *more) == 2
    assert named in capsys.readouterr().err
    assert not (folder / "out.png").exists()
