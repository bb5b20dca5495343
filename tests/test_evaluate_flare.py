"""FLARE's rules, official and corrected, on label maps drawn by hand; the official ones against the organisers' way."""

import json
import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import surface_distance  # type: ignore[import-untyped]
from scipy import ndimage

from app.volume import LabelArray, Shape, Vector
from tests.conftest import write_scan
from tools.evaluate.cases import CasePair
from tools.evaluate.flare import (
    CORRECTED,
    FLARE_ORGANS,
    IN_NEITHER,
    NO_OFFICIAL_NUMBER,
    OFFICIAL,
    Rules,
    Score,
    score_case,
)
from tools.evaluate.presets import DEFAULT_PRESET, PRESETS
from tools.evaluate.scoring import score_files

UNIT: Vector = (1.0, 1.0, 1.0)
LIVER, AORTA, ESOPHAGUS = 1, 5, 10
BOTH = pytest.mark.parametrize("rules", [OFFICIAL, CORRECTED], ids=lambda rules: rules.name)


def empty(shape_zyx: Shape = (12, 6, 6)) -> LabelArray:
    return np.zeros(shape_zyx, dtype=np.uint8)


def column(label: int, first: int, last: int) -> LabelArray:
    """2 x 2 voxels in slices ``first`` to ``last``."""
    labels = empty()
    labels[first : last + 1, 2:4, 2:4] = label
    return labels


def row(label: int, start: int, length: int) -> LabelArray:
    """One row of voxels along x."""
    labels = empty((1, 1, 200))
    labels[0, 0, start : start + length] = label
    return labels


def random_labels(seed: int, shape_zyx: Shape = (16, 24, 20), organs: int = 13) -> LabelArray:
    """All organs as smooth lumps."""
    rng = np.random.default_rng(seed)
    fields = np.stack([ndimage.gaussian_filter(rng.normal(size=shape_zyx), 2.0) for _ in range(organs + 1)])
    labels: LabelArray = fields.argmax(axis=0).astype(np.uint8)
    return labels


def disturbed(labels: LabelArray, seed: int) -> LabelArray:
    """Shifted by a voxel, with some blocks of it wrong."""
    rng = np.random.default_rng(seed)
    found = np.roll(labels, tuple(rng.integers(-1, 2, size=3)), (0, 1, 2))
    for _ in range(6):
        z, y, x = (int(rng.integers(0, length - 4)) for length in labels.shape)
        found[z : z + 4, y : y + 4, x : x + 4] = rng.integers(0, 14)
    return np.ascontiguousarray(found)


# --- what is scored --------------------------------------------------------------------------------------


def test_organs_and_tolerances_are_flares() -> None:
    assert [(organ.label, organ.column, organ.tolerance_mm) for organ in FLARE_ORGANS] == [
        (1, "Liver", 5),
        (2, "RK", 3),
        (3, "Spleen", 3),
        (4, "Pancreas", 5),
        (5, "Aorta", 2),
        (6, "IVC", 2),
        (7, "RAG", 2),
        (8, "LAG", 2),
        (9, "Gallbladder", 2),
        (10, "Esophagus", 3),
        (11, "Stomach", 5),
        (12, "Duodenum", 7),
        (13, "LK", 3),
    ]
    assert [organ.label for organ in FLARE_ORGANS if organ.reference_slices_only] == [5, 6, 10]


def test_organs_are_named_as_in_the_default_bundle(default_bundle: Path) -> None:
    plan = json.loads((default_bundle / "plan.json").read_text())
    assert [organ.name for organ in FLARE_ORGANS] == plan["labels"]


@BOTH
def test_label_maps_against_themselves_are_perfect(rules: Rules) -> None:
    labels = random_labels(0)
    assert score_case(labels, labels, (3.0, 2.0, 1.0), rules) == {organ.name: Score(1.0, 1.0) for organ in FLARE_ORGANS}


# --- empty masks -----------------------------------------------------------------------------------------


def test_both_empty_is_perfect_officially_and_missing_in_truth() -> None:
    assert score_case(empty(), empty(), UNIT, OFFICIAL)["liver"] == Score(1.0, 1.0)
    assert score_case(empty(), empty(), UNIT, CORRECTED)["liver"] == Score(None, None, IN_NEITHER)


