"""Robustness and quality: a network that is an oracle on phantoms, so that every number of the tables is known."""

import hashlib
import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from app.bundle import load_bundle
from app.errors import UsageError
from app.plan import Plan, parse_plan
from app.volume import Float32Array, LabelArray, Vector
from app.volume_io import write_label_map
from tests.conftest import ROOT, Oracle, tiny_plan, write_tiny_bundle
from tools.ct import Ct, write_ct
from tools.phantom import make_phantom
from tools.quality.__main__ import analyse
from tools.quality.__main__ import main as quality
from tools.quality.association import Pair, auroc, cluster_interval, spearman, summarise
from tools.quality.report import markdown as of_quality
from tools.robustness.__main__ import main as robustness
from tools.robustness.compare import comparison
from tools.robustness.measure import ORGANS, Networks, measure
from tools.robustness.table import markdown

SPACING, COARSE = (4.0, 8.0, 8.0), (12.0, 20.0, 20.0)


def plan(target_zyx_mm: Vector = SPACING) -> Plan:
    """FLARE's organs on a phantom's own grid, in HU / 100."""
    tiny = parse_plan(json.dumps(tiny_plan()), "plan.json")
    window = replace(tiny.sliding_window, patch_size=(16, 16, 16))
    spacing = replace(tiny.spacing, target_zyx_mm=target_zyx_mm)
    return replace(tiny, labels=ORGANS, spacing=spacing, sliding_window=window, intensity=replace(
        tiny.intensity, clip_hu=(-10000.0, 10000.0), subtract_hu=0.0))  # fmt: skip


def painted(label_map: LabelArray) -> Ct:
    """A scan whose HU are 100 times the label: an oracle can read the label map off it."""
    geometry = make_phantom(2, (90, 40, 40), SPACING).geometry
    return Ct((label_map * np.int16(100)).astype(np.int16), geometry, label_map)


def reads_labels(tile: Float32Array) -> Float32Array:
    """Logits that are largest for the label nearest to HU / 100; what is beyond 13 counts as background."""
    classes = np.arange(14, dtype=np.float32)[:, None, None, None]
    return -np.abs(classes - np.where((tile < 0) | (tile > 13), 0, tile)).astype(np.float32)


def without_liver(tile: Float32Array) -> Float32Array:
    logits = reads_labels(tile)
    logits[1] = -100
    return logits


@pytest.fixture(scope="module")
def truth() -> LabelArray:
    return make_phantom(2, (90, 40, 40), SPACING).label_map


def test_a_perfect_network_is_perfect_on_the_scan_as_it_is(truth: LabelArray) -> None:
    row = measure(Networks(plan(), Oracle(reads_labels), Oracle(without_liver)), "a", painted(truth), "original", 0)
    scored = [values for values in row["organs"].values() if values["reference_ml"] >= 1]
    assert len(scored) > 10
    assert all(values["dsc"] == values["nsd"] == 1.0 for values in scored)
    assert row["organs"]["liver"]["found_ml"] == pytest.approx(np.count_nonzero(truth == 1) * 0.256)
    assert row["organs"]["liver"]["agreement"] == 0.0
    assert row["organs"]["spleen"]["agreement"] == 1.0
    assert all(values["dsc"] is None for values in row["organs"].values() if values["reference_ml"] < 1)


def test_what_is_found_in_the_chest_is_invented(truth: LabelArray) -> None:
    """A box of 2 x 4 x 4 voxels of 0.256 ml near the head is taken for liver: 8.2 ml."""
    scan = painted(truth)
    scan.voxels_hu[86:88, 10:14, 10:14] = 100
    row = measure(Networks(plan(), Oracle(reads_labels)), "a", scan, "chest", 0)
    assert row["invented_ml"]["liver"] == pytest.approx(8.192)
    assert sum(row["invented_ml"].values()) == pytest.approx(8.192)
    assert "aorta" not in row["invented_ml"]
    text = markdown({"command": "c", "bundle": {"name": "b"}, "about_labels": "me", "rows": [row]})
    assert "* a: liver 8.2 ml\n" in text


