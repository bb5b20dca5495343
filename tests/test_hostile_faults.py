"""The faults of ``python -m tools.hostile faults``, tried a few times each; endurance and determinism likewise.

What a fault finds wrong is its ``failures``; that each can find something is shown on folders that are wrong.
"""

import hashlib
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from app.errors import AppError, BundleError, CaseError, FolderError, UsageError
from tests.conftest import ROOT
from tools.hostile import containers, determinism, endurance, memory_limits, preloaded, processes
from tools.hostile.__main__ import _SECTIONS, build_parser, main
from tools.hostile.bundles import write_bundle
from tools.hostile.determinism import check_determinism, organ_scores
from tools.hostile.endurance import slope
from tools.hostile.faults import FAULTS
from tools.hostile.processes import Done
from tools.hostile.records import failures, read_record, write_record
from tools.hostile.table import markdown
from tools.hostile.workshop import Outcome, Workshop, make_workshop

SHARE = 0.02
NEEDS = {"container": "no image was given (--image)"}  # tests/test_container.py runs what needs the image


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    yield make_workshop(tmp_path_factory.mktemp("hostile") / "shop", SHARE)


@pytest.mark.long
@pytest.mark.parametrize("name", FAULTS)
def test_no_fault_breaks_the_app(shop: Workshop, name: str) -> None:
    found = FAULTS[name](shop)
    assert found.failures == ()
    if found.skipped:
        assert found.skipped == NEEDS.get(name) or "only root" in found.skipped or "can be made here" in found.skipped
    else:
        assert found.tried >= 1


@pytest.mark.long
def test_many_cases_in_one_process(tmp_path: Path) -> None:
    assert main(["endurance", "--cases", "60", "--out", str(tmp_path)]) == 0
    found = read_record(tmp_path)["endurance"]["outcome"]
    assert (found["cases"], found["failed"], len(found["threads"]), len(found["handles"])) == (60, 2, 1, 1)


@pytest.mark.long
def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    found = check_determinism(3, write_bundle(tmp_path / "bundle"), None, "")
    assert (found["failures"], found["different"], found["in_folder_equal"]) == ([], 1, True)
    assert set(found["dsc_across_threads"]) == {"1", "2", "3"}


def test_a_partial_a_foreign_and_a_missing_file_are_noticed(tmp_path: Path) -> None:
    expected = {name: hashlib.sha256(b"whole").hexdigest() for name in ("a.nii.gz", "b.nii.gz")}
    shop = Workshop(tmp_path, tmp_path, tmp_path, expected)
    outputs = shop.fresh("outputs")
    (outputs / "a.nii.gz").write_bytes(b"whole")
    assert shop.wrong(outputs) == []
    assert shop.wrong(outputs, complete=True) == ["b.nii.gz is missing"]
    (outputs / "b.nii.gz").write_bytes(b"who")
    (outputs / ".x.partial").touch()
    assert shop.wrong(outputs) == [".x.partial was left", "b.nii.gz is not whole"]
    assert shop.wrong(tmp_path / "removed") == []


@pytest.mark.parametrize(
    ("code", "stderr", "crashed"),
    [(1, "a: failed", False), (-9, "", True), (137, "", True), (1, "Traceback (most", True), (130, "", False)],
)
def test_crashes_are_told_from_refusals(code: int, stderr: str, crashed: bool) -> None:
    assert Done(code, stderr, 0.0).crashed == crashed


