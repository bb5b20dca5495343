"""Ending early: one KeyboardInterrupt, whoever asks and however often, and a report that says what is done."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest

from app.backends import create_predictor
from app.bundle import load_bundle
from app.interruption import interruptible
from app.report import CaseRecord, RunRecord
from tests.conftest import ROOT, run_app, tissue, write_scan


@pytest.fixture
def ctrl_c_counts() -> Iterator[None]:
    """SIGINT interrupts, whoever started the tests: a job in a script's background has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c_counts")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_interrupts_and_later_ones_do_not(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    cleaned_up = False
    with pytest.raises(KeyboardInterrupt), interruptible():
        try:
            os.kill(os.getpid(), number)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
            cleaned_up = True
    assert cleaned_up
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_signal_long_after_the_first_counts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception that a destructor swallowed must not leave a process that only SIGKILL ends."""
    seconds = iter([100.0, 104.9, 105.1])
    monkeypatch.setattr("app.interruption.time.monotonic", lambda: next(seconds))
    with interruptible():
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_that_was_ignored_stays_ignored() -> None:
    """As a job in a script's background ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible():
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_leave_signals_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def look() -> None:
        with interruptible():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [before]


def test_the_outcome_names_what_is_done_and_what_is_not() -> None:
    record = RunRecord(options={})
    for case_id, status in zip("abcd", ("segmented", "failed", "skipped", "not_begun"), strict=True):
        record.cases.append(CaseRecord(case_id, "", "", status=status))  # type: ignore[arg-type]
    assert record.outcome() == "2 of 4 cases are done (a, c), not b, d"
    assert RunRecord(options={}).outcome() == "0 of 0 cases are done"