def test_what_cannot_be_made_is_told_and_not_scored(truth: LabelArray) -> None:
    ct = painted(truth)
    thick = replace(ct, geometry=replace(ct.geometry, spacing_zyx_mm=(5.0, 8.0, 8.0)))
    row = measure(Networks(plan(), Oracle(reads_labels)), "a", thick, "slices-5mm", 0)
    assert row == {"case_id": "a", "kind": "slices-5mm", "skipped": row["skipped"]}
    assert "slices of 5 mm" in row["skipped"]
    text = markdown({"command": "c", "bundle": {"name": "b"}, "about_labels": "me", "rows": [row]})
    assert "* a, slices-5mm: slices of 5 mm" in text
    assert "No scan shows enough of the chest." in text


def made_row(case_id: str, kind: str, **dsc: float) -> dict[str, Any]:
    empty = {"dsc": None, "nsd": None, "reference_ml": 0.0, "found_ml": 0.0, "agreement": None}
    organs = {organ: {**empty} for organ in ORGANS}
    for organ, value in dsc.items():
        organs[organ] |= {"dsc": value, "nsd": value / 2, "agreement": value}
    return {"case_id": case_id, "kind": kind, "skipped": None, "organs": organs}


def test_changes_compare_the_same_organs_of_the_same_scans() -> None:
    """The liver of a falls by 0.2 and its spleen by 0; b, whose slices are thick already, changes no mean."""
    rows = [
        made_row("a", "original", liver=0.9, spleen=0.8),
        made_row("b", "original", liver=0.1),
        made_row("a", "slices-5mm", liver=0.7, spleen=0.8),
        {"case_id": "b", "kind": "slices-5mm", "skipped": "slices of 5 mm"},
    ]
    text = markdown({"command": "c", "bundle": {"name": "b"}, "about_labels": "me", "rows": rows})
    assert "| the scan as it is (`original`) | 2 | 3 | 0.600 | - | 0.300 | - |" in text
    assert "(`slices-5mm`) | 1 | 2 | 0.750 | -0.100 | 0.375 | -0.050 |" in text
    dsc, nsd = text.index("| DSC (scans) |"), text.index("| NSD (scans) |")
    assert dsc < text.index("| liver | 0.500 (2) | 0.700 (1) |") < nsd < text.index("| liver | 0.250 (2) | 0.350 (1) |")
    assert "| pancreas | - | - |" in text


# --- the association --------------------------------------------------------------------------------------


def array(*values: float) -> Any:
    return np.array(values, dtype=np.float64)


def test_rank_correlation_by_hand() -> None:
    """Ranks 1 3 2 and 1 2 3: 1 - 6 * 2 / (3 * 8) = 0.5. Monotone is 1, whatever the curve."""
    assert spearman(array(0.2, 0.9, 0.5), array(0.1, 0.6, 0.8)) == pytest.approx(0.5)
    assert spearman(array(0.1, 0.2, 0.8, 0.9), array(0.0, 0.01, 0.02, 1.0)) == pytest.approx(1.0)
    assert spearman(array(0.1, 0.2, 0.9), array(0.8, 0.5, 0.1)) == pytest.approx(-1.0)
    assert spearman(array(0.1, 0.2), array(0.1, 0.2)) is None
    assert spearman(array(0.5, 0.5, 0.5), array(0.1, 0.2, 0.3)) is None


def test_area_under_the_curve_by_hand() -> None:
    """Bad at 0.3 and 0.8, good at 0.8 and 0.9: 0.3 < both, 0.8 = 0.8, 0.8 < 0.9: 3.5 of 4."""
    assert auroc(array(0.3, 0.8, 0.8, 0.9), array(0.1, 0.69, 0.7, 0.95)) == pytest.approx(0.875)
    assert auroc(array(0.9, 0.2), array(0.1, 0.9)) == 0.0
    assert auroc(array(0.9, 0.2), array(0.8, 0.9)) is None


def test_both_are_scipys() -> None:
    random = np.random.default_rng(0)
    agreement, dsc = random.integers(0, 8, (2, 60)) / 8
    assert spearman(agreement, dsc) == pytest.approx(float(stats.spearmanr(agreement, dsc).statistic))
    good, bad = agreement[dsc >= 0.7], agreement[dsc < 0.7]
    assert auroc(agreement, dsc) == pytest.approx(stats.mannwhitneyu(good, bad).statistic / (good.size * bad.size))