@pytest.fixture
def hanging_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The app says something and does not end."""
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho working >&2\nexec sleep 60\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setattr(processes, "LONGEST_S", 0.5)


@pytest.mark.usefixtures("hanging_app")
def test_a_run_that_hangs_is_killed_and_counts_as_a_crash() -> None:
    with processes.start() as child:
        done = processes.finish(child)
    assert (done.exit_code, done.crashed, child.returncode) == (-9, True, -9)
    assert done.stderr.startswith("working\n\nhung: killed after ")


def test_a_preloaded_run_that_hangs_is_killed_and_counts_as_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preloaded, "LONGEST_S", 0.3)
    (tmp_path / "log").write_text("working")
    child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
    child.start()
    done = preloaded.finish(child, tmp_path / "log")
    assert (done.exit_code, done.crashed, child.exitcode) == (-9, True, -9)
    assert done.stderr.startswith("working\nhung: killed after ")


@pytest.mark.usefixtures("hanging_app")
@pytest.mark.parametrize("name", ["skip-existing", "folder-removed", "promises", "ulimit"])
def test_a_fault_that_makes_the_app_hang_is_a_failure(tmp_path: Path, name: str) -> None:
    """And no traceback, though there is neither a report nor a label map: the next fault is tried."""
    found = FAULTS[name](Workshop(tmp_path, tmp_path, tmp_path, {}))
    assert "exit code -9, working\n\nhung: killed after " in found.failures[0]


@pytest.mark.usefixtures("hanging_app")
def test_a_run_does_not_outlive_its_block() -> None:
    with pytest.raises(KeyboardInterrupt), processes.start() as child:
        raise KeyboardInterrupt
    assert child.returncode == -9


def test_a_control_group_that_takes_no_limit_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(memory_limits, "_GROUPS", tmp_path)
    monkeypatch.setattr(Path, "write_text", refuse)
    with memory_limits._memory_group(2**20) as group:
        assert group is None
        assert list(tmp_path.iterdir()) == []


def docker_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: str, other: str = "exit 0") -> Path:
    """A stand-in for Docker: what ``docker run`` does, and the others. Returns the file of its calls, one a line."""
    calls = tmp_path / "calls"
    docker = tmp_path / "docker"
    docker.write_text(f'#!/bin/sh\necho "$*" >> {calls}\nif [ "$1" = run ]; then {run or ":"}; else {other}; fi\n')
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return calls


def test_a_container_that_hangs_is_removed_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "LONGEST_S", 0.5)
    calls = docker_that(tmp_path, monkeypatch, "exec sleep 60")
    shop = Workshop(tmp_path, tmp_path, tmp_path, {}, image="image")
    assert "exit code -9, \nhung: killed after " in FAULTS["container"](shop).failures[0]
    run, removal = (line.split() for line in calls.read_text().splitlines())
    assert removal == ["container", "rm", "--force", run[run.index("--name") + 1]]


def test_a_container_does_not_outlive_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: object) -> Done:
        raise KeyboardInterrupt

    monkeypatch.setattr(containers, "finish", interrupt)
    calls = docker_that(tmp_path, monkeypatch, "exec sleep 60")
    with pytest.raises(KeyboardInterrupt):
        containers.run_container("image", (), ())
    assert calls.read_text().splitlines()[-1].startswith("container rm --force hostile-")


@pytest.mark.parametrize(
    ("code", "kind"), [(1, CaseError), (2, UsageError), (3, FolderError), (4, BundleError), (-9, CaseError)]
)
def test_a_run_that_failed_is_an_error_of_its_kind_with_what_it_said(code: int, kind: type[AppError]) -> None:
    processes.check_end(Done(0, "INFO all is well", 1.0), "the app")
    with pytest.raises(AppError) as caught:
        processes.check_end(Done(code, "a: failed\nb: too\n", 1.0), "the app")
    assert type(caught.value) is kind
    assert str(caught.value) == f"the app ended with exit code {code}, expected 0. It said:\na: failed\nb: too"


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("determinism --runs 1 --bundle nope", 4, "/nope: no such bundle; expected a folder with"),
        ("determinism --scan nope.nii.gz", 3, "--scan nope.nii.gz: no such file; expected a scan as .nii.gz"),
        ("faults --image nope", 4, "nope: No such image; expected an image that `docker image ls` lists"),
        ("faults --out /dev/null/results", 3, "/dev/null/results: cannot be written"),
    ],
)
def test_mistakes_are_named(
    command: str,
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    docker_that(tmp_path, monkeypatch, "", "echo 'No such image' >&2; exit 1")
    assert main(["--out", str(tmp_path), *command.split()]) == code
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["inputs", "workers", "runs", "cases", "share"])
@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "some"])
def test_numbers_that_cannot_be_are_refused(name: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    least = {"cases": "a whole number from 2", "share": "a number above 0"}.get(name, "a whole number from 1")
    with pytest.raises(SystemExit, match="2"):
        main(["all", f"--{name}={value}"])
    assert f"argument --{name}: '{value}': expected {least}" in capsys.readouterr().err


def test_the_smallest_numbers_are_accepted() -> None:
    command = "all --inputs 1 --workers 1 --runs 1 --cases 2 --share 0.01"
    found = build_parser().parse_args(command.split())
    assert (found.inputs, found.workers, found.runs, found.cases, found.share) == (1, 1, 1, 2, 0.01)
    with pytest.raises(SystemExit):
        build_parser().parse_args(["endurance", "--cases", "1"])


def test_a_container_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docker_that(tmp_path, monkeypatch, "echo 'no space left on device' >&2; exit 125")
    with pytest.raises(CaseError, match=r"in a container of image:1 ended with exit code 125, .*\nno space left on"):
        determinism._in_container(tmp_path, tmp_path / "outputs", tmp_path, "image:1")


def test_an_endurance_that_fails_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho 'MemoryError: none is left' >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    assert main(["endurance", "--out", str(tmp_path)]) == 1
    assert "endurance ended with exit code 1, expected 0. It said:\nMemoryError: none" in capsys.readouterr().err


def test_the_slope_is_that_of_least_squares() -> None:
    assert slope([3, 5, 7]) == pytest.approx(2)
    assert slope([1, 0, 1, 0, 1]) == pytest.approx(0)


def test_growth_threads_and_handles_are_noticed() -> None:
    from app.report import RunRecord

    samples = endurance._Samples()
    for index in range(100):
        samples.resident_mib.append(100 + 0.2 * index)
        samples.threads.append(3 + index // 90)
        samples.handles.append(4)
    found = endurance._conclude(samples, RunRecord(options={}), 100)
    assert found["failures"] == (
        "0.200 MiB a case; expected less than 0.1",
        "(3, 4) threads; expected one number",
    )


def test_organs_are_compared_above_one_millilitre(tmp_path: Path) -> None:
    """Voxels of 0.5 ml: label 1 has 4 and 3 in common with 5, 2 x 3 / 9; label 2 has 1 ml, which is not above."""
    first, second = np.zeros((2, 3, 4), np.uint8), np.zeros((2, 3, 4), np.uint8)
    first[0, 0] = 1
    second[0, 0, :3] = second[1, 0, :2] = 1
    first[1, 1, :2] = second[1, 1, :2] = 2
    for name, labels in (("one", first), ("two", second)):
        nib.save(nib.Nifti1Image(labels, np.diag([5.0, 10.0, 10.0, 1.0])), tmp_path / f"{name}.nii")
    assert dict(organ_scores(tmp_path / "one.nii", tmp_path / "two.nii")) == {1: pytest.approx(6 / 9)}


def test_the_record_is_kept_and_the_table_follows_from_it(tmp_path: Path) -> None:
    circumstances = {
        "machine": {"cpu": "a CPU", "cores": 2, "memory_mib": 2048, "host": "h", "kernel": "6.1", "python": "3.11"},
        "command": "python -m tools.hostile faults",
    }
    outcome = Outcome("kill -9", 200, "nothing partial", ("kill 7: a.nii.gz is not whole",), "x")
    record = {**read_record(tmp_path), "faults": {"kill": {**circumstances, "outcome": vars(outcome)}}}
    write_record(tmp_path, record)
    assert read_record(tmp_path)["schema_version"] == 1
    assert failures(record) == ["kill: kill 7: a.nii.gz is not whole"]
    assert (tmp_path / "hostile.md").read_text() == markdown(record)
    assert "| kill -9 | 200 | nothing partial | **1 failures**, the first: kill 7: a.nii.gz is not whole |" in markdown(
        record
    )
    assert "Machine: a CPU, 2 cores, 2 GiB (h), Linux 6.1, Python 3.11." in markdown(record)


def test_130_when_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(_SECTIONS, "fuzz", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    assert main(["fuzz", "--out", str(tmp_path)]) == 130
    assert "interrupted; the record has what was tried" in capsys.readouterr().err


def test_another_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "hostile.json").write_text(json.dumps({"schema_version": 0}))
    assert main(["endurance", "--out", str(tmp_path)]) == 3


def test_the_recorded_table_is_as_the_tool_writes_it() -> None:
    folder = ROOT / "tools" / "hostile" / "results"
    record = read_record(folder)
    assert markdown(record) == (folder / "hostile.md").read_text(encoding="utf-8")
    assert failures(record) == []
    assert set(record) == {"schema_version", "fuzz", "faults", "endurance", "determinism"}