@pytest.mark.parametrize("where", ["start_async", "wait_for"])
def test_a_window_that_is_under_way_is_cancelled(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """The main thread waits in steps; what interrupts a step ends the window, and the next one is right."""
    predictor, _ = create_predictor(load_bundle(tiny_bundle), "openvino", "cpu", "fp32", 1)
    tile = np.zeros((16, 16, 16), dtype=np.float32)
    expected = predictor.predict(tile).copy()
    calls: list[str] = []

    def interrupt(*_: object, **__: object) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(openvino.InferRequest, where, interrupt)
        patched.setattr(openvino.InferRequest, "cancel", lambda *_: calls.append("cancel"))
        with pytest.raises(KeyboardInterrupt):
            predictor.predict(tile)
    assert calls == ["cancel"]
    predictor._request.wait()  # type: ignore[attr-defined]
    assert np.array_equal(predictor.predict(tile), expected)


@pytest.fixture
def files(tmp_path: Path, tiny_bundle: Path) -> list[object]:
    """Three scans to ``labels``, with a report."""
    scans = tmp_path / "scans"
    scans.mkdir()
    for seed, name in enumerate("abc"):
        write_scan(scans / f"{name}.nii.gz", tissue(seed=seed))
    folders = ["--input-dir", scans, "--output-dir", tmp_path / "labels", "--report", tmp_path / "report.json"]
    return [*folders, "--bundle", tiny_bundle, "--device", "cpu", "--skip-existing"]


def report_in(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report


_SIGNAL_AFTER_NETWORKS = """
import gc, os, signal, sys
from pathlib import Path
from app.backends import create_predictor
from app.bundle import load_bundle

bundle = load_bundle(Path(sys.argv[1]))
predictors = [create_predictor(bundle, "openvino", "cpu", "fp32", 1)[0] for _ in range(2)]
while predictors:
    predictors.pop(0)
    gc.collect()
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGTERM)
"""


def test_a_signal_after_two_networks_were_let_go(tiny_bundle: Path) -> None:
    """In a process of its own: two plugins of OpenVINO would leave it a stack for signals that is freed."""
    done = subprocess.run(
        [sys.executable, "-c", _SIGNAL_AFTER_NETWORKS, tiny_bundle],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


@pytest.mark.parametrize("moment", ["rename", "flush"])
def test_a_signal_just_after_the_rename_finds_a_case_that_is_done(
    files: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    replace, fsync = Path.replace, os.fsync

    def rename(source: Path, target: Path) -> Path:
        renamed = replace(source, target)
        if moment == "rename" and target.name == "b.nii.gz":
            os.kill(os.getpid(), signal.SIGTERM)
        return renamed

    def flush(descriptor: int) -> None:
        if moment == "flush" and Path(f"/proc/self/fd/{descriptor}").is_dir() and (labels / "b.nii.gz").exists():
            os.kill(os.getpid(), signal.SIGTERM)
        fsync(descriptor)

    labels = tmp_path / "labels"
    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", rename)
        patched.setattr(os, "fsync", flush)
        assert run_app(*files) == 130
    first = report_in(tmp_path)["cases"]
    assert [(case["status"], case["error"]) for case in first] == [
        ("segmented", None),
        ("segmented", None),
        ("not_begun", None),
    ]
    assert run_app(*files) == 0
    (earlier,) = report_in(tmp_path)["earlier_runs"]
    assert earlier["cases"] == first[:2]


def test_a_signal_before_the_rename_leaves_the_label_map_of_before(
    files: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = Path.replace

    def terminate(source: Path, target: Path) -> Path:
        if target.name == "a.nii.gz":
            os.kill(os.getpid(), signal.SIGTERM)
        return replace(source, target)

    assert run_app(*files) == 0
    monkeypatch.setattr(Path, "replace", terminate)
    assert run_app(*files[:-1], "--report", tmp_path / "second.json") == 130
    cases = json.loads((tmp_path / "second.json").read_text())["cases"]
    assert [(case["status"], case["error"]) for case in cases][:2] == [("failed", "interrupted"), ("not_begun", None)]


def test_a_full_disk_is_said_with_what_is_done(
    files: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replace = Path.replace

    def full(source: Path, target: Path) -> Path:
        if target.name == "b.nii.gz":
            raise OSError(28, "No space left on device")
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", full)
    assert run_app(*files) == 3
    assert "stopped: 1 of 3 cases are done (a), not b, c; --skip-existing goes on from here" in capsys.readouterr().err
    assert [case["status"] for case in report_in(tmp_path)["cases"]] == ["segmented", "failed", "not_begun"]


def test_skipping_keeps_what_the_earlier_report_told(files: list[object], tmp_path: Path) -> None:
    assert run_app(*files) == 0
    first = report_in(tmp_path)
    (tmp_path / "labels" / "b.nii.gz").unlink()
    assert run_app(*files) == 0
    second = report_in(tmp_path)
    assert [case["status"] for case in second["cases"]] == ["skipped", "segmented", "skipped"]
    (earlier,) = second["earlier_runs"]
    assert earlier["cases"] == [first["cases"][0], first["cases"][2]]
    assert earlier["network"] == first["network"]
    (tmp_path / "labels" / "c.nii.gz").unlink()
    assert run_app(*files) == 0
    third = report_in(tmp_path)
    assert [[case["case_id"] for case in run["cases"]] for run in third["earlier_runs"]] == [["a"], ["b"]]
    assert third["earlier_runs"][1]["cases"] == [second["cases"][1]]


def test_without_skipping_all_is_told_anew(files: list[object], tmp_path: Path) -> None:
    for _ in range(2):
        assert run_app(*files[:-1]) == 0
    assert report_in(tmp_path)["earlier_runs"] == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        '{"schema_version": 0}',
        '{"schema_version": 1, "earlier_runs": [1]}',
        '{"schema_version": 1, "earlier_runs": [], "cases": [{"output": "x.nii.gz"}]}',
    ],
)
def test_what_is_no_report_is_kept_under_another_name(
    files: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (tmp_path / "report.json").write_text(text)
    assert run_app(*files) == 0
    assert (tmp_path / "report.json.before").read_text() == text
    assert report_in(tmp_path)["earlier_runs"] == []
    assert "report.json: not a report that can be carried on" in capsys.readouterr().err


def test_a_scan_that_changes_while_it_is_read_fails(
    files: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from app import reading
    from app.volume import Volume

    read = reading.read_volume  # type: ignore[attr-defined]

    def written_meanwhile(path: Path) -> Volume:
        volume = read(path)
        if path.name == "b.nii.gz":
            with path.open("ab") as stream:
                stream.write(bytes(8))
        return volume

    monkeypatch.setattr(reading, "read_volume", written_meanwhile)
    assert run_app(*files) == 1
    cases = report_in(tmp_path)["cases"]
    assert [case["status"] for case in cases] == ["segmented", "failed", "segmented"]
    assert cases[1]["error"].endswith(
        "b.nii.gz: changed while it was read; expected a scan that nobody writes. Give it again"
    )
    assert sorted(path.name for path in (tmp_path / "labels").iterdir()) == ["a.nii.gz", "c.nii.gz"]


def test_too_little_memory_for_the_network_is_said(
    files: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(openvino.Core, "compile_model", none)
    assert run_app(*files) == 4
    assert report_in(tmp_path)["error"] == "not enough memory to load the network; give the process more"