@BOTH
@pytest.mark.parametrize("label", [LIVER, AORTA])
def test_one_empty_is_nothing(rules: Rules, label: int) -> None:
    name = FLARE_ORGANS[label - 1].name
    assert score_case(column(label, 2, 5), empty(), UNIT, rules)[name] == Score(0.0, 0.0)
    assert score_case(empty(), column(label, 2, 5), UNIT, rules)[name] == Score(0.0, 0.0)


# --- only the reference's slices --------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("label", [5, 6, 10])
def test_what_lies_beyond_the_references_slices_does_not_count(rules: Rules, label: int) -> None:
    scores = score_case(column(label, 0, 11), column(label, 3, 7), UNIT, rules)
    assert scores[FLARE_ORGANS[label - 1].name] == Score(1.0, 1.0)


def test_other_organs_count_everywhere() -> None:
    """4 slices of 4 voxels against 8 of 4: 2 x 16 / (16 + 32)."""
    assert score_case(column(LIVER, 2, 9), column(LIVER, 2, 5), UNIT, OFFICIAL)["liver"].dsc == 0.6667
    assert score_case(column(LIVER, 2, 9), column(LIVER, 2, 5), UNIT, CORRECTED)["liver"].dsc == 2 / 3


def test_top_slice_is_dropped_officially() -> None:
    """The prediction lacks slice 5 of 2 to 5: nobody sees it officially; in truth 2 x 12 / (12 + 16)."""
    prediction, reference = column(AORTA, 2, 4), column(AORTA, 2, 5)
    assert score_case(prediction, reference, UNIT, OFFICIAL)["aorta"] == Score(1.0, 1.0)
    corrected = score_case(prediction, reference, UNIT, CORRECTED)["aorta"]
    assert corrected.dsc == pytest.approx(24 / 28)
    assert corrected.nsd == 1.0  # all within 1 mm


def test_bottom_slice_counts_officially() -> None:
    """The prediction lacks slice 2 of 2 to 5, of which 2, 3, 4 count: 2 x 8 / (8 + 12)."""
    assert score_case(column(AORTA, 3, 5), column(AORTA, 2, 5), UNIT, OFFICIAL)["aorta"].dsc == 0.8


def test_prediction_in_the_top_slice_alone_is_nothing_officially() -> None:
    prediction, reference = column(AORTA, 5, 9), column(AORTA, 2, 5)
    assert score_case(prediction, reference, UNIT, OFFICIAL)["aorta"] == Score(0.0, 0.0)
    assert score_case(prediction, reference, UNIT, CORRECTED)["aorta"].dsc == pytest.approx(2 * 4 / (4 + 16))


def test_single_slice_has_no_official_score() -> None:
    reference = column(ESOPHAGUS, 4, 4)
    assert score_case(reference, reference, UNIT, OFFICIAL)["esophagus"] == Score(None, None, NO_OFFICIAL_NUMBER)
    assert score_case(reference, reference, UNIT, CORRECTED)["esophagus"] == Score(1.0, 1.0)
    assert score_case(empty(), reference, UNIT, OFFICIAL)["esophagus"] == Score(0.0, 0.0)
    assert score_case(column(LIVER, 4, 4), column(LIVER, 4, 4), UNIT, OFFICIAL)["liver"] == Score(1.0, 1.0)


def test_single_slice_does_break_the_package() -> None:
    """What the organisers' script comes to then."""
    none = np.zeros((6, 6, 0), dtype=np.bool_)
    with pytest.raises(ValueError, match="zero-size array"):
        surface_distance.compute_surface_distances(none, none, UNIT)


def test_long_axis_of_the_patient_need_not_be_the_first(tmp_path: Path) -> None:
    """Stored with slices along x: officially they are still counted along z, in truth along the patient."""
    reference, prediction = column(AORTA, 3, 7).transpose(2, 1, 0), column(AORTA, 0, 11).transpose(2, 1, 0)
    affine = np.array([[0, 0, -1.0, 0], [0, -1.0, 0, 0], [1.0, 0, 0, 0], [0, 0, 0, 1.0]])  # i is the patient's z
    result = score_written(tmp_path, prediction, reference, affine=affine)
    assert result.scores["corrected"]["aorta"] == Score(1.0, 1.0)
    assert result.scores["official"]["aorta"].dsc == round(2 * 10 / (10 + 24), 4)  # one slice of 2 x 5 and 2 x 12