def test_organs_that_neither_found_are_counted_apart() -> None:
    pairs = [
        Pair("a", "original", "liver", 0.9, 0.95),
        Pair("a", "original", "spleen", 0.4, 0.3),
        Pair("b", "original", "liver", 0.6, 0.9),
        Pair("b", "original", "spleen", 0.8, 0.2),
        Pair("b", "original", "pancreas", None, 0.0),
    ]
    found = summarise(pairs, warn_below=0.7)
    assert (found["pairs"], found["scans"], found["missed_by_both"]) == (4, 2, 1)
    assert (found["bad"], found["warned"], found["warned_and_bad"]) == (2, 2, 1)
    # Agreement 0.9 0.4 0.6 0.8 has ranks 4 1 2 3, DSC 0.95 0.3 0.9 0.2 has 4 2 3 1: 1 - 6 * (1 + 1 + 4) / (4 * 15).
    assert found["spearman"] == pytest.approx(0.4)
    assert found["auroc"] == pytest.approx(0.75)
    assert found["spearman_interval"] is None


def test_scans_are_drawn_whole() -> None:
    """Three scans that each hold the same perfect order: every draw is perfect. Two scans say nothing."""
    agreement, dsc = np.tile(array(0.1, 0.5, 0.9), 3), np.tile(array(0.2, 0.6, 0.8), 3)
    cases = np.repeat(["a", "b", "c"], 3)
    assert cluster_interval(spearman, agreement, dsc, cases, 0) == pytest.approx((1.0, 1.0))
    assert cluster_interval(spearman, agreement[:6], dsc[:6], cases[:6], 0) is None
    # Scan c alone runs the other way. In (2/3)^3 of the draws it is missing, in 1/27 it is all there is.
    dsc[6:] = 0.8, 0.6, 0.2
    low, high = cluster_interval(spearman, agreement, dsc, cases, 0) or (0, 0)
    assert (low, high) == pytest.approx((-1.0, 1.0))


# --- the commands -----------------------------------------------------------------------------------------


