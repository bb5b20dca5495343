"""Which scans a data folder offers for training."""

import json
from pathlib import Path

import pytest

from app.errors import FolderError, UsageError
from tools.train.cases import FLARE22_ORGANS, find_training_cases, find_training_data, read_description

ABDOMEN_CT = Path(__file__).parent.parent / "tools" / "train" / "datasets" / "abdomen_ct.json"
SHARED = Path(__file__).parent.parent.parent / "shared" / "data" / "abdomen_ct"


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def labels_by_id(*folders: Path) -> dict[str, str | None]:
    data = find_training_data(folders)
    return {case.case_id: case.label_path.name if case.label_path else None for case in data.cases}


def test_nnunet_raw_folder(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/a_0000.nii.gz", "imagesTr/b_0000.nii", "labelsTr/a.nii.gz", "labelsTr/b.nii.gz")
    touch(tmp_path, "imagesUn/u_0000.nii.gz", "imagesTs/t_0000.nii.gz", "dataset.json")
    assert labels_by_id(tmp_path) == {"a": "a.nii.gz", "b": "b.nii.gz", "u": None}


@pytest.mark.parametrize("images", ["images", "imagesTr"])
def test_flare22_folders(tmp_path: Path, images: str) -> None:
    labels = images.replace("images", "labels")
    touch(tmp_path, f"FLARE22Train/{images}/FLARE22_Tr_0001_0000.nii.gz")
    touch(tmp_path, f"FLARE22Train/{labels}/FLARE22_Tr_0001.nii.gz")
    touch(tmp_path, "unlabeledCase_1/Case_00001_0000.nii.gz", "FLARE22_UnlabeledCase501-1000/Case_00501_0000.nii.gz")
    expected = {"Case_00001": None, "Case_00501": None, "FLARE22_Tr_0001": "FLARE22_Tr_0001.nii.gz"}
    assert labels_by_id(tmp_path) == expected
    apart = (tmp_path / "FLARE22Train", tmp_path / "unlabeledCase_1", tmp_path / "FLARE22_UnlabeledCase501-1000")
    assert labels_by_id(*apart) == expected


def test_images_without_label_are_unlabelled(tmp_path: Path) -> None:
    touch(tmp_path, "images/a_0000.nii.gz", "images/b_0000.nii.gz", "labels/a.nii.gz", "README.md")
    assert labels_by_id(tmp_path) == {"a": "a.nii.gz", "b": None}
    assert [case.case_id for case in find_training_cases(tmp_path)] == ["a", "b"]


def test_first_unlabelled_cases(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/z_0000.nii.gz", "labelsTr/z.nii.gz", *(f"imagesUn/u{i}_0000.nii.gz" for i in range(5)))
    data = find_training_data([tmp_path], most_unlabelled=2)
    assert [case.case_id for case in data.cases] == ["u0", "u1", "z"]


def test_held_out_cases_are_in_neither_set(tmp_path: Path) -> None:
    touch(tmp_path, "images/a_0000.nii.gz", "images/b_0000.nii.gz", "images/c_0000.nii.gz", "labels/a.nii.gz")
    data = find_training_data([tmp_path], hold_out=["a", "c"])
    assert [case.case_id for case in data.cases] == ["b"]
    with pytest.raises(UsageError, match=r"--hold-out d: no such case; there are a, b, c"):
        find_training_data([tmp_path], hold_out=["a", "d"])


def test_description(tmp_path: Path) -> None:
    touch(tmp_path, "images/a_0000.nii.gz", "images/b_0000.nii.gz", "labels/a.nii.gz", "labels/b.nii.gz")
    scan = {"source": "a phantom", "licence": "none", "labels_by": "its maker", "not_annotated": ["spleen"]}
    path = tmp_path / "about.json"
    path.write_text(json.dumps({"name": "two", "organs": ["liver", "spleen"], "scans": {"b": scan}}))
    data = find_training_data([tmp_path], description=path)
    assert data.organs == ("liver", "spleen")
    assert [case.not_annotated for case in data.cases] == [(), ("spleen",)]
    scan = {**scan, "not_annotated": [], "not_trusted": ["liver"]}
    path.write_text(json.dumps({"name": "two", "organs": ["liver", "spleen"], "scans": {"b": scan}}))
    assert [case.hidden for case in find_training_data([tmp_path], description=path).cases] == [(), ("liver",)]
    scan = {**scan, "not_trusted": ["spleen"]}
    path.write_text(json.dumps({"name": "two", "organs": ["liver"], "scans": {"b": scan}}))
    with pytest.raises(UsageError, match=r"about.json: dataset: scans.b: spleen is not among the organs"):
        find_training_data([tmp_path], description=path)
    path.write_text("{")
    with pytest.raises(UsageError, match=r"about.json"):
        read_description(path)


def test_abdomen_ct_names_what_is_not_annotated() -> None:
    description = read_description(ABDOMEN_CT)
    assert description.organs == FLARE22_ORGANS
    assert sorted(description.scans) == [f"ct_{number:03d}" for number in range(1, 11)]
    hidden = {case_id: scan.not_annotated for case_id, scan in description.scans.items() if scan.not_annotated}
    assert hidden == {"ct_001": ("gallbladder",), "ct_002": ("esophagus",), "ct_006": ("gallbladder",)}
    wrong = {case_id: scan.not_trusted for case_id, scan in description.scans.items() if scan.not_trusted}
    assert wrong == {"ct_004": ("gallbladder",), "ct_008": ("gallbladder", "left kidney")}
    assert all(scan.licence and scan.source for scan in description.scans.values())
    assert all(bool(scan.remark) is bool(scan.not_trusted) for scan in description.scans.values())


def test_abdomen_ct_folder_finds_its_description() -> None:
    if not SHARED.exists():
        pytest.skip("../shared is not here")
    cases = {case.case_id: case for case in find_training_cases(SHARED)}
    assert [case_id for case_id, case in cases.items() if case.label_path is None] == ["ct_007", "ct_009", "ct_010"]
    assert cases["ct_002"].not_annotated == ("esophagus",)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], r"found no scans; expected imagesTr and labelsTr"),
        (["scans/a_0000.nii.gz"], r"found no scans; expected imagesTr and labelsTr"),
        (
            ["imagesTr/a_0000.nii.gz", "imagesTr/b_0000.nii.gz", "labelsTr/a.nii.gz"],
            r"no label map in .*labelsTr for b",
        ),
        (["images/a_0000.nii.gz", "labels/a.nii.gz", "labels/b.nii.gz"], r"labels: no scan in .*images for b.nii.gz"),
        (["images/a_0000.nii.gz", "images/a_0001.nii.gz"], r"several channels of one case"),
        (["images/notes.txt"], r"none of them a scan"),
    ],
)
def test_folders_that_cannot_be_used(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(FolderError, match=message):
        find_training_data([touch(tmp_path, *names)])


def test_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="no data folder"):
        find_training_data([tmp_path / "nowhere"])


def test_an_id_twice(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz", "imagesUn/a_0000.nii.gz")
    with pytest.raises(UsageError, match=r"case a is also .*imagesTr"):
        find_training_data([tmp_path])