# --- low DSC, rounding, tolerance ------------------------------------------------------------------------


def test_nsd_is_nothing_below_a_dsc_of_one_fifth() -> None:
    """Rows of 100 voxels with 19 in common.

    Surface elements stand around x = 0 to 100 and 81 to 181, four each, the first and the last on corners. Within
    5 mm lie 76 to 100: 24 on edges, one on a corner.
    """
    prediction, reference = row(LIVER, 81, 100), row(LIVER, 0, 100)
    edge, corner = math.sqrt(0.5), math.sqrt(3) / 8
    assert score_case(prediction, reference, UNIT, OFFICIAL)["liver"] == Score(0.19, 0.0)
    corrected = score_case(prediction, reference, UNIT, CORRECTED)["liver"]
    assert corrected.dsc == 0.19
    assert corrected.nsd == pytest.approx((24 * edge + corner) / (99 * edge + 2 * corner))


def test_nsd_counts_at_a_dsc_of_exactly_one_fifth() -> None:
    """20 in common; within 5 mm lie 75 to 100."""
    edge, corner = math.sqrt(0.5), math.sqrt(3) / 8
    expected = round((25 * edge + corner) / (99 * edge + 2 * corner), 4)
    assert score_case(row(LIVER, 80, 100), row(LIVER, 0, 100), UNIT, OFFICIAL)["liver"] == Score(0.2, expected)


def test_flare22_has_an_nsd_at_any_dsc() -> None:
    rules = PRESETS["flare22"].official
    assert score_case(row(LIVER, 81, 100), row(LIVER, 0, 100), UNIT, rules)["liver"] == Score(0.19, 0.244)


def test_official_scores_have_four_digits() -> None:
    scores = score_case(disturbed(random_labels(1), 1), random_labels(1), (2.5, 0.8, 0.8), OFFICIAL)
    for score in scores.values():
        assert score.dsc is not None and score.nsd is not None
        assert (score.dsc, score.nsd) == (float(f"{score.dsc:.4f}"), float(f"{score.nsd:.4f}"))


def test_distance_of_exactly_the_tolerance_counts_in_truth_whatever_the_header_rounds() -> None:
    """Two slices of liver 5 mm apart (tolerance 5), by an affine that says 5.0000002."""
    spacing = (5.0000002, 1.0, 1.0)
    prediction, reference = column(LIVER, 3, 7), column(LIVER, 2, 6)
    official = score_case(prediction, reference, spacing, OFFICIAL)["liver"].nsd
    assert official is not None and official < 1.0
    assert score_case(prediction, reference, spacing, CORRECTED)["liver"].nsd == 1.0


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_spacing_belongs_to_its_axis(axis: int) -> None:
    """Two voxels of liver (5 mm) side by side: half of the surface is common, the rest one spacing away."""
    reference = empty((6, 6, 6))
    reference[3, 3, 3] = LIVER
    prediction = np.roll(reference, 1, axis)
    near: Vector = (5.0, 5.0, 5.0)
    far: Vector = (5.1 if axis == 0 else 1.0, 5.1 if axis == 1 else 1.0, 5.1 if axis == 2 else 1.0)
    assert score_case(prediction, reference, near, CORRECTED)["liver"].nsd == 1.0
    assert score_case(prediction, reference, far, CORRECTED)["liver"].nsd == pytest.approx(0.5)


# --- the organisers' way, in their axis order -------------------------------------------------------------


def score_written(
    folder: Path, prediction: LabelArray, reference: LabelArray, spacing_zyx_mm: Vector = UNIT, **more: Any
) -> Any:
    """Writes both as NIfTI and scores the files."""
    found = write_scan(folder / "prediction.nii.gz", prediction, spacing_zyx_mm, **more)
    true = write_scan(folder / "reference.nii.gz", reference, spacing_zyx_mm, **more)
    result = score_files(CasePair("x", "x.nii.gz", found, true))
    assert result.error is None, result.error
    return result


