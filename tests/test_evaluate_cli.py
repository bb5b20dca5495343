"""The evaluation from files: pairing, geometry, what is written, exit codes."""

import csv
import io
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app.volume import Geometry, LabelArray, Vector
from tests.conftest import ROOT, rotated_affine, write_scan
from tools.evaluate import scoring
from tools.evaluate.__main__ import main
from tools.evaluate.cases import CasePair, pair_cases
from tools.evaluate.flare import IN_NEITHER, OFFICIAL, Score
from tools.evaluate.geometry import describe_difference
from tools.evaluate.measures import Measures
from tools.evaluate.record import build_record
from tools.evaluate.report import csv_text

SPACING_ZYX_MM: Vector = (3.0, 2.0, 1.0)

HEADER = (
    "Name,Liver_DSC,RK_DSC,Spleen_DSC,Pancreas_DSC,Aorta_DSC,IVC_DSC,RAG_DSC,LAG_DSC,Gallbladder_DSC,Esophagus_DSC,"
    "Stomach_DSC,Duodenum_DSC,LK_DSC,Liver_NSD,RK_NSD,Spleen_NSD,Pancreas_NSD,Aorta_NSD,IVC_NSD,RAG_NSD,LAG_NSD,"
    "Gallbladder_NSD,Esophagus_NSD,Stomach_NSD,Duodenum_NSD,LK_NSD\n"
)


@pytest.fixture(autouse=True)
def _silent_afterwards_here() -> Iterator[None]:
    yield
    logging.getLogger("tools.evaluate").handlers.clear()


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    """(predictions, references, out)."""
    for name in ("predictions", "references"):
        (tmp_path / name).mkdir()
    return tmp_path / "predictions", tmp_path / "references", tmp_path / "out"


def labels(first: int = 2, last: int = 5, label: int = 1) -> LabelArray:
    """2 x 2 voxels in slices ``first`` to ``last`` of 10x11x12."""
    array = np.zeros((10, 11, 12), dtype=np.uint8)
    array[first : last + 1, 4:6, 7:9] = label
    return array


def write_pair(
    folders: tuple[Path, Path, Path], name: str, prediction: LabelArray, reference: LabelArray | None = None
) -> None:
    for folder, array in zip(folders, (prediction, prediction if reference is None else reference), strict=False):
        write_scan(folder / f"{name}.nii.gz", array, SPACING_ZYX_MM)


def evaluate(folders: tuple[Path, Path, Path], *more: object) -> int:
    predictions, references, out = folders
    arguments = ["--predictions", predictions, "--references", references, "--out", out, "--no-pictures", *more]
    return main([str(argument) for argument in arguments])


def scores_json(folders: tuple[Path, Path, Path]) -> Any:
    return json.loads((folders[2] / "scores.json").read_text())


# --- what is written -------------------------------------------------------------------------------------


