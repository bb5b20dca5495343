"""Which organs keep their largest component only, decided on label maps of which the answer is known."""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from app.bundle import load_bundle
from tests.conftest import write_scan, write_tiny_bundle
from tools.convert.__main__ import main
from tools.convert.components import compare_components
from tools.evaluate.cases import pair_cases

Labels = npt.NDArray[np.int16]


def reference() -> Labels:
    """Organ 1 is one block of 64 voxels, organ 2 two of 8 and 27; organ 3 is not there."""
    labels = np.zeros((12, 12, 12), dtype=np.int16)
    labels[1:5, 1:5, 1:5] = 1
    labels[6:8, 6:8, 6:8] = 2
    labels[6:9, 1:4, 1:4] = 2
    return labels


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """``a`` has a speck of organ 1 elsewhere and of organ 3, ``b`` is right."""
    predictions, references = tmp_path / "predictions", tmp_path / "references"
    for folder in (predictions, references):
        folder.mkdir()
    speckled = reference()
    speckled[10, 10, 8:11] = 1
    speckled[0, 11, 11] = 3
    for name, found in (("a", speckled), ("b", reference())):
        write_scan(predictions / f"{name}.nii.gz", found)
        write_scan(references / f"{name}.nii.gz", reference())
    return predictions, references


def test_an_organ_that_gains_keeps_its_largest_component(folders: tuple[Path, Path]) -> None:
    first, second = compare_components(pair_cases(*folders).pairs, ("first", "second", "third"), 1.0)
    assert (first.organ, first.cases, first.after, first.taken) == ("first", 2, 1.0, True)
    assert first.before == pytest.approx((2 * 64 / (64 + 67) + 1) / 2)
    assert (second.organ, second.before, second.taken) == ("second", 1.0, False)
    assert second.after == pytest.approx(2 * 27 / (35 + 27))


def test_an_organ_that_one_case_loses_keeps_all(folders: tuple[Path, Path]) -> None:
    """``a`` gains 1 - 128 / 188; of organ 1 of ``b``, which lacks a slice, a third would go: it loses 1 - 64 / 80."""
    predictions, references = folders
    doubled, cut = reference(), reference()
    doubled[8:12, 8:11, 5:10] = 1
    write_scan(predictions / "a.nii.gz", doubled)
    cut[3, 1:5, 1:5] = 0
    for folder in folders:
        write_scan(folder / "b.nii.gz", cut)
    choice, _ = compare_components(pair_cases(predictions, references).pairs, ("first", "second", "third"), 1.0)
    assert choice.after > choice.before
    assert (choice.losers, choice.taken) == (1, False)


def test_large_components_may_stay(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """Of organ 1 the speck has 3 voxels of 64, of organ 2 the smaller part 8 of 27."""
    bundle = write_tiny_bundle(tmp_path / "bundle")
    command = ["postprocessing", str(bundle), "--predictions", str(folders[0]), "--references", str(folders[1])]
    for share, organs in ((0.04, ()), (0.2, ("first",))):
        assert main([*command, "--smallest-share", str(share)]) == 0
        found = load_bundle(bundle).plan.postprocessing
        assert (found.largest_component, found.smallest_share) == (organs, share)
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--smallest-share", "0"])
    _, second = compare_components(pair_cases(*folders).pairs, ("first", "second", "third"), 0.2)
    assert second.after == 1.0


def test_the_bundle_learns_it(folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    predictions, references = folders
    write_scan(references / "not_segmented.nii.gz", reference())
    command = ["postprocessing", str(bundle), "--predictions", str(predictions), "--references", str(references)]
    assert main(command) == 0
    assert load_bundle(bundle).plan.postprocessing.largest_component == ("first",)
    assert json.loads((bundle / "plan.json").read_text())["postprocessing"]["largest_component"] == ["first"]
    assert "| first | 2 | 0.9885 | 1.0000 | 0 | largest |" in capsys.readouterr().out


def test_other_grids_and_empty_references_are_named(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    predictions, references = folders
    command = ["postprocessing", str(bundle), "--predictions", str(predictions), "--references", str(references)]
    write_scan(references / "b.nii.gz", reference()[:-1])
    assert main(command) == 1
    assert f"{predictions / 'b.nii.gz'}: shape_zyx differs from that of" in capsys.readouterr().err
    for name in "ab":
        write_scan(references / f"{name}.nii.gz", np.zeros((12, 12, 12), dtype=np.int16))
    assert main(command) == 2
    assert "the references show no organ" in capsys.readouterr().err
    assert load_bundle(bundle).plan.postprocessing.largest_component == ()