def organisers_scores(prediction: Path, reference: Path, year: str = "flare24") -> dict[str, tuple[float, float]]:
    """Their definition in its own terms: nibabel's arrays (x, y, z), the header's zooms, the package.

    FLARE23 has a tumor as well and an NSD from a DSC of 0.1 up, FLARE24 from 0.2 up; FLARE22 computes it always, also
    of an organ that the prediction lacks.
    """
    truth = nib.load(reference)
    zooms = truth.header.get_zooms()
    true_labels, found_labels = (np.uint8(image.get_fdata()) for image in (truth, nib.load(prediction)))
    tolerances = [5, 3, 3, 5, 2, 2, 2, 2, 2, 3, 5, 7, 3, *([2] if year == "flare23" else [])]
    names = [*(organ.name for organ in FLARE_ORGANS), "tumor"]
    scores = {}
    for label, (name, tolerance_mm) in enumerate(zip(names, tolerances, strict=False), start=1):
        wanted, got = true_labels == label, found_labels == label
        if not wanted.any() or (year != "flare22" and not got.any()):
            scores[name] = (float(wanted.any() == got.any()),) * 2
            continue
        if label in (5, 6, 10):
            z = np.flatnonzero(wanted.any(axis=(0, 1)))
            wanted, got = wanted[:, :, z[0] : z[-1]], got[:, :, z[0] : z[-1]]
        dsc, nsd = surface_distance.compute_dice_coefficient(wanted, got), 0.0
        if dsc >= {"flare22": 0.0, "flare23": 0.1, "flare24": 0.2}[year]:
            distances = surface_distance.compute_surface_distances(wanted, got, zooms)
            nsd = surface_distance.compute_surface_dice_at_tolerance(distances, tolerance_mm)
        scores[name] = (float(round(dsc, 4)), float(round(nsd, 4)))
    return scores