def test_other_organs_and_a_missing_twin_are_refused(
    tiny_bundle: Path, default_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_case(tmp_path, "a")
    assert robustness(command(tiny_bundle, tmp_path)) == 2
    assert "expected FLARE22's 13 organs" in capsys.readouterr().err
    assert robustness(command(default_bundle, tmp_path, "--uncertainty")) == 2
    assert "has no twin; see `python -m tools.train export --twin`" in capsys.readouterr().err


def test_scans_need_label_maps(default_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_case(tmp_path, "a")
    (tmp_path / "labels" / "a.nii.gz").rename(tmp_path / "labels" / "b.nii.gz")
    assert robustness(command(default_bundle, tmp_path)) == 3
    assert "none with a label map in" in capsys.readouterr().err
    scan = str(tmp_path / "images" / "a_0000.nii.gz")
    assert robustness([*command(default_bundle, tmp_path), "--scans", scan]) == 3
    assert "no a.nii.gz; expected the label map of" in capsys.readouterr().err
    assert robustness([*command(default_bundle, tmp_path), "--scans", f"{scan}.gone"]) == 3
    assert "a_0000.nii.gz.gone: no such scan" in capsys.readouterr().err


def test_a_seed_below_0_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        robustness(command(tmp_path, tmp_path, "--seed", "-1"))
    assert stopped.value.code == 2
    assert "--seed: '-1': expected a whole number from 0" in capsys.readouterr().err


def write_case(folder: Path, case_id: str) -> None:
    phantom = make_phantom(2, (30, 16, 16), COARSE)
    (folder / "images").mkdir(exist_ok=True)
    (folder / "labels").mkdir(exist_ok=True)
    write_ct(folder / "images" / f"{case_id}_0000.nii.gz", phantom.voxels_hu, phantom.geometry)
    write_label_map(folder / "labels" / f"{case_id}.nii.gz", phantom.label_map, phantom.volume)


def command(bundle: Path, folder: Path, *more: str) -> list[str]:
    files = ["--scans", str(folder / "images"), "--labels", str(folder / "labels"), "--out", str(folder / "out")]
    return ["--bundle", str(bundle), *files, "--threads", "1", *more]


def test_from_scans_to_tables_and_a_second_run_adds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    networks = Networks(plan(COARSE), Oracle(reads_labels), Oracle(without_liver))
    monkeypatch.setattr("tools.robustness.__main__.load_networks", lambda *_: networks)
    bundle = write_tiny_bundle(tmp_path / "bundle")
    write_case(tmp_path, "a")
    write_case(tmp_path, "b")
    kinds = ("--kinds", "original", "hu+40", "--uncertainty")
    assert robustness(command(bundle, tmp_path, *kinds)) == 0
    record = json.loads((tmp_path / "out" / "robustness.json").read_text())
    assert [(row["case_id"], row["kind"]) for row in record["rows"]] == [
        ("a", "original"), ("a", "hu+40"), ("b", "original"), ("b", "hu+40"),
    ]  # fmt: skip
    assert record["command"].startswith("python -m tools.robustness --bundle")
    calls = networks.predictor.calls  # type: ignore[attr-defined]
    assert robustness(command(bundle, tmp_path, *kinds)) == 0
    assert networks.predictor.calls == calls  # type: ignore[attr-defined]
    assert robustness(command(bundle, tmp_path, *kinds, "--seed", "1")) == 2
    assert "another seed; choose another --out" in capsys.readouterr().err
    assert quality([str(tmp_path / "out" / "robustness.json"), "--out", str(tmp_path / "quality")]) == 0
    found = json.loads((tmp_path / "quality" / "quality.json").read_text())
    assert found == {**analyse(record, found["command"]), "measured_with": found["measured_with"]}
    assert found["organs"]["spleen"]["pairs"] + found["organs"]["spleen"]["missed_by_both"] == 4
    assert "| spleen | " in (tmp_path / "quality" / "quality.md").read_text()
    assert (tmp_path / "quality" / "quality.png").read_bytes().startswith(b"\x89PNG")
    some = [str(tmp_path / "out" / "robustness.json"), "--out", str(tmp_path / "some"), "--cases"]
    case_id = found["pairs"][0]["case_id"]
    assert quality([*some, case_id]) == 0
    pairs = json.loads((tmp_path / "some" / "quality.json").read_text())["pairs"]
    assert pairs == [pair for pair in found["pairs"] if pair["case_id"] == case_id]
    assert quality([*some, "nobody"]) == 2
    assert "--cases nobody: not in " in capsys.readouterr().err


def test_one_bad_case_does_not_lose_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """b holds no scan and is mended; then a is another one than that of the rows that are there."""
    networks = Networks(plan(COARSE), Oracle(reads_labels))
    monkeypatch.setattr("tools.robustness.__main__.load_networks", lambda *_: networks)
    bundle = write_tiny_bundle(tmp_path / "bundle")
    for name in "abc":
        write_case(tmp_path, name)
    images = tmp_path / "images"
    whole = (images / "b_0000.nii.gz").read_bytes()
    (images / "b_0000.nii.gz").write_bytes(b"no scan")
    arguments = command(bundle, tmp_path, "--kinds", "original")
    assert robustness(arguments) == 1
    assert "b_0000.nii.gz" in capsys.readouterr().err
    record = tmp_path / "out" / "robustness.json"
    assert [row["case_id"] for row in json.loads(record.read_text())["rows"]] == ["a", "c"]
    assert "scans a, c" in (tmp_path / "out" / "robustness.md").read_text()
    (images / "b_0000.nii.gz").write_bytes(whole)
    assert robustness(arguments) == 0
    assert [row["case_id"] for row in json.loads(record.read_text())["rows"]] == ["a", "c", "b"]
    other = make_phantom(3, (30, 16, 16), COARSE)
    write_ct(images / "a_0000.nii.gz", other.voxels_hu, other.geometry)
    assert robustness(arguments) == 1
    assert "a_0000.nii.gz: it or its label map is not what earlier rows are of; use --again" in capsys.readouterr().err
    assert robustness([*arguments, "--again"]) == 0
    assert [row["case_id"] for row in json.loads(record.read_text())["rows"]] == ["a", "b", "c"]
    for name in "abc":
        (images / f"{name}_0000.nii.gz").write_bytes(b"no scan")
    assert robustness([*arguments, "--again"]) == 1
    assert not record.exists()  # the forgotten rows do not come back
    record.write_text("[]")
    assert robustness(arguments) == 2
    scans = ["--scans", str(images), str(images / "a_0000.nii.gz")]
    assert robustness([*arguments, *scans]) == 2
    assert "are both called a; expected each name once" in capsys.readouterr().err
    assert robustness([*arguments, "--labels", str(images)]) == 2
    assert "the folder of the scans" in capsys.readouterr().err


def test_rows_of_another_precision_are_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    networks = Networks(plan(COARSE), Oracle(reads_labels))
    monkeypatch.setattr("tools.robustness.__main__.load_networks", lambda *_: networks)
    write_case(tmp_path, "a")
    arguments = command(write_tiny_bundle(tmp_path / "bundle"), tmp_path, "--kinds", "original")
    assert robustness(arguments) == 0
    monkeypatch.setattr(networks.predictor, "precision", "bf16")
    assert robustness(arguments) == 2
    assert "another network; choose another --out, or --again" in capsys.readouterr().err


def test_a_record_without_agreement_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "record.json").write_text('{"uncertainty": false}')
    for name, words in (("record.json", "no agreement in it"), ("missing.json", "cannot be read")):
        assert quality([str(tmp_path / name), "--out", str(tmp_path / "out")]) == 2
        assert words in capsys.readouterr().err


def test_bundles_side_by_side(truth: LabelArray, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the second network's organs only the liver, which it does not find, is worse."""
    for name, reads in (("all", reads_labels), ("none", without_liver)):
        networks = Networks(plan(), Oracle(reads))
        rows = [measure(networks, case_id, painted(truth), "original", 0) for case_id in ("a", "b")]
        (tmp_path / f"{name}.json").write_text(json.dumps({"about_labels": "drawn", "seed": 0, "rows": rows}))
    files = [f"{name}={tmp_path / name}.json" for name in ("all", "none")]
    out = tmp_path / "table.md"
    assert robustness(["compare", *files, "--out", str(out)]) == 0
    text = out.read_text()
    assert text == capsys.readouterr().out
    organs = sum(values["reference_ml"] >= 1 for values in rows[0]["organs"].values())
    assert organs > 10
    assert f"{2 * organs} organs" in text
    assert "| | all | none |" in text
    assert f"| mean DSC | 1.000 | {1 - 1 / organs:.3f} |" in text
    assert "| organs whose DSC is lower by more than 0.02 | - | 2 |" in text
    assert text.count("| liver | 1.000 | 0.000 |") == 2

    assert robustness(["compare", *files, "--kind", "slab-45mm", "--out", str(out)]) == 2
    assert "no scan of the kind slab-45mm" in capsys.readouterr().err
    for row in rows:
        for values in row["organs"].values():
            values |= {"reference_ml": 0.5, "dsc": None, "nsd": None}
    nothing = {"a": {"about_labels": "drawn", "seed": 0, "rows": rows}}
    with pytest.raises(UsageError, match="a: no organ of 1 ml"):
        comparison(nothing, "original", "c")
    records: list[Any] = [{"about_labels": "drawn", "seed": 0, "rows": rows}, {}, []]
    for wrong in records:
        (tmp_path / "none.json").write_text(json.dumps(wrong))
        assert robustness(["compare", *files, "--out", str(out)]) == 2
    (tmp_path / "none.json").write_text("{")
    assert robustness(["compare", *files, "--out", str(out)]) == 2
    assert robustness(["compare", files[0], files[0], "--out", str(out)]) == 2


def compared(dsc: float, **more: Any) -> dict[str, Any]:
    """A record of one scan whose liver has this DSC."""
    row = made_row("a", "original", liver=dsc)
    row["organs"]["liver"]["reference_ml"] = 9.0
    return {"about_labels": "drawn", "seed": 0, "rows": [row], **more}


def test_a_difference_of_002_is_not_more_than_that() -> None:
    """0.900 - 0.880 is 0.02 and a bit in binary."""
    for worse, count in ((0.88, 0), (0.8799, 1)):
        text = comparison({"a": compared(0.9), "b": compared(worse)}, "original", "c")
        assert f"lower by more than 0.02 | - | {count} |" in text


def test_a_bar_in_a_name_is_no_column() -> None:
    text = comparison({"a|b": compared(0.9), "c": compared(0.9)}, "original", "c")
    assert "\n| | a\\|b | c |\n|---|---|---|\n" in text


def test_only_the_same_voxels_are_compared() -> None:
    """Records from before there were digests, and cases that are not shown, compare as they did."""
    one, other, before = compared(0.9, contents={"a": "1", "b": "1"}), compared(0.9, contents={"a": "2"}), compared(0.9)
    with pytest.raises(UsageError, match="one, other: other voxels of a; expected one SHA-256"):
        comparison({"before": before, "one": one, "other": other}, "original", "c")
    same = compared(0.9, contents={"a": "1", "b": "2"})
    assert "| mean DSC | 0.900 | 0.900 | 0.900 |" in comparison(
        {"one": one, "same": same, "before": before}, "original", "c"
    )


@pytest.mark.parametrize(
    "row",
    [
        {},
        [],
        {"case_id": "a", "kind": "original", "skipped": None},
        {"case_id": "a", "kind": "original", "skipped": None, "organs": {"liver": {"dsc": 0.9}}},
    ],
)
def test_what_is_no_row_is_named(row: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "whole.json").write_text(json.dumps(compared(0.9)))
    (tmp_path / "cut.json").write_text(json.dumps({"rows": [row], "seed": 0, "about_labels": "x"}))
    files = [f"{name}={tmp_path / name}.json" for name in ("whole", "cut")]
    assert robustness(["compare", *files, "--out", str(tmp_path / "table.md")]) == 2
    assert f"{tmp_path / 'cut.json'}: rows[0]: expected case_id, kind, skipped and" in capsys.readouterr().err


def test_the_recorded_comparisons_are_as_the_tool_writes_them() -> None:
    tables = sorted((ROOT / "weights" / "training" / "comparisons").glob("*.md"))
    assert tables
    for path in tables:
        text = path.read_text(encoding="utf-8")
        command = text.partition("\n")[0].strip("`")
        pairs = [word.partition("=") for word in shlex.split(command) if "=" in word]
        records = {name: json.loads((ROOT / file).read_text(encoding="utf-8")) for name, _, file in pairs}
        assert comparison(records, "original", command) == text


def test_the_default_networks_card_shows_its_twins_recorded_run(default_bundle: Path) -> None:
    """As the tool wrote it, of another network under the same plan; the chests are of the one that is shipped."""
    records = ROOT / "weights" / "training"
    held_out, learnt = (
        json.loads((records / folder / "robustness.json").read_text(encoding="utf-8"))
        for folder in ("held_out", "learnt")
    )
    assert markdown(held_out).rstrip() in (default_bundle / "MODEL_CARD.md").read_text(encoding="utf-8")
    plan = (default_bundle / "plan.json").read_text(encoding="utf-8")
    plan_of_twin = plan.replace('"name": "compact-3d"', '"name": "compact-3d-twin"')
    assert held_out["bundle"]["plan.json"] == hashlib.sha256(plan_of_twin.encode()).hexdigest()
    assert learnt["bundle"]["network.onnx"] == load_bundle(default_bundle).sha256["network.onnx"]
    assert markdown(learnt) == (records / "learnt" / "robustness.md").read_text(encoding="utf-8")


def test_the_recorded_agreement_has_its_table() -> None:
    """As the tool writes it."""
    results = ROOT / "tools" / "quality" / "results"
    for folder in (results, results / "held_out"):
        found = json.loads((folder / "quality.json").read_text(encoding="utf-8"))
        assert of_quality(found) == (folder / "quality.md").read_text(encoding="utf-8")
