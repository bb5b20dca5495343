"""Intervals, tests and tables: worked by hand, and beside SciPy's bootstrap."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from tests.conftest import write_scan
from tools.evaluate import box_plots
from tools.evaluate.__main__ import main
from tools.evaluate.cases import CasePair
from tools.evaluate.flare import FLARE_ORGANS, Score
from tools.evaluate.measures import Measures
from tools.evaluate.presets import PRESETS
from tools.evaluate.record import build_record, json_text
from tools.evaluate.scoring import CaseScores
from tools.evaluate.significance import bootstrap_intervals, holm, signed_rank

ALL = np.ones(1, dtype=np.bool_)


def case(case_id: str, dsc: float | None, preset: str) -> CaseScores:
    """One case whose organs all have the same scores; no organ is there if ``dsc`` is None."""
    organs = PRESETS[preset].official.organs
    scores = {organ.name: Score(dsc, dsc) for organ in organs}
    error = None if dsc is None else dsc - 1
    measures = {organ.name: Measures(2.0, error, 10.0, 20.0) for organ in organs}
    pair = CasePair(case_id, f"{case_id}.nii.gz", Path("p"), Path("r"))
    return CaseScores(pair, scores={"official": scores, "corrected": scores}, measures=measures)


def write_scores(path: Path, dsc_by_case: Mapping[str, float | None], preset: str = "flare24") -> Path:
    results = [case(case_id, dsc, preset) for case_id, dsc in dsc_by_case.items()]
    failed = CaseScores(CasePair("lost", "lost.nii.gz", Path("p"), Path("r")), error="gone")
    path.parent.mkdir(exist_ok=True)
    path.write_text(json_text(build_record([*results, failed], {}, preset=PRESETS[preset])))
    return path


def compare(tmp_path: Path, first: Path, second: Path, *more: str) -> Any:
    assert main(["compare", f"baseline={first}", f"CPS={second}", "--out", str(tmp_path / "out"), *more]) == 0
    return json.loads((tmp_path / "out" / "comparison.json").read_text())


# --- bootstrap -------------------------------------------------------------------------------------------


def test_two_cases_span_their_interval() -> None:
    """Of four resamples one is twice the first case, one twice the second: both beyond the 2.5 % at either end."""
    organs, overall = bootstrap_intervals(np.array([[0.0], [1.0]]), ALL)
    assert organs == [(0.0, 1.0)]
    assert overall == (0.0, 1.0)


def test_organs_of_one_case_stay_together() -> None:
    """Each case has 0 for one organ and 1 for the other: every mean over organs is 0.5."""
    organs, overall = bootstrap_intervals(np.array([[0.0, 1.0], [1.0, 0.0]]), np.ones(2, dtype=np.bool_))
    assert organs == [(0.0, 1.0), (0.0, 1.0)]
    assert overall == (0.5, 0.5)


@pytest.mark.parametrize("cases", [5, 40])
def test_intervals_are_scipys(cases: int) -> None:
    values = np.random.default_rng(3).beta(8, 2, size=cases)
    expected = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=1).confidence_interval
    (found,), _ = bootstrap_intervals(values[:, None], ALL)
    assert found == pytest.approx(tuple(expected), abs=0.004)


def test_equal_seeds_give_equal_intervals_and_one_value_gives_none() -> None:
    values = np.array([[0.1, np.nan, 0.3], [0.5, np.nan, np.nan], [0.9, np.nan, np.nan]])
    used = np.ones(3, dtype=np.bool_)
    first, overall = bootstrap_intervals(values, used)
    assert (first, overall) == bootstrap_intervals(values, used)
    many = np.random.default_rng(0).random((9, 3))
    assert bootstrap_intervals(many, used)[1] != bootstrap_intervals(many, used, seed=1)[1]
    assert first[0] is not None and first[1:] == [None, None]
    assert overall is not None
    assert bootstrap_intervals(values[:1], used) == ([None] * 3, None)
    assert bootstrap_intervals(values[:0], used) == ([None] * 3, None)


def test_a_tumour_is_not_in_the_mean_over_organs() -> None:
    values = np.array([[0.5, 0.0], [0.5, 1.0]])
    assert bootstrap_intervals(values, np.array([True, False]))[1] == (0.5, 0.5)


# --- Wilcoxon, Holm --------------------------------------------------------------------------------------


def test_six_cases_of_one_mind() -> None:
    """2 of the 2^6 ways to give signs are this far out."""
    found = signed_rank(np.zeros(6), np.arange(1.0, 7.0))
    assert (found.pairs, found.unequal_pairs, found.p_value, found.note) == (6, 6, 2 / 64, None)


def test_signs_against_each_other() -> None:
    """Ranks 1 to 5 up, 6 down. Of the subsets of 1 to 6, 14 have a sum of at most 6: 1 1 1 2 2 3 4 for 0 to 6."""
    found = signed_rank(np.zeros(6), np.array([1.0, 2.0, 3.0, 4.0, 5.0, -6.0]))
    assert found.p_value == pytest.approx(2 * 14 / 64)


def test_too_few_cases_say_nothing() -> None:
    found = signed_rank(np.zeros(5), np.arange(1.0, 6.0))
    assert found.smallest_p_value == 2 / 32
    assert found.note == "nothing can be said: p is 0.0625 at best (unequal pairs: 5)"


def test_equal_and_missing_pairs_say_nothing() -> None:
    first, second = np.array([0.5, np.nan, 0.7, 0.9]), np.array([0.5, 0.6, np.nan, 0.9])
    found = signed_rank(first, second)
    assert (found.pairs, found.unequal_pairs, found.p_value) == (2, 0, None)
    assert found.note == "the methods are equal in every case"
    assert signed_rank(first[1:2], second[1:2]).note == "no case has a value by both"


def test_rounding_makes_no_rank() -> None:
    """All differences are 0.1, of which floating point has several: ties, which share a rank."""
    first = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    assert len({*(first + 0.1 - first)}) > 1
    assert signed_rank(first, first + 0.1).p_value == signed_rank(np.zeros(7), np.ones(7)).p_value == 2 / 2**7


def test_holm_by_hand() -> None:
    """0.01 x 3, 0.03 x 2, 0.04 x 1, which must not be below the one before."""
    assert holm([0.01, None, 0.04, 0.03]) == pytest.approx([0.03, None, 0.06, 0.06])
    assert holm([0.7, 0.9]) == [1.0, 1.0]


# --- the command -----------------------------------------------------------------------------------------


def test_two_methods_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """0.1 better in each of six cases; in another order, and with a case that only one of them has."""
    baseline = {f"c{i}": 0.4 + 0.05 * i for i in range(6)}
    first = write_scores(tmp_path / "a" / "scores.json", baseline)
    better = {name: value + 0.1 for name, value in reversed(baseline.items())} | {"extra": 0.0}
    second = write_scores(tmp_path / "b" / "scores.json", better)
    found = compare(tmp_path, first, second)
    assert found["cases"] == list(baseline)
    assert found["left_out"] == ["extra", "lost"]
    for entry in (*found["metrics"]["dsc"]["organs"].values(), found["metrics"]["dsc"]["all_organs"]):
        assert entry["methods"]["baseline"]["mean"] == pytest.approx(0.525)
        assert entry["methods"]["CPS"]["mean"] == pytest.approx(0.625)
        against = entry["against_first"]["CPS"]
        assert against["difference"] == pytest.approx(0.1)
        assert against["interval"] == pytest.approx([0.1, 0.1])
        assert against["test"]["p_value"] == 2 / 64
    assert found["metrics"]["dsc"]["organs"]["liver"]["against_first"]["CPS"]["test"]["p_value_holm"] == 13 * 2 / 64
    hd95 = found["metrics"]["hd95_mm"]["organs"]["liver"]["against_first"]["CPS"]["test"]
    assert (hd95["p_value"], hd95["note"]) == (None, "the methods are equal in every case")
    table = (tmp_path / "out" / "comparison.md").read_text()
    assert capsys.readouterr().out == table
    row = next(line for line in table.splitlines() if line.startswith("| Liver"))
    assert row.startswith("| Liver | 0.5250 (") and " | **0.6250 (" in row
    with (tmp_path / "out" / "comparison.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["metric"] == "dsc" and row["organ"] == "liver"]
    assert [row["difference"] for row in rows] == [
        "",
        str(found["metrics"]["dsc"]["organs"]["liver"]["against_first"]["CPS"]["difference"]),
    ]
    with Image.open(tmp_path / "out" / "boxplots.png") as picture:
        assert picture.width > picture.height > 600


def test_a_bar_in_a_name_is_no_column(tmp_path: Path) -> None:
    scores = write_scores(tmp_path / "scores.json", {"x": 0.5})
    assert main(["compare", f"a|b={scores}", f"c={scores}", "--out", str(tmp_path / "out"), "--no-pictures"]) == 0
    lines = (tmp_path / "out" / "comparison.md").read_text().splitlines()
    assert lines[2:4] == ["|  | DSC a\\|b | DSC c | NSD a\\|b | NSD c |", "| --- | ---: | ---: | ---: | ---: |"]


def test_pictures_show_the_cases_of_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    monkeypatch.setattr(box_plots, "_draw_panel", lambda axes, metric, values, columns: shown.append(values))
    first = write_scores(tmp_path / "a" / "scores.json", {"x": 0.9, "hard": 0.1})
    second = write_scores(tmp_path / "b" / "scores.json", {"x": 0.9})
    assert compare(tmp_path, first, second)["cases"] == ["x"]
    assert [[len(found) for found in values] for values in shown] == [[1, 1]] * 4


def test_what_one_method_lacks_is_in_no_pair(tmp_path: Path) -> None:
    first = write_scores(tmp_path / "a" / "scores.json", {"x": 0.5, "y": None})
    second = write_scores(tmp_path / "b" / "scores.json", {"x": 0.6, "y": 0.0})
    found = compare(tmp_path, first, second, "--rules", "corrected", "--quiet", "--no-pictures")
    liver = found["metrics"]["dsc"]["organs"]["liver"]
    assert liver["methods"]["baseline"] == {"mean": 0.5, "interval": None, "cases": 1}
    assert liver["methods"]["CPS"]["mean"] == 0.3
    assert liver["against_first"]["CPS"]["cases"] == liver["against_first"]["CPS"]["test"]["pairs"] == 1
    assert "nothing can be said" in (tmp_path / "out" / "comparison.md").read_text()


def test_an_organ_on_a_single_slice_counts_only_for_who_misses_it(tmp_path: Path) -> None:
    """The organisers' script has no number for a right aorta there, and 0 for a missing one."""
    liver_and_aorta = np.zeros((4, 6, 6), dtype=np.uint8)
    liver_and_aorta[:, :2, :2] = 1
    liver_and_aorta[2, 4:, 4:] = 5
    without = np.where(liver_and_aorta == 5, 0, liver_and_aorta).astype(np.uint8)
    scores = []
    for name, prediction in (("misses", without), ("right", liver_and_aorta)):
        for folder, voxels in (("predictions", prediction), ("references", liver_and_aorta)):
            (tmp_path / name / folder).mkdir(parents=True)
            write_scan(tmp_path / name / folder / "x.nii.gz", voxels, (2.0, 2.0, 2.0))
        words = [f"--{folder}={tmp_path / name / folder}" for folder in ("predictions", "references")]
        assert main([*words, "--out", str(tmp_path / name), "--no-pictures", "--quiet"]) == 0
        record = json.loads((tmp_path / name / "scores.json").read_text())
        record["settings"]["references"] = "truth"
        scores.append(tmp_path / name / "scores.json")
        scores[-1].write_text(json.dumps(record))
    found = compare(tmp_path, scores[0], scores[1], "--no-pictures")
    assert found["metrics"]["dsc"]["organs"]["aorta"]["methods"]["baseline"]["mean"] == 0
    assert found["metrics"]["dsc"]["organs"]["aorta"]["methods"]["CPS"]["mean"] is None
    remark = "aorta has official DSC and NSD in unequal numbers of cases (1 of baseline, 0 of CPS)"
    assert found["remarks"] == [remark]
    assert f"Not scored alike: {remark}." in (tmp_path / "out" / "comparison.md").read_text()
    assert compare(tmp_path, scores[0], scores[1], "--no-pictures", "--rules", "corrected")["remarks"] == []