@pytest.mark.filterwarnings("ignore::DeprecationWarning:surface_distance.*")
@pytest.mark.parametrize("year", sorted(PRESETS))
@pytest.mark.parametrize("seed", range(2))
def test_each_year_is_scored_as_its_organisers_do(
    year: str, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With organs that only just touch, so that every threshold matters."""
    monkeypatch.setattr(np, "Inf", np.inf, raising=False)  # the package, of an empty mask; NumPy 2 has it no more
    preset = PRESETS[year]
    reference = random_labels(seed, organs=preset.official.largest_label)
    reference[reference == 9] = 0
    prediction = np.roll(disturbed(reference, seed), (1, 3, 2), (0, 1, 2))
    prediction[(prediction == 9) | (prediction == 5) | (prediction == 12)] = 0
    paths = [
        write_scan(tmp_path / f"{name}.nii.gz", labels, (2.5, 1.5, 1.5))
        for name, labels in (("prediction", prediction), ("reference", reference))
    ]
    result = score_files(CasePair("x", "x.nii.gz", paths[0], paths[1]), preset=preset)
    found = {name: (score.dsc, score.nsd) for name, score in result.scores["official"].items()}
    assert found == organisers_scores(paths[0], paths[1], year)
    assert any(
        0 < dsc < 0.2 and (nsd > 0) == (year == "flare22") for dsc, nsd in found.values() if dsc and nsd is not None
    )


def test_the_default_preset_is_official_and_corrected() -> None:
    assert DEFAULT_PRESET.both == (OFFICIAL, CORRECTED)
    assert {name: preset.official.no_nsd_below_dsc for name, preset in PRESETS.items()} == {
        "flare22": 0.0,
        "flare23": 0.1,
        "flare24": 0.2,
    }


def test_missed_organ_on_a_single_slice_has_no_number_in_flare22() -> None:
    """Its script cuts first and looks afterwards; the later ones look first."""
    reference = column(ESOPHAGUS, 4, 4)
    expected = Score(None, None, NO_OFFICIAL_NUMBER)
    assert score_case(empty(), reference, UNIT, PRESETS["flare22"].official)["esophagus"] == expected
    assert score_case(empty(), reference, UNIT, PRESETS["flare23"].official)["esophagus"] == Score(0.0, 0.0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:surface_distance.*")
@pytest.mark.parametrize("spacing_zyx_mm", [(1.0, 1.0, 1.0), (5.0, 0.7, 0.7), (2.5, 1.4648, 0.8203), (1.0, 0.5, 2.0)])
@pytest.mark.parametrize("seed", range(3))
def test_official_equals_the_organisers_way(seed: int, spacing_zyx_mm: Vector, tmp_path: Path) -> None:
    reference = random_labels(seed)
    reference[reference == 9] = 0  # one organ in neither, one in one
    prediction = disturbed(reference, seed)
    prediction[(prediction == 9) | (prediction == 12)] = 0
    result = score_written(tmp_path, prediction, reference, spacing_zyx_mm)
    found = {name: (score.dsc, score.nsd) for name, score in result.scores["official"].items()}
    assert found == organisers_scores(tmp_path / "prediction.nii.gz", tmp_path / "reference.nii.gz")


@pytest.mark.filterwarnings("ignore::DeprecationWarning:surface_distance.*")
def test_official_spacing_is_the_pixdims(tmp_path: Path) -> None:
    """An affine of 2 mm beside a pixdim of 1 mm: the organisers go by the latter."""
    reference = random_labels(5)
    prediction = disturbed(reference, 5)

    def edit(header: Any) -> None:
        header["pixdim"][1:4] = 1.0

    result = score_written(tmp_path, prediction, reference, (2.0, 2.0, 2.0), edit=edit)
    found = {name: (score.dsc, score.nsd) for name, score in result.scores["official"].items()}
    assert found == organisers_scores(tmp_path / "prediction.nii.gz", tmp_path / "reference.nii.gz")
    expected = score_case(prediction, reference, (2.0, 2.0, 2.0), CORRECTED)
    assert result.scores["corrected"] == expected
    assert any("pixdim" in warning for warning in result.warnings)


@pytest.mark.long
def test_labels_of_real_scans_against_themselves_are_perfect(shared_data: Path) -> None:
    for path in sorted((shared_data / "labels").glob("*.nii.gz")):
        result = score_files(CasePair(path.name, path.name, path, path))
        present = set(np.unique(np.asarray(nib.load(path).dataobj)))
        for organ in FLARE_ORGANS:
            assert result.scores["official"][organ.name] == Score(1.0, 1.0)
            expected = Score(1.0, 1.0) if organ.label in present else Score(None, None, IN_NEITHER)
            assert result.scores["corrected"][organ.name] == expected


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning:surface_distance.*")
@pytest.mark.parametrize("case_id", ["ct_002", "ct_005"])
def test_real_predictions_score_as_by_the_organisers_and_by_the_plain_formula(
    shared_data: Path, default_bundle: Path, tmp_path: Path, case_id: str
) -> None:
    from tests.conftest import run_app

    prediction, reference = tmp_path / f"{case_id}.nii.gz", shared_data / "labels" / f"{case_id}.nii.gz"
    scan = shared_data / "images" / f"{case_id}_0000.nii.gz"
    assert run_app("--input", scan, "--output", prediction, "--bundle", default_bundle, "--quiet") == 0
    result = score_files(CasePair(case_id, prediction.name, prediction, reference))
    official = {name: (score.dsc, score.nsd) for name, score in result.scores["official"].items()}
    assert official == organisers_scores(prediction, reference)
    found, true = (np.asarray(nib.load(path).dataobj) for path in (prediction, reference))
    for organ in FLARE_ORGANS:
        if organ.reference_slices_only or organ.label not in true:
            continue
        both = np.sum((found == organ.label) & (true == organ.label))
        plain = 2 * both / (np.sum(found == organ.label) + np.sum(true == organ.label))
        assert result.scores["corrected"][organ.name].dsc == pytest.approx(plain, abs=1e-12)
        if organ.label in found:
            masks = true == organ.label, found == organ.label
            distances = surface_distance.compute_surface_distances(*masks, nib.load(reference).header.get_zooms())
            expected = surface_distance.compute_robust_hausdorff(distances, 95)
            assert result.measures[organ.name].hd95_mm == pytest.approx(expected, abs=1e-4)  # zooms are float32
