"""The report without a browser: what is packed, thinned, judged, and said to be missing."""

import base64
import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from app.volume import Geometry, LabelArray, Shape, Vector, Volume
from tests.small_report import (
    SHAPE,
    app_report,
    organs,
    run,
    save,
    scan,
    write_cases,
    write_everything,
    write_harness,
    write_run,
)
from tools.figures.labelled_scan import LabelledScan
from tools.report.__main__ import main as report
from tools.report.case_table import case_columns
from tools.report.content import build_page
from tools.report.curves import thin
from tools.report.limits import flare_limits
from tools.report.measured import Measured, Run, read_measured
from tools.report.page import as_script_data
from tools.report.volumes import GREY_KNOTS, averaging_matrix, grey_levels, pack, pack_volumes, page_grid


class Elements(HTMLParser):
    """The text of the elements that have an id, of scripts above all."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: dict[str, str] = {}
        self._open: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open = dict(attrs).get("id") if tag == "script" else None
        if found := dict(attrs).get("id"):
            self.texts[found] = ""

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts[self._open] += data

    def handle_endtag(self, tag: str) -> None:
        self._open = None


def read_page(page: Path) -> tuple[str, dict[str, str], Any]:
    """(all of it, texts by id, the script's data)."""
    text, elements = page.read_text(encoding="utf-8"), Elements()
    elements.feed(text)
    return text, elements.texts, json.loads(elements.texts["report-data"])


def unpack(text: str, shape: Shape) -> npt.NDArray[np.uint8]:
    steps = np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=np.uint8).reshape(shape)
    return np.cumsum(steps, axis=-1, dtype=np.uint8)  # modulo 256


def labelled(voxels: npt.NDArray[Any], labels: LabelArray, spacing: Vector) -> LabelledScan:
    z, y, x = voxels.shape
    geometry = Geometry((z, y, x), spacing, ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)), (0.0, 0.0, 0.0))
    return LabelledScan(Volume(voxels, geometry), labels, ("liver", "right kidney", "spleen"))


def test_averaging_by_hand() -> None:
    assert averaging_matrix(3, 2) == pytest.approx(np.array([[2, 1, 0], [0, 1, 2]]) / 3)
    assert averaging_matrix(4, 4) == pytest.approx(np.eye(4))
    assert averaging_matrix(512, 179).sum(axis=1) == pytest.approx(np.ones(179), abs=1e-5)


def test_the_pages_grid_is_2_mm_or_the_scans_own() -> None:
    shape, spacing = page_grid((35, 512, 512), (5.0, 0.7, 0.7), 2.0)
    assert shape == (35, 179, 179)
    assert spacing == pytest.approx((5.0, 358.4 / 179, 358.4 / 179))


def test_grey_levels_are_fine_in_the_abdomen() -> None:
    assert grey_levels(np.array([-1024, -200, 0, 300, 1500, 3000], np.float32)).tolist() == [0, 40, 110, 215, 255, 255]
    hu = np.arange(-200, 301, dtype=np.float32)
    known, levels = zip(*GREY_KNOTS, strict=True)
    assert np.abs(np.interp(grey_levels(hu), levels, known) - hu).max() < 1.5


def test_what_is_packed_comes_back() -> None:
    voxels = np.random.default_rng(0).integers(0, 256, (3, 4, 5), dtype=np.uint8)
    assert np.array_equal(unpack(pack(voxels), (3, 4, 5)), voxels)


def test_voxels_of_the_page_by_hand() -> None:
    """2 x 2 x 2 voxels of 1 mm become one of 2 mm: the mean of the scan, a label of one of them."""
    voxels = np.array([0, 0, 0, 0, 200, 200, 200, 200], dtype=np.int16).reshape(2, 2, 2).repeat(2, axis=2)
    labels = np.zeros((2, 2, 4), dtype=np.uint8)
    labels[:, :, 2:] = 3
    packed = pack_volumes([labelled(voxels, labels, (1.0, 1.0, 1.0))])
    assert packed.shape_zyx == (1, 1, 2)
    assert unpack(packed.scan, (1, 1, 2)).ravel().tolist() == [145, 145]  # 100 HU
    assert unpack(packed.label_maps[0], (1, 1, 2)).ravel().tolist() == [0, 3]


def test_a_case_that_is_too_large_becomes_coarser() -> None:
    noise = np.random.default_rng(0).integers(-200, 300, (32, 32, 32)).astype(np.int16)
    found = [labelled(noise, np.zeros(noise.shape, dtype=np.uint8), (2.0, 2.0, 2.0))]
    whole = pack_volumes(found)
    assert whole.shape_zyx == (32, 32, 32)
    smaller = pack_volumes(found, whole.size_bytes - 1)
    assert smaller.size_bytes < whole.size_bytes
    assert smaller.spacing_zyx_mm == pytest.approx((64 / 26,) * 3)  # 2.5 mm: 25.6 voxels, rounded