def test_help_does_not_promise_every_method_a_value(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["compare", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "Every method has a value in every case but for an aorta, vena cava or esophagus" in text


def test_what_cannot_be_compared_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = write_scores(tmp_path / "a" / "scores.json", {"x": 0.5})
    other = write_scores(tmp_path / "b" / "scores.json", {"y": 0.5})
    year = write_scores(tmp_path / "c" / "scores.json", {"x": 0.5}, preset="flare23")
    old = tmp_path / "old.json"
    old.write_text('{"schema_version": 1}')
    out = ["--out", str(tmp_path / "out")]
    for second, code, named in (
        (f"B={other}", 1, "no case that all of them have scores of"),
        (f"B={year}", 1, "scored by preset flare23; expected flare24"),
        (f"B={old}", 3, "old.json: schema_version 1; expected"),
        (f"B={tmp_path / 'none.json'}", 3, "none.json: cannot be read"),
        (f"B={__file__}", 3, "no JSON"),
        (str(other), 2, "expected two or more NAME=scores.json"),
        (f"A={other}", 2, "each with a name of its own"),
    ):
        assert main(["compare", f"A={first}", second, *out]) == code
        assert named in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_a_record_lacks_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = json.loads(write_scores(tmp_path / "a" / "scores.json", {"x": 0.5}).read_text())
    cut = tmp_path / "cut.json"

    def refusal(content: Any) -> str:
        cut.write_text(json.dumps(content))
        assert main(["compare", f"A={tmp_path / 'a' / 'scores.json'}", f"B={cut}", "--out", str(tmp_path / "out")]) == 3
        return capsys.readouterr().err

    bare = {"schema_version": 2, "cases": [], "organs": []}
    assert f"{cut}: no settings, preset, mean, interval; expected a whole scores.json" in refusal(bare)
    del whole["mean"]["official"]["organs"]["liver"]["nsd"]
    del whole["cases"][0]["measures"]["organs"]["spleen"]
    assert f"{cut}: no mean.official.organs.liver.nsd, cases[0].measures.organs.spleen;" in refusal(whole)
    no_lists = refusal(whole | {"organs": {}, "cases": [1]})
    assert "no organs that is a list, cases[0] that is an object;" in no_lists
    assert "cases[0].status, cases[0].error and 2 more;" in refusal(bare | {"mean": 1, "cases": [{}]})


def test_columns_are_the_organs_of_the_preset(tmp_path: Path) -> None:
    record = json.loads(write_scores(tmp_path / "a" / "scores.json", {"x": 0.5}, preset="flare23").read_text())
    assert [organ["column"] for organ in record["organs"]] == [*(organ.column for organ in FLARE_ORGANS), "Tumor"]


def test_methods_that_were_not_scored_alike_are_said(tmp_path: Path) -> None:
    first = write_scores(tmp_path / "a" / "scores.json", {"x": 0.5})
    second = write_scores(tmp_path / "b" / "scores.json", {"x": 0.6})
    assert compare(tmp_path, first, second)["remarks"] == []
    record = json.loads(second.read_text())
    record["settings"] = {"references": "truth", "ignore_geometry": True}
    second.write_text(json.dumps(record))
    remarks = compare(tmp_path, first, second)["remarks"]
    assert remarks[0] == "CPS was scored with references truth, baseline with None"
    assert remarks[1] == "CPS was scored with --ignore-geometry True, baseline with None"
    assert f"Not scored alike: {remarks[0]}" in (tmp_path / "out" / "comparison.md").read_text()