def test_names_that_are_not_utf8_cost_no_table(
    folders: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    name = os.fsdecode(b"caf\xe9")
    write_pair(folders, name, labels())
    assert evaluate(folders) == 0
    assert scores_json(folders)["cases"][0]["case_id"] == name
    assert "caf\\udce9.nii.gz," in (folders[2] / "DSC_NSD_team.csv").read_text(encoding="utf-8")
    assert {path.name for path in folders[2].iterdir()} > {"values.csv", "scores.md"}
    assert capsys.readouterr().out


def test_csv_is_the_organisers_table(folders: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    write_pair(folders, "FLARE22_Tr_0002", labels())
    # Liver 2 x 16 / (16 + 24) = 0.8, beyond its tolerance only by a part; no kidney in truth; an aorta on one slice.
    reference = labels(2, 5) + labels(8, 8, 5)
    write_pair(folders, "FLARE22_Tr_0001", labels(2, 7) + labels(9, 9, 2) + labels(8, 8, 5), reference)
    assert evaluate(folders, "--team", "myteam") == 0
    found = (folders[2] / "DSC_NSD_myteam.csv").read_text()
    liver_nsd = next(csv.DictReader(io.StringIO(found)))["Liver_NSD"]
    assert found == (
        HEADER
        + f"FLARE22_Tr_0001.nii.gz,0.8,0.0,1.0,1.0,,{','.join(['1.0'] * 8)},"
        + f"{liver_nsd},0.0,1.0,1.0,,{','.join(['1.0'] * 8)}\n"
        + f"FLARE22_Tr_0002.nii.gz,{','.join(['1.0'] * 26)}\n"
    )
    assert 0.8 < float(liver_nsd) < 1.0
    assert "aorta has no official score: the reference has it on a single slice" in capsys.readouterr().err


def test_tables_and_picture_are_made_from_the_json(folders: tuple[Path, Path, Path]) -> None:
    """FLARE23's, with a tumor; a second liver that is half as large: 0.6667 of 16 and 8 voxels, -50 %."""
    write_pair(folders, "a", labels(2, 5) + labels(8, 9, 14))
    write_pair(folders, "b", labels(2, 3), labels(2, 5))
    arguments = ["--predictions", folders[0], "--references", folders[1], "--out", folders[2], "--preset", "flare23"]
    assert main([str(argument) for argument in arguments]) == 0
    assert sorted(path.name for path in folders[2].iterdir()) == [
        "DSC_NSD_team.csv",
        "boxplots.png",
        "scores.json",
        "scores.md",
        "values.csv",
    ]
    with (folders[2] / "values.csv").open() as stream:
        rows = {(row["case_id"], row["organ"]): row for row in csv.DictReader(stream)}
    assert len(rows) == 2 * 14
    assert rows["b", "liver"]["official_dsc"] == "0.6667"
    assert rows["b", "liver"]["volume_error"] == "-0.5"
    assert rows["b", "liver"]["hd95_mm"] == "6.0"  # two slices of 3 mm
    assert rows["a", "tumor"]["hd95_mm"] == "0.0" and rows["b", "tumor"]["hd95_mm"] == ""
    table = (folders[2] / "scores.md").read_text()
    assert "| Liver | 0.8334 (0.6667 to 1.0000) |" in table and "| 25.0 (0.0 to 50.0) |" in table
    assert "| Tumor | 1.0000 (1.0000 to 1.0000) |" in table
    with Image.open(folders[2] / "boxplots.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
    record = scores_json(folders)
    assert record["interval"]["official"]["organs"]["liver"]["dsc"] == [0.6667, 1.0]
    assert record["mean"]["official"]["all_organs"]["dsc"] == pytest.approx((12 + 0.83335) / 13)  # without the tumor


def test_json_has_both_definitions_and_null_for_what_is_missing(folders: tuple[Path, Path, Path]) -> None:
    write_pair(folders, "a", labels(2, 7), labels(2, 5))
    write_pair(folders, "b", labels(2, 5))
    write_scan(folders[1] / "c.nii.gz", labels(), SPACING_ZYX_MM)
    write_scan(folders[0] / "d.nii.gz", labels(), SPACING_ZYX_MM)
    assert evaluate(folders) == 1
    record = scores_json(folders)
    assert list(record) == [
        "schema_version",
        "settings",
        "preset",
        "organs",
        "rules",
        "cases",
        "mean",
        "interval",
        "predictions_without_reference",
    ]
    assert record["schema_version"] == 2
    assert record["settings"]["references"] == str(folders[1])
    assert record["organs"][4] == {
        "label": 5,
        "name": "aorta",
        "column": "Aorta",
        "tolerance_mm": 2,
        "reference_slices_only": True,
        "in_mean": True,
    }
    assert record["rules"]["official"]["no_nsd_below_dsc"] == 0.2
    assert record["rules"]["corrected"]["both_empty"] is None
    assert [case["case_id"] for case in record["cases"]] == ["a", "b", "c"]
    first, _, missing = record["cases"]
    assert first["status"] == "scored" and first["error"] is None
    assert first["official"]["organs"]["liver"]["dsc"] == 0.8
    assert first["official"]["organs"]["spleen"] == {"dsc": 1.0, "nsd": 1.0, "note": None}
    assert first["official"]["mean"]["dsc"] == pytest.approx((0.8 + 12) / 13)
    assert first["corrected"]["organs"]["spleen"] == {"dsc": None, "nsd": None, "note": "in neither label map"}
    assert first["corrected"]["mean"]["dsc"] == 0.8
    assert missing["status"] == "failed" and "no prediction for" in missing["error"]
    assert missing["official"] is None and missing["corrected"] is None
    assert record["mean"]["official"]["organs"]["liver"]["dsc"] == pytest.approx(0.9)
    assert record["mean"]["official"]["organs"]["liver"]["cases"] == 2
    assert record["mean"]["corrected"]["organs"]["spleen"] == {"dsc": None, "nsd": None, "cases": 0}
    assert record["mean"]["corrected"]["all_organs"]["dsc"] == pytest.approx(0.9)
    assert record["predictions_without_reference"] == [str(folders[0] / "d.nii.gz")]


def scored(**organs: Score) -> scoring.CaseScores:
    """A case of which only some organs have scores, the same by both rules, and none has measures."""
    scores = {organ.name: organs.get(organ.name, Score(None, None)) for organ in OFFICIAL.organs}
    measures = {organ.name: Measures(None, None, 0.0, 0.0, IN_NEITHER) for organ in OFFICIAL.organs}
    pair = CasePair("x", "x.nii.gz", Path("x"), Path("x"))
    return scoring.CaseScores(pair, scores={"official": scores, "corrected": scores}, measures=measures)


def test_mean_over_organs_is_the_mean_of_their_means() -> None:
    """Liver 0.9 and 0.7, spleen 0.5 once: 0.8 and 0.5, together 0.65; not 0.7."""
    failed = scoring.CaseScores(CasePair("y", "y.nii.gz", Path("y"), Path("y")), error="gone")
    results = [scored(liver=Score(0.9, 0.6)), scored(liver=Score(0.7, 0.2), spleen=Score(0.5, 0.0)), failed]
    mean = build_record(results, {})["mean"]["official"]
    assert mean["organs"]["liver"] == {"dsc": pytest.approx(0.8), "nsd": pytest.approx(0.4), "cases": 2}
    assert mean["all_organs"] == {"dsc": pytest.approx(0.65), "nsd": pytest.approx(0.2)}


def test_zero_counts_in_a_mean_and_missing_does_not() -> None:
    results = [scored(liver=Score(dsc, dsc)) for dsc in (0.0, 1.0, None)]
    record = build_record(results, {})
    assert record["mean"]["official"]["organs"]["liver"] == {"dsc": 0.5, "nsd": 0.5, "cases": 2}
    assert record["mean"]["measures"]["organs"]["liver"]["hd95_mm"] is None
    assert record["mean"]["measures"]["organs"]["liver"]["hd95_mm_cases"] == 0


def test_failed_case_is_a_row_of_empty_cells() -> None:
    pair = CasePair("x", "x.nii.gz", Path("x"), Path("x"))
    assert csv_text(build_record([scoring.CaseScores(pair, error="gone")], {})) == HEADER + "x.nii.gz" + "," * 26 + "\n"


def test_table_is_printed_and_names_failures(
    folders: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    write_pair(folders, "a", labels(2, 7), labels(2, 5))
    write_scan(folders[1] / "c.nii.gz", labels(), SPACING_ZYX_MM)
    assert evaluate(folders) == 1
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 2 + 13 + 1 + 2
    assert table[2].split()[:3] == ["liver", "5", "0.8000"]
    assert table[4].split() == ["spleen", "3", "1.0000", "1.0000", "1", "-", "-", "0", "-", "-"]
    assert table[-2] == "1 of 2 cases scored"
    assert "in no mean; counted as 0, as in the challenge: official DSC 0.4923, NSD" in table[-1]  # (0.8 + 12) / 13 / 2
    assert "counted as 0, as in the challenge: official DSC 0.4923" in (folders[2] / "scores.md").read_text()


def test_quiet_prints_errors_only(folders: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    write_pair(folders, "a", labels(8, 8, 5))
    write_scan(folders[1] / "c.nii.gz", labels(), SPACING_ZYX_MM)
    assert evaluate(folders, "--quiet") == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1 and "c: failed" in captured.err


def test_terminal_gets_a_bar(
    folders: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pair(folders, "a", labels())
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert evaluate(folders) == 0
    assert "cases: 100%" in capsys.readouterr().err


# --- which files belong together -------------------------------------------------------------------------


def test_files_are_paired_by_name(tmp_path: Path) -> None:
    for name in ("predictions/b.nii.gz", "predictions/a_0000.nii.gz", "predictions/notes.txt", "predictions/.x.nii.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "references").mkdir()
    for name in ("a.mha", "b_0000.nii", "c.nrrd"):
        (tmp_path / "references" / name).touch()
    pairing = pair_cases(tmp_path / "predictions", tmp_path / "references")
    assert [(pair.case_id, pair.name, pair.reference.name) for pair in pairing.pairs] == [
        ("a", "a_0000.nii.gz", "a.mha"),
        ("b", "b.nii.gz", "b_0000.nii"),
        ("c", "c.nii.gz", "c.nrrd"),
    ]
    assert [pair.refusal is None for pair in pairing.pairs] == [True, True, False]
    assert pairing.without_reference == ()


@pytest.mark.parametrize("twice", ["predictions", "references"])
def test_two_files_for_one_case_are_refused(folders: tuple[Path, Path, Path], twice: str) -> None:
    write_pair(folders, "a", labels())
    write_pair(folders, "b", labels())
    shutil.copy(folders[0] / "a.nii.gz", folders[0].parent / twice / "a_0000.nii.gz")
    assert evaluate(folders) == 1
    first, second = scores_json(folders)["cases"]
    assert "a.nii.gz" in first["error"] and "several label maps of one case" in first["error"]
    assert second["status"] == "scored"


# --- geometry --------------------------------------------------------------------------------------------


def lps_affine(shift_mm: tuple[float, float, float] = (0, 0, 0)) -> Any:
    affine = np.diag([-1.0, -2.0, 3.0, 1.0])
    affine[:3, 3] = shift_mm
    return affine


def flipped_affine(axis: int) -> Any:
    """The axis runs the other way: the header of a mirrored scan whose voxels were not."""
    affine = lps_affine()
    affine[axis, axis] *= -1
    return affine


@pytest.mark.parametrize(
    ("affine", "named"),
    [
        (flipped_affine(0), ["axis x runs the other way (flipped)"]),
        (flipped_affine(1), ["axis y runs the other way (flipped)"]),
        (flipped_affine(2), ["axis z runs the other way (flipped)"]),
        (lps_affine((0, 0, 3.0)), ["the first voxel lies 3 mm away", "(z, y, x) +3, +0, +0 mm"]),
        (lps_affine((0.5, 0, 0)), ["the first voxel lies 0.5 mm away", "+0, +0, -0.5 mm"]),
        (np.diag([-1.0, -2.0, 2.5, 1.0]), ["spacing 2.5 x 2 x 1 mm instead of 3 x 2 x 1 mm (z, y, x)"]),
        (rotated_affine(5.0), ["axis z points", "degrees away", "the first voxel lies"]),
    ],
)
def test_another_grid_is_refused_and_the_difference_named(
    folders: tuple[Path, Path, Path], affine: Any, named: list[str]
) -> None:
    write_scan(folders[0] / "a.nii.gz", labels(), affine=affine)
    write_scan(folders[1] / "a.nii.gz", labels(), affine=lps_affine())
    assert evaluate(folders) == 1
    case = scores_json(folders)["cases"][0]
    assert case["official"] is None
    for part in (str(folders[0] / "a.nii.gz"), "not on the grid of", *named, "--ignore-geometry"):
        assert part in case["error"]
    assert evaluate(folders, "--ignore-geometry") == 0
    assert scores_json(folders)["cases"][0]["official"]["organs"]["liver"]["dsc"] == 1.0


def test_what_adds_up_over_hundreds_of_voxels_is_named() -> None:
    """A writer that rounds 0.78125 to 0.781 mm: 0.13 mm on 512 columns and as many rows."""
    upright = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    reference = Geometry((4, 512, 512), (5.0, 0.78125, 0.78125), upright, (0.0, 0.0, 0.0))
    rounded = replace(reference, spacing_zyx_mm=(5.0, 0.781, 0.781))
    turned = replace(reference, direction=((1.0, 0.0, 0.0), (0.0, 1.0, 0.001), (0.0, -0.001, 1.0)))
    assert describe_difference(turned, reference) == "corners lie up to 0.56 mm apart; axes are turned a little"
    spacings = "spacing 5 x 0.781 x 0.781 mm instead of 5 x 0.78125 x 0.78125 mm (z, y, x)"
    assert describe_difference(rounded, reference) == f"corners lie up to 0.18 mm apart; {spacings}"


def test_same_place_in_another_order_is_said_to_be_that(folders: tuple[Path, Path, Path]) -> None:
    """Voxels and header both mirrored: right in every viewer, and 0 for the organisers."""
    reference = labels()
    affine = flipped_affine(0)
    affine[0, 3] = -11.0  # 12 columns of 1 mm
    write_scan(folders[0] / "a.nii.gz", np.ascontiguousarray(reference[:, :, ::-1]), affine=affine)
    write_scan(folders[1] / "a.nii.gz", reference, affine=lps_affine())
    assert evaluate(folders) == 1
    error = scores_json(folders)["cases"][0]["error"]
    assert "both cover the same place in the patient and are only stored in another order" in error
    assert "axis x runs the other way (flipped)" in error
    assert evaluate(folders, "--ignore-geometry") == 0
    assert scores_json(folders)["cases"][0]["official"]["organs"]["liver"] == {"dsc": 0.0, "nsd": 0.0, "note": None}


def test_another_shape_is_refused_even_when_geometry_is_ignored(folders: tuple[Path, Path, Path]) -> None:
    write_pair(folders, "a", labels()[:-1], labels())
    for more in ((), ("--ignore-geometry",)):
        assert evaluate(folders, *more) == 1
        error = scores_json(folders)["cases"][0]["error"]
        assert "shape 9x11x12 instead of 10x11x12 (z, y, x)" in error
        assert "or compare" not in error


def test_rounding_of_a_header_is_no_difference(folders: tuple[Path, Path, Path]) -> None:
    affine = rotated_affine()
    write_scan(folders[0] / "a.nii.gz", labels(), affine=affine + 1e-5)
    write_scan(folders[1] / "a.nii.gz", labels(), affine=affine)
    assert evaluate(folders) == 0


# --- what is no label map --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("voxels", "named"),
    [
        (labels(label=14), "label 14; expected whole numbers from 0 to 13"),
        (labels().astype(np.int16) * -1, "label -1; expected"),
        (labels().astype(np.float32) * 0.5, "label 0.5; expected"),
        (np.arange(10 * 11 * 12, dtype=np.int16).reshape(10, 11, 12), "label 14, 15, 16, 17, 18 and 1301 more"),
    ],
)
@pytest.mark.parametrize("where", [0, 1])
def test_labels_that_are_no_organ_are_refused(
    folders: tuple[Path, Path, Path], voxels: Any, named: str, where: int
) -> None:
    write_pair(folders, "a", labels())
    write_pair(folders, "b", labels())
    path = write_scan(folders[where] / "a.nii.gz", voxels, SPACING_ZYX_MM)
    assert evaluate(folders) == 1
    error = scores_json(folders)["cases"][0]["error"]
    assert error.startswith(f"{path}: ") and named in error
    assert scores_json(folders)["cases"][1]["status"] == "scored"


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
def test_labels_of_any_type_are_read(folders: tuple[Path, Path, Path], dtype: Any) -> None:
    write_pair(folders, "a", labels().astype(dtype), labels())
    assert evaluate(folders) == 0
    assert scores_json(folders)["cases"][0]["official"]["organs"]["liver"]["dsc"] == 1.0


def test_slope_of_the_header_is_applied(folders: tuple[Path, Path, Path]) -> None:
    def edit(header: Any) -> None:
        header["scl_slope"], header["scl_inter"] = 0.5, -1.0

    stored = (labels() * 2 + 2).astype(np.int16)  # 0.5 x 2 - 1 = 0 and 0.5 x 4 - 1 = 1
    write_scan(folders[0] / "a.nii.gz", stored, SPACING_ZYX_MM, edit=edit)
    write_scan(folders[1] / "a.nii.gz", labels(), SPACING_ZYX_MM)
    assert evaluate(folders) == 0
    assert scores_json(folders)["cases"][0]["corrected"]["organs"]["liver"]["dsc"] == 1.0


def test_damaged_file_fails_its_case_only(folders: tuple[Path, Path, Path]) -> None:
    write_pair(folders, "a", labels())
    write_pair(folders, "b", labels())
    (folders[0] / "a.nii.gz").write_bytes((folders[0] / "a.nii.gz").read_bytes()[:100])
    assert evaluate(folders) == 1
    assert [case["status"] for case in scores_json(folders)["cases"]] == ["failed", "scored"]


# --- exit codes, jobs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [[], ["--jobs", "2"], ["--predictions", "x", "--references", "y"]])
def test_incomplete_usage_ends_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "required" in capsys.readouterr().err


@pytest.mark.parametrize("more", [("--jobs", "0"), ("--team", "../x"), ("--team", "")])
def test_wrong_usage_ends_with_2(folders: tuple[Path, Path, Path], more: tuple[str, str]) -> None:
    write_pair(folders, "a", labels())
    assert evaluate(folders, *more) == 2
    assert not folders[2].exists()


@pytest.mark.parametrize("empty", ["predictions", "references"])
@pytest.mark.parametrize("gone", [True, False])
def test_nothing_found_ends_with_3(
    folders: tuple[Path, Path, Path], empty: str, gone: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pair(folders, "a", labels())
    folder = folders[0].parent / empty
    shutil.rmtree(folder)
    if not gone:
        folder.mkdir()
    assert evaluate(folders) == 3
    message = capsys.readouterr().err
    assert f"--{empty} {folder}" in message and ("no such folder" if gone else "none of them a label map") in message


def test_out_that_cannot_be_written_ends_with_3(folders: tuple[Path, Path, Path]) -> None:
    write_pair(folders, "a", labels())
    folders[2].touch()
    assert evaluate(folders) == 3


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("exit codes", "examples", "official", "corrected", "--ignore-geometry"))


@pytest.mark.long
def test_two_jobs_write_what_one_writes(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Byte for byte but for the settings; one of the cases fails. Run as users run it."""
    for index, name in enumerate(("a", "b", "c")):
        write_pair(folders, name, labels(2, 5 + index), labels(2, 5))
    (folders[0] / "b.nii.gz").unlink()
    texts = []
    for jobs in (1, 2):
        out = tmp_path / f"out-{jobs}"
        command = [
            sys.executable,
            "-m",
            "tools.evaluate",
            "--predictions",
            str(folders[0]),
            "--references",
            str(folders[1]),
        ]
        done = subprocess.run(
            [*command, "--out", str(out), "--jobs", str(jobs)],
            cwd=ROOT,
            env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1, done.stderr
        record = json.loads((out / "scores.json").read_text())
        assert record.pop("settings")["jobs"] == jobs
        texts.append(((out / "DSC_NSD_team.csv").read_text(), json.dumps(record), done.stdout))
    assert texts[0] == texts[1]


def test_killed_worker_fails_its_case_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Case b kills whatever worker takes it, and a pool with it: a had ended, c had not."""
    pairs = [CasePair(name, f"{name}.nii.gz", Path(f"{name}.nii.gz"), Path(name)) for name in "abc"]
    sizes = []

    class Pool:
        def __init__(self) -> None:
            self._broken = False

        def submit(self, score: object, pair: CasePair) -> Future[scoring.CaseScores]:
            future: Future[scoring.CaseScores] = Future()
            self._broken |= pair.case_id == "b"
            if self._broken:
                future.set_exception(BrokenProcessPool())
            else:
                future.set_result(scoring.CaseScores(pair))
            return future

    @contextmanager
    def processes(count: int) -> Iterator[Pool]:
        sizes.append(count)
        yield Pool()

    monkeypatch.setattr(scoring, "_processes", processes)
    found = {result.pair.case_id: result.error for result in scoring.score_all(pairs, jobs=2)}
    assert found["a"] is None and found["c"] is None
    assert found["b"] is not None and "b.nii.gz: not scored: its process was killed" in found["b"]
    assert sizes == [2, 1, 1]


def test_an_earlier_picture_does_not_stay(folders: tuple[Path, Path, Path]) -> None:
    write_pair(folders, "a", labels())
    folders[2].mkdir()
    (folders[2] / "boxplots.png").write_bytes(b"earlier")
    assert evaluate(folders) == 0
    assert not (folders[2] / "boxplots.png").exists()


def test_what_the_reader_made_of_a_voxel_is_said(
    folders: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """NaN is read as air: the file holds no -1024."""
    write_pair(folders, "a", labels())
    strange = labels().astype(np.float32)
    strange[0, 0, 0] = np.nan
    write_scan(folders[0] / "a.nii.gz", strange, SPACING_ZYX_MM)
    assert evaluate(folders) == 1
    error = capsys.readouterr().err
    assert "label -1024" in error and "NaN" in error