def test_thin_curves_keep_their_peaks() -> None:
    points = [(float(time), value) for time, value in enumerate([0.0, 5.0, 1.0, 2.0, 9.0, 3.0])]
    assert thin(points, 4) == [(0.0, 0.0), (1.0, 5.0), (3.0, 2.0), (4.0, 9.0)]
    assert thin(points, 6) == points
    spike = [(index / 10, 1000.0 if index == 7777 else 1.0) for index in range(36000)]
    kept = thin(spike)
    assert len(kept) <= 1500
    assert (777.7, 1000.0) in kept
    assert kept == sorted(kept)


@pytest.mark.parametrize(("gpu_mib", "verdict"), [(2048.0, "within"), (2048.5, "above"), (None, "not measured")])
def test_limits(tmp_path: Path, gpu_mib: float | None, verdict: str) -> None:
    """One of two cases was stuck: its penalty makes the mean (10 + 3600) / 2."""
    write_harness(tmp_path, {"a": 10.0, "b": 3600.0}, gpu_mib)
    limits = {limit.name: limit for limit in flare_limits(read_measured(tmp_path, None))}
    assert limits["GPU memory"].verdict == verdict
    assert (limits["time of a case, mean"].found, limits["time of a case, mean"].verdict) == (1805.0, "above")
    assert (limits["memory"].found, limits["memory"].where) == (500.0, "b_0000")
    assert limits["memory, laptop track"].verdict == "within"


@pytest.mark.parametrize("status", ["stuck", "failed"])
def test_a_case_without_a_label_map_is_not_within_the_time(tmp_path: Path, status: str) -> None:
    """It ended after 10 s, as the other did; the organisers count 3600 s."""
    harness = write_harness(tmp_path, {"a": 10.0, "b": 3600.0}) / "harness.json"
    content = json.loads(harness.read_text())
    content["cases"][1]["status"] = status
    harness.write_text(json.dumps(content))
    (limit,) = (each for each in flare_limits(read_measured(tmp_path, None)) if each.name == "time of a case")
    assert (limit.found, limit.verdict, limit.where) == (3600.0, "above", "b_0000")


NOTHING_BUT_TIME = {"own": {"memory": None}, "gpu": None}


def judged(status: str, seconds: float, profile: Mapping[str, Any] | None = None) -> Run:
    return Run(f"{status}_0000", status, status=status, seconds=seconds, profile=profile)


def test_the_time_of_a_run_is_of_those_that_ended_well() -> None:
    """One failed at once, one was stopped by hand; the two that ended well took 10 and 12 s."""
    runs = [judged("failed", 0.5), judged("ok", 10.0), judged("interrupted", 2.0), judged("ok", 12.0)]
    page = build_page("", "", {"a": "not among --view"}, Measured(runs), None, Path())
    (tile,) = (tile for tile in page.tiles if tile.title == "time of a run")
    assert (tile.text, tile.remark) == ("11.0", "mean; longest 12.0 s; 2 not ok left out")
    page = build_page("", "", {"a": "not among --view"}, Measured(runs[:1]), None, Path())
    assert "time of a run" not in {tile.title for tile in page.tiles}
    page = build_page("", "", {"a": "not among --view"}, Measured([Run("a", None, seconds=4.0)]), None, Path())
    assert [tile.remark for tile in page.tiles if tile.title == "time of a run"] == ["mean; longest 4.0 s"]


def test_an_interrupted_run_is_within_no_limit() -> None:
    (limit, *_) = flare_limits(Measured([judged("interrupted", 2.0, NOTHING_BUT_TIME)]))
    assert (limit.verdict, limit.where) == ("not measured", "no container start per case was profiled to its end")


def test_a_profile_is_named_wherever_the_report_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Path(".") has no name; what it measured was not shown."""
    write_cases(tmp_path)
    write_run(tmp_path / "one")
    monkeypatch.chdir(tmp_path / "one")
    folders = ["--scans", str(tmp_path / "scans"), "--predictions", str(tmp_path / "predictions")]
    assert report(["--out", str(tmp_path / "report.html"), *folders, "--profile", "."]) == 0
    text, _, data = read_page(tmp_path / "report.html")
    assert [found["name"] for found in data["runs"]] == ["one"]
    assert '<td class="number">400.0 MiB</td>' in text
    nameless = replace(judged("ok", 3.0, NOTHING_BUT_TIME), name="")
    (limit, *_) = flare_limits(Measured([nameless]))
    assert (limit.found, limit.verdict) == (3.0, "within")


def test_nothing_measured_is_no_zero() -> None:
    limits = flare_limits(read_measured(None, None))
    assert {(limit.found, limit.verdict) for limit in limits} == {(None, "not measured")}


def test_a_page_with_everything(tmp_path: Path) -> None:
    text, elements, data = read_page(write_everything(tmp_path))
    assert [case["id"] for case in data["cases"]] == ["a", "b"]
    assert data["cases"][0]["view"]["shape"] == list(SHAPE)
    assert np.array_equal(unpack(elements["voxels-0-prediction"], SHAPE), organs(2, 6))
    assert np.array_equal(unpack(elements["voxels-1-reference"], SHAPE), organs(2, 5))
    assert unpack(elements["voxels-0-scan"], SHAPE)[0, 20, 25] == 124  # 40 HU: 40 + 240 * 175 / 500
    assert data["cases"][0]["view"]["volumesMl"]["prediction"]["liver"] == pytest.approx(5 * 64 * 0.02)
    run_a = data["runs"][data["cases"][0]["run"]]
    assert {curve["panel"] for curve in run_a["curves"]} == {"cores", "memory", "host", "gpu"}
    assert max(next(curve for curve in run_a["curves"] if curve["panel"] == "memory")["values"]) == 400
    assert [(span["stage"], span["start_s"], span["end_s"]) for span in run_a["spans"]] == [
        ("start-up", 0, 1),
        ("read", 1, 3),
        ("network", 3, 9),
        ("exit", 9, 10),
    ]
    assert set(run_a) == {"name", "caseId", "seconds", "curves", "spans", "loading"}  # what the scripts read
    assert set(data["cases"][0]["view"]) == {"shape", "spacing", "roles", "planes", "volumesMl", "voxels"}
    liver = data["scores"]["values"]["dsc"]["official"]["organs"][0]
    assert liver["values"] == [pytest.approx(2 * 4 / 9, abs=1e-4), 0.0]  # four of five slices in common
    assert "no GPU" not in text
    assert "openvino on cpu, fp32" in text


def test_the_case_table_has_the_organisers_areas_and_the_agreement_of_the_networks(tmp_path: Path) -> None:
    measured = read_measured(write_harness(tmp_path, {"a": 10.0, "b": 10.0}), None)
    columns = {column.title: column.cells for column in case_columns(["a", "b"], {}, measured, None)}
    assert [cell.text for cell in columns["AUC RAM"]] == ["4,000", "4,001"]
    assert [cell.value for cell in columns["AUC CPU"]] == [50.5, 50.5]
    assert [cell.text for cell in columns["agreement"]] == ["0.750", "0.750"]
    assert "AUC GPU" not in columns


def test_what_was_not_given_is_left_out_and_said(tmp_path: Path) -> None:
    write_cases(tmp_path)
    assert run(tmp_path) == 0
    text, elements, data = read_page(tmp_path / "report.html")
    assert not {"scores", "time", "voxels-0-reference"} & set(elements)
    assert (data["runs"], data["scores"]) == ([], None)
    for said in ("no references: no difference view", "no scores: give", "no time and memory: give"):
        assert said in text
    write_run(tmp_path / "one")
    assert run(tmp_path, "--profile", "one") == 0
    text, _, data = read_page(tmp_path / "report.html")
    assert "no GPU curve: this machine has none" in text
    assert "gpu" not in {curve["panel"] for found in data["runs"] for curve in found["curves"]}


def test_a_case_that_lacks_a_label_map_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of three cases b was not segmented and c has no reference."""
    write_cases(tmp_path)
    save(tmp_path / "scans" / "c_0000.nii.gz", scan())
    save(tmp_path / "predictions" / "c.nii.gz", organs(2, 5))
    assert run(tmp_path, "--references", "references") == 0
    text, _, _ = read_page(tmp_path / "report.html")
    assert "<li>c: no reference: no difference view</li>" in text
    (tmp_path / "predictions" / "b.nii.gz").unlink()
    assert run(tmp_path, "--references", "references") == 1
    text, _, data = read_page(tmp_path / "report.html")
    assert [case["view"]["roles"] for case in data["cases"]] == [
        ["prediction", "reference"], ["reference"], ["prediction"],
    ]  # fmt: skip
    assert "<li>b: no prediction: slices show the reference alone</li>" in text
    assert "[2/3] b: no prediction; slices show the reference alone" in capsys.readouterr().err
    assert run(tmp_path, "--references", "references", "--view", "a") == 0


def test_scores_of_other_predictions_are_said(tmp_path: Path) -> None:
    page = write_everything(tmp_path)
    said = f"scores are of the label maps in {tmp_path / 'predictions'}, slices of those in {tmp_path / 'others'}"
    assert "scores are of the label maps" not in read_page(page)[0]
    (tmp_path / "predictions").rename(tmp_path / "others")
    assert run(tmp_path, "--predictions", "others", "--scores", "scores/scores.json") == 0
    assert said in read_page(page)[0]
    (tmp_path / "predictions").symlink_to("others")
    assert run(tmp_path, "--predictions", "others", "--scores", "scores/scores.json") == 0
    assert "scores are of the label maps" not in read_page(page)[0]


def test_runs_are_linked_by_their_scans_names_dots_included(tmp_path: Path) -> None:
    """The organisers' stem of P1.v2_0000.nii.gz is P1."""
    save(tmp_path / "scans" / "P1.v2_0000.nii.gz", scan())
    save(tmp_path / "predictions" / "P1.v2.nii.gz", organs(2, 6))
    harness = write_harness(tmp_path / "measured", {"P1": 10.0, "other": 10.0}) / "harness.json"
    content = json.loads(harness.read_text())
    content["cases"][0] |= {"scan": "P1.v2_0000.nii.gz", "stem": "P1"}
    harness.write_text(json.dumps(content))
    assert run(tmp_path, "--profile", "measured") == 0
    text, _, data = read_page(tmp_path / "report.html")
    assert [(case["id"], case["run"]) for case in data["cases"]] == [("P1.v2", 0)]
    assert "other_0000: its run belongs to no case of this report; expected other.nii.gz among them" in text
    assert "P1: its run belongs" not in text


def test_the_apps_report_alone_gives_stages(tmp_path: Path) -> None:
    write_cases(tmp_path)
    (tmp_path / "app.json").write_text(json.dumps(app_report("a")))
    assert run(tmp_path, "--app-report", "app.json") == 0
    text, _, data = read_page(tmp_path / "report.html")
    assert [(span["stage"], span["end_s"]) for span in data["runs"][0]["spans"]] == [("read", 2), ("network", 8)]
    assert data["runs"][0]["curves"] == []
    assert "no curves: no folder of tools.profile was given" in text


def test_one_bad_case_does_not_stop_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_cases(tmp_path)
    (tmp_path / "predictions" / "a.nii.gz").write_bytes(b"no label map")
    save(tmp_path / "scans" / "c_0000.nii.gz", scan())
    assert run(tmp_path) == 1
    _, _, data = read_page(tmp_path / "report.html")
    assert [case["view"] is not None for case in data["cases"]] == [False, True, False]
    assert "c.nii.gz in --predictions" in data["cases"][2]["noView"]
    assert "predictions/a.nii.gz" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "code"),
    [
        (["--view", "z"], 2),
        (["--profile", "scans"], 3),
        (["--profile", "old"], 3),
        (["--app-report", "nowhere.json"], 3),
        (["--references", "nowhere"], 3),
        (["--scores", "old/profile.json"], 3),
    ],
)
def test_wrong_use_writes_nothing(
    tmp_path: Path, more: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    write_cases(tmp_path)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "profile.json").write_text('{"schema_version": 0}')
    assert run(tmp_path, *more) == code
    assert "error: " in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


def test_only_the_cases_asked_for_have_slices(tmp_path: Path) -> None:
    write_cases(tmp_path)
    assert run(tmp_path, "--view", "b") == 0
    _, elements, _ = read_page(tmp_path / "report.html")
    assert "voxels-1-scan" in elements
    assert "voxels-0-scan" not in elements


def test_names_cannot_break_out_of_the_page(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>"
    assert json.loads(as_script_data({"name": evil})) == {"name": evil}
    write_cases(tmp_path)
    assert run(tmp_path, "--title", evil, "--credit", evil) == 0
    text, _, _ = read_page(tmp_path / "report.html")
    assert "alert(1)</script>" not in text


def test_names_that_are_not_utf8_are_one_text_in_all_of_the_page(tmp_path: Path) -> None:
    """The script looks for a run's table by the run's name."""
    name = os.fsdecode(b"caf\xe9")
    save(tmp_path / "scans" / f"{name}_0000.nii.gz", scan())
    save(tmp_path / "predictions" / f"{name}.nii.gz", organs(2, 6))
    write_harness(tmp_path / "measured", {name: 10.0})
    assert run(tmp_path, "--profile", "measured") == 0
    text, _, data = read_page(tmp_path / "report.html")
    assert [case["id"] for case in data["cases"]] == ["caf\\udce9"]
    assert data["runs"][0]["name"] == "caf\\udce9_0000"
    assert 'data-run="caf\\udce9_0000"' in text
