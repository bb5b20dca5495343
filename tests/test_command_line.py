"""The command line: exit codes, the report, log lines and bars, and what is imported when."""

import errno
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app import __version__
from app.atomic_files import atomic_file
from tests.conftest import (
    ROOT,
    TINY_LABELS,
    read_label_map,
    run_app,
    tiny_label_map,
    tissue,
    write_scan,
)

STAGES = ("read", "preprocess", "network", "restore", "postprocess", "write")


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Two scans."""
    folder = tmp_path / "scans"
    folder.mkdir()
    write_scan(folder / "a_0000.nii.gz", tissue(seed=1))
    write_scan(folder / "b_0000.nii.gz", tissue(seed=2))
    return folder


@pytest.fixture
def command(scans: Path, tmp_path: Path, tiny_bundle: Path) -> list[str]:
    """A complete command line: ``scans`` to ``labels``, with a report."""
    files = ("--input-dir", scans, "--output-dir", tmp_path / "labels", "--report", tmp_path / "report.json")
    return [*map(str, files), "--bundle", str(tiny_bundle), "--backend", "openvino", "--device", "cpu"]


def report_in(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def python_m_app(*arguments: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "app", *map(str, arguments)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)


# --- exit codes -------------------------------------------------------------------------------------------


def test_0_when_all_is_segmented(command: list[str], tmp_path: Path) -> None:
    done = python_m_app(*command)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    for seed, name in ((1, "a"), (2, "b")):
        label_map = read_label_map(tmp_path / "labels" / f"{name}.nii.gz")
        assert np.array_equal(label_map, tiny_label_map(tissue(seed=seed)))
    assert sorted(path.name for path in (tmp_path / "labels").iterdir()) == ["a.nii.gz", "b.nii.gz"]
    assert sorted(path.name for path in (tmp_path / "scans").iterdir()) == ["a_0000.nii.gz", "b_0000.nii.gz"]


def test_equal_runs_give_equal_bytes(command: list[str], tmp_path: Path) -> None:
    contents = []
    for _ in range(2):
        assert run_app(*command) == 0
        contents.append([path.read_bytes() for path in sorted((tmp_path / "labels").iterdir())])
        shutil.rmtree(tmp_path / "labels")
    assert contents[0] == contents[1]


@pytest.mark.parametrize("closing", [">&-", "2>&-", "<&- >&- 2>&-", "2>/dev/full", "2>&1 | true"])
def test_closed_streams_do_not_change_the_exit_code(command: list[str], tmp_path: Path, closing: str) -> None:
    line = f'set -o pipefail; "$@" {closing}'
    started = ["bash", "-c", line, "bash", sys.executable, "-m", "app", *command]
    done = subprocess.run(started, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, report_in(tmp_path)["exit_code"]) == (0, 0), done.stderr
    assert np.array_equal(read_label_map(tmp_path / "labels" / "b.nii.gz"), tiny_label_map(tissue(seed=2)))


def test_1_when_some_case_fails(command: list[str], scans: Path, tmp_path: Path) -> None:
    (scans / "0_first.nii.gz").write_bytes(b"")
    done = python_m_app(*command)
    assert done.returncode == 1
    assert re.search(r"ERROR 0_first: failed: .*0_first\.nii\.gz: empty file; expected", done.stderr)
    assert "2 segmented, 0 skipped, 1 failed" in done.stderr
    assert sorted(path.name for path in (tmp_path / "labels").iterdir()) == ["a.nii.gz", "b.nii.gz"]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--input-dir", "x"],
        ["--output-dir", "x"],
        ["--input", "x.nii"],
        ["--input-dir", "x", "--output", "y.nii"],
        ["--input-dir", "x", "--output-dir", "y", "--input", "z.nii"],
        ["--input-dir", "x", "--output-dir", "y", "--input", "z.nii", "--output", "o.nii"],
        ["--input-dir", "x", "--output-dir", "y", "--mode", "best"],
        ["--input-dir", "x", "--output-dir", "y", "--device", "tpu"],
        ["--input-dir", "x", "--output-dir", "y", "--spacing", "1.5"],
        ["--input-dir", "x", "--output-dir", "y", "--fast"],
        ["--input-dir", "x", "--output-dir", "x"],
        ["--input", "x.nii", "--output", "y.png"],
        ["scans", "labels"],
    ],
)
def test_2_for_wrong_usage(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code = run_app(*arguments)
    except SystemExit as end:  # argparse's way
        code = int(end.code or 0)
    assert code == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("skip", [(), ("--skip-existing",)])
@pytest.mark.parametrize(
    "place", ["scans/a_0000.nii.gz", "scans/voxels.raw", "labels/b.nii.gz", "link.json", "scans/c/sub/report.json"]
)
def test_2_when_the_report_would_replace_a_scan_or_a_label_map(
    command: list[str], scans: Path, tmp_path: Path, place: str, skip: tuple[str, ...]
) -> None:
    (tmp_path / "link.json").symlink_to(scans / "a_0000.nii.gz")
    (scans / "voxels.raw").write_bytes(b"of a scan whose header is another file")
    (scans / "c").mkdir()
    (scans / "c" / "1.dcm").write_bytes(bytes(128) + b"DICM")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert run_app(*command, "--report", tmp_path / place, *skip) == 2
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["scan.nii.gz", "missing.nii.gz", "notes.txt"])
def test_2_when_the_report_of_one_case_would_replace_a_file_of_it(scans: Path, tiny_bundle: Path, name: str) -> None:
    """Also where the case is a mistake itself."""
    scan = (scans / "a_0000.nii.gz").rename(scans / "scan.nii.gz").read_bytes()
    (scans / "labels.nii.gz").write_bytes(b"labels")
    (scans / "notes.txt").write_text("notes")
    files = ("--input", scans / name, "--output", scans / "labels.nii.gz", "--bundle", tiny_bundle)
    assert run_app(*files, "--report", scans / "labels.nii.gz") == 2
    assert run_app(*files, "--report", scans / name) == 2
    assert (scans / "labels.nii.gz").read_bytes() == b"labels"
    assert (scans / "notes.txt").read_text() == "notes"
    assert (scans / "scan.nii.gz").read_bytes() == scan


def test_2_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app("--input-dir", "x") == 2
    assert "expected --input-dir with --output-dir, or --input with --output; see --help" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["empty", "missing", "a file", "only notes"])
def test_3_without_input(kind: str, command: list[str], scans: Path, tmp_path: Path) -> None:
    shutil.rmtree(scans)
    if kind == "a file":
        scans.write_text("not a folder")
    elif kind != "missing":
        scans.mkdir()
    if kind == "only notes":
        (scans / "notes.txt").write_text("nothing here")
    assert run_app(*command) == 3
    report = report_in(tmp_path)
    assert report["exit_code"] == 3
    assert report["error"].startswith(f"{scans}: ")
    assert "expected" in report["error"]
    assert not (tmp_path / "labels").exists()


def test_3_when_the_output_folder_cannot_be_made(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "labels").write_text("a file is in the way")
    assert run_app(*command) == 3
    assert re.fullmatch(
        r".*labels: cannot be written \(.+\); choose another output folder", report_in(tmp_path)["error"]
    )
    assert (tmp_path / "labels").read_text() == "a file is in the way"


@pytest.mark.parametrize("folder", ["/proc/labels", "/dev/null/labels"])
def test_3_when_there_is_nowhere_to_write(scans: Path, tiny_bundle: Path, folder: str) -> None:
    assert run_app("--input-dir", scans, "--output-dir", folder, "--bundle", tiny_bundle) == 3


def test_3_when_the_report_cannot_be_written(scans: Path, tmp_path: Path, tiny_bundle: Path) -> None:
    """Found before the work is done, not after."""
    files = ("--input-dir", scans, "--output-dir", tmp_path / "labels", "--report", "/proc/report.json")
    assert run_app(*files, "--bundle", tiny_bundle) == 3
    assert not (tmp_path / "labels").exists()


@pytest.mark.parametrize("outcome", [0, 130])
def test_a_report_folder_that_vanishes_is_3_unless_the_run_was_interrupted(
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    outcome: int,
) -> None:
    def vanish(*_arguments: object) -> None:
        (tmp_path / "reports").rmdir()
        if outcome:
            raise KeyboardInterrupt

    monkeypatch.setattr("app.runs.run", vanish)
    assert run_app(*command, "--report", tmp_path / "reports" / "r.json") == (outcome or 3)
    assert "r.json: cannot be written (No such file or directory)" in capsys.readouterr().err


def test_3_when_another_run_is_writing_the_report(command: list[str], tmp_path: Path) -> None:
    """No case has failed: all label maps are there."""
    with atomic_file(tmp_path / "report.json"):
        assert run_app(*command) == 3
    assert sorted(path.name for path in (tmp_path / "labels").iterdir()) == ["a.nii.gz", "b.nii.gz"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder that holds 16 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("only root can mount a small disk")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this root cannot mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_3_when_the_disk_is_full(small_disk: Path, tmp_path: Path, tiny_bundle: Path) -> None:
    scan = write_scan(tmp_path / "a.nii", tissue((32, 32, 32)))
    output, report = small_disk / "labels.nii", tmp_path / "report.json"
    assert run_app("--input", scan, "--output", output, "--bundle", tiny_bundle, "--report", report) == 3
    error = report_in(tmp_path)["error"]
    assert error == f"{output}: cannot be written (No space left on device); free space or choose another output folder"
    assert list(small_disk.iterdir()) == []


def test_3_when_writing_fails_half_way(command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second label map does not fit: the first stays, whole."""
    fsync, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 3:  # file and folder of the first, file of the second
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    assert run_app(*command) == 3
    assert [path.name for path in (tmp_path / "labels").iterdir()] == ["a.nii.gz"]
    assert np.array_equal(read_label_map(tmp_path / "labels" / "a.nii.gz"), tiny_label_map(tissue(seed=1)))
    report = report_in(tmp_path)
    assert (report["exit_code"], [case["status"] for case in report["cases"]]) == (3, ["segmented", "failed"])
    assert "b.nii.gz: cannot be written (No space left on device)" in report["error"]
    assert report["cases"][1]["error"] == report["error"]
    assert report["cases"][1]["seconds"]["read"] > 0


def test_what_a_killed_run_left_is_removed(command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left_behind = []

    def killed(partial: Path, target: Path) -> Path:
        left_behind.append(partial)
        raise SystemExit(137)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", killed)
        patched.setattr(Path, "unlink", lambda *_, **__: None)
        with pytest.raises(SystemExit):
            run_app(*command)
    labels = tmp_path / "labels"
    assert left_behind[0].parent == tmp_path / "labels"
    assert left_behind[0].exists()
    shutil.copy(left_behind[0], labels / ".0123456789abcdef.partial")  # of a case that this run does not have
    assert not (labels / "a.nii.gz").exists()
    assert run_app(*command) == 0
    assert sorted(path.name for path in labels.iterdir()) == ["a.nii.gz", "b.nii.gz"]


def test_a_folder_or_a_long_name_fails_only_its_case(command: list[str], scans: Path, tmp_path: Path) -> None:
    (tmp_path / "labels" / "a.nii.gz").mkdir(parents=True)
    shutil.copy(scans / "b_0000.nii.gz", scans / f"{'c' * 243}.nii.gz")
    write_scan(scans / "d.nii", tissue(seed=3)).rename(scans / f"{'d' * 251}.nii")
    assert run_app(*command) == 1
    cases = {case["case_id"][0]: case for case in report_in(tmp_path)["cases"]}
    assert [cases[name]["status"] for name in "abcd"] == ["failed", "segmented", "segmented", "failed"]
    assert "is a folder; expected a place for a label map" in cases["a"]["error"]
    assert "its label map would have a name of 258 bytes, more than 255. Rename it" in cases["d"]["error"]


def test_4_when_the_bundle_is_unusable(command: list[str], tmp_path: Path) -> None:
    done = python_m_app(*command, "--bundle", tmp_path / "nowhere")
    assert done.returncode == 4
    assert "nowhere: no such bundle; expected a folder with SHA256SUMS" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_python_without_the_packages_says_which_to_use() -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-m", "app", "--input-dir", "scans", "--output-dir", "labels"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "is not installed; run `make setup` and use .venv/bin/python" in done.stderr
    assert "Traceback" not in done.stderr


def test_130_when_interrupted(command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("app.runs.segment", interrupted)
    assert run_app(*command) == 130
    report = report_in(tmp_path)
    assert (report["exit_code"], report["error"]) == (130, "interrupted")
    assert [(case["status"], case["error"]) for case in report["cases"]] == [
        ("failed", "interrupted"),
        ("not_begun", None),
    ]


def test_4_when_the_network_cannot_be_compiled(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import openvino

    def broken(*_arguments: object) -> None:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(openvino.Core, "compile_model", broken)
    assert run_app(*command) == 4
    report = report_in(tmp_path)
    assert "OpenVINO cannot compile the network (no such instruction)" in report["error"]
    assert [case["status"] for case in report["cases"]] == ["failed", "not_begun"]


def test_sigterm_ends_the_run_like_ctrl_c(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def terminate(*_arguments: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("app.runs.segment", terminate)
    try:
        assert run_app(*command) == 130
    finally:
        signal.signal(signal.SIGTERM, before)


# --- options ----------------------------------------------------------------------------------------------


def test_existing_label_maps_are_skipped_without_loading_the_network(
    command: list[str], tmp_path: Path, tiny_bundle: Path
) -> None:
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    (bundle / "network.onnx").unlink()
    (tmp_path / "labels").mkdir()
    for name in ("a", "b"):
        (tmp_path / "labels" / f"{name}.nii.gz").write_bytes(b"made before")
    assert run_app(*command, "--bundle", bundle, "--skip-existing") == 0
    report = report_in(tmp_path)
    assert [case["status"] for case in report["cases"]] == ["skipped", "skipped"]
    assert (report["network"], report["network_load_s"]) == (None, None)
    assert (tmp_path / "labels" / "a.nii.gz").read_bytes() == b"made before"


def test_only_what_is_missing_is_segmented(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.nii.gz").write_bytes(b"made before")
    assert run_app(*command, "--skip-existing") == 0
    assert [case["status"] for case in report_in(tmp_path)["cases"]] == ["skipped", "segmented"]
    assert np.array_equal(read_label_map(tmp_path / "labels" / "b.nii.gz"), tiny_label_map(tissue(seed=2)))
    assert run_app(*command) == 0  # without the option all is made anew
    assert np.array_equal(read_label_map(tmp_path / "labels" / "a.nii.gz"), tiny_label_map(tissue(seed=1)))


def test_mirroring_a_network_that_was_not_trained_so_is_a_warning(command: list[str], tmp_path: Path) -> None:
    assert run_app(*command, "--mirror") == 0
    assert report_in(tmp_path)["warnings"] == [
        "--mirror changes nothing: this network was trained without mirroring (no mirror_axes)"
    ]


def test_one_file_with_its_own_output_name(tmp_path: Path, tiny_bundle: Path) -> None:
    scan = write_scan(tmp_path / "scan.nii.gz", tissue())
    output = tmp_path / "new" / "folder" / "organs.nii"
    assert run_app("--input", scan, "--output", output, "--bundle", tiny_bundle, "--mode", "normal") == 0
    assert np.array_equal(read_label_map(output), tiny_label_map(tissue()))


# --- report -----------------------------------------------------------------------------------------------


def test_the_report_says_what_was_done(command: list[str], scans: Path, tmp_path: Path, tiny_bundle: Path) -> None:
    write_scan(scans / "c_0000.nii.gz", np.full((10, 11, 12), np.nan, dtype=np.float32))
    write_scan(scans / "d_0000.nii.gz", np.where(np.arange(12) == 3, np.nan, tissue((1, 11, 12))).astype(np.float32))
    assert run_app(*command, "--mode", "normal") == 1
    report = report_in(tmp_path)
    assert {key: report[key] for key in ("schema_version", "app_version", "exit_code", "error", "warnings")} == {
        "schema_version": 1,
        "app_version": __version__,
        "exit_code": 1,
        "error": None,
        "warnings": [],
    }
    assert report["network"] in [
        {"backend": "openvino", "device": "cpu", "precision": precision} for precision in ("fp32", "bf16")
    ]
    assert report["options"]["mode"] == "normal"
    assert report["options"]["input_dir"] == str(scans)
    assert (report["bundle"]["name"], report["bundle"]["folder"]) == ("tiny", str(tiny_bundle))
    assert len(report["bundle"]["network.onnx"]) == 64
    assert report["machine"]
    assert report["peak_memory_mib"] > 10
    assert report["seconds"] >= sum(sum(case["seconds"].values()) for case in report["cases"]) - 0.01
    first, _, nan, slice_with_nan = report["cases"]
    assert (first["case_id"], first["status"], first["error"], first["warnings"]) == ("a", "segmented", None, [])
    assert first["input"] == str(scans / "a_0000.nii.gz")
    assert first["output"] == str(tmp_path / "labels" / "a.nii.gz")
    assert first["shape_zyx"] == first["network_shape_zyx"] == [10, 11, 12]
    assert first["spacing_zyx_mm"] == first["network_spacing_zyx_mm"] == [3, 2, 1]
    assert first["windows"] == 1
    assert set(first["seconds"]) == {*STAGES, "load"}
    assert all(seconds >= 0 for seconds in first["seconds"].values())
    assert (nan["status"], nan["volumes_ml"], nan["windows"]) == ("failed", {}, None)
    assert "every voxel is NaN" in nan["error"]
    assert [warning[:10] for warning in slice_with_nan["warnings"]] == ["11 voxels ", "the scan i"]


def test_volumes_in_the_report_are_those_of_the_label_map(command: list[str], tmp_path: Path) -> None:
    assert run_app(*command) == 0
    for case in report_in(tmp_path)["cases"]:
        label_map = read_label_map(Path(case["output"]))
        counted = {organ: np.sum(label_map == index) * 0.006 for index, organ in enumerate(TINY_LABELS, start=1)}
        assert case["volumes_ml"] == pytest.approx(counted)  # 3 x 2 x 1 mm is 0.006 ml
        assert all(volume > 1 for volume in counted.values())


# --- log lines and bars -----------------------------------------------------------------------------------


def test_one_line_per_stage_and_case_where_there_is_no_terminal(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_app(*command) == 0
    lines = capsys.readouterr().err.splitlines()
    for name in ("a", "b"):
        for stage in STAGES:
            found = [line for line in lines if f"INFO {name}: {stage} " in line]
            assert len(found) == 1, (name, stage)
            assert re.search(r" 10x11x12 at 3x2x1 mm \(z, y, x\), \d+\.\d\d s$", found[0])
    assert sum("network ready: openvino on cpu in" in line for line in lines) == 1
    assert re.search(r"INFO 2 segmented, 0 skipped, 0 failed in \d+\.\d s$", lines[-1])
    assert len(lines) == 2 * len(STAGES) + 2


def test_log_lines_do_not_pile_up_over_runs(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert run_app(*command) == 0
        assert capsys.readouterr().err.count("2 segmented") == 1


def test_quiet_logs_errors_only(command: list[str], scans: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(*command, "-q") == 0
    assert capsys.readouterr().err == ""
    (scans / "c.nii").touch()
    assert run_app(*command, "-q") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "ERROR c: failed: " in line


def on_a_terminal(*arguments: str) -> tuple[int, str]:
    """(exit code, what a user sees) of ``python -m app`` with stderr on a pseudo-terminal of 100 columns."""
    reading, writing = pty.openpty()
    termios.tcsetwinsize(writing, (24, 100))
    line = [sys.executable, "-m", "app", *arguments]
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=writing) as process:
        os.close(writing)
        seen = b""
        while True:
            try:
                chunk = os.read(reading, 4096)
            except OSError:  # Linux's end of a terminal
                break
            if not chunk:
                break
            seen += chunk
    os.close(reading)
    return process.returncode, seen.decode()


def test_bars_over_cases_and_windows_on_a_terminal(command: list[str], scans: Path) -> None:
    write_scan(scans / "c.nii", tissue((16, 16, 64)))  # 7 windows with a step of half a patch
    (scans / "d.nii").touch()
    code, seen = on_a_terminal(*command)
    assert code == 1
    assert re.search(r"cases: 100%.* 4/4", seen)
    assert re.search(r"c: .* 0/7", seen)  # drawn at least once; later updates depend on the clock
    assert re.search(r"\ra\W+reading", seen)
    assert "window/s" in seen
    assert "ERROR d: failed: " in seen
    assert "INFO" not in seen


def test_verbose_logs_stages_on_a_terminal_too(command: list[str]) -> None:
    code, seen = on_a_terminal(*command, "-v")
    assert code == 0
    assert re.search(r"INFO a: restore 10x11x12 at 3x2x1 mm", seen)
    assert "cases: 100%" in seen


def test_quiet_shows_no_bar(command: list[str]) -> None:
    assert on_a_terminal(*command, "-q") == (0, "")


# --- imports ----------------------------------------------------------------------------------------------

_RUN = """
import sys
for name in sys.argv.pop(1).split(","):
    if name:
        sys.modules[name] = None  # as if it were not installed
from app.__main__ import main
try:
    code = main(sys.argv[1:])
except SystemExit as end:
    code = end.code or 0
print(code, *sorted(name for name, module in sys.modules.items() if module is not None))
"""


def imported(*arguments: str, without: str = "") -> tuple[int, set[str]]:
    """(exit code, modules imported) of a run in a fresh interpreter in which ``without`` is not installed."""
    done = python(_RUN, without, *arguments)
    code, *names = done.stdout.splitlines()[-1].split()
    return int(code), set(names)


def test_help_lists_the_exit_codes() -> None:
    done = python_m_app("--help")
    assert done.returncode == 0
    for line in (
        "0  all cases segmented, or there already with --skip-existing",
        "1  some case failed; the others were segmented",
        "2  wrong usage",
        "3  no input found, or the output cannot be written",
        "4  bundle or device unusable",
    ):
        assert line in done.stdout
    options = set(re.findall(r"--[a-z-]+", done.stdout))
    assert {
        "--input-dir", "--output-dir", "--input", "--output", "--bundle", "--backend", "--device", "--precision",
        "--mode", "--mirror", "--spacing", "--report", "--skip-existing", "--verbose", "--quiet",
    } <= options  # fmt: skip


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("--input-dir", "x")])
def test_help_and_usage_errors_import_nothing_heavy(arguments: tuple[str, ...]) -> None:
    code, names = imported(*arguments)
    assert code == (2 if "x" in arguments else 0)
    assert not names & {"numpy", "scipy", "torch", "openvino", "onnxruntime", "nibabel", "SimpleITK", "tqdm"}


def test_a_run_imports_only_what_its_backend_needs(command: list[str]) -> None:
    code, names = imported(*command)
    assert code == 0
    assert {"numpy", "openvino", "nibabel"} <= names
    unneeded = {
        "torch",
        "safetensors",
        "onnxruntime",
        "onnx",
        "openvino_telemetry",
        "SimpleITK",
        "scipy.ndimage",
        "scipy.sparse",
        "skimage",
        "matplotlib",
    }
    assert not names & (unneeded | {"tqdm"})


def test_the_app_runs_where_torch_is_not_installed(command: list[str], tmp_path: Path) -> None:
    """As in the container: OpenVINO alone, chosen by ``auto``."""
    without = "torch,safetensors,onnxruntime,onnx,openvino_telemetry,skimage,matplotlib,tools"
    code, _ = imported(*command, "--backend", "auto", without=without)
    assert code == 0
    assert report_in(tmp_path)["network"]["backend"] == "openvino"
    assert np.array_equal(read_label_map(tmp_path / "labels" / "a.nii.gz"), tiny_label_map(tissue(seed=1)))


@pytest.mark.parametrize("backend", ["torch", "onnxruntime", "openvino"])
def test_4_when_the_backend_is_not_installed(command: list[str], tmp_path: Path, backend: str) -> None:
    code, _ = imported(*command, "--backend", backend, without=backend)
    assert code == 4
    error = report_in(tmp_path)["error"]
    assert error == f"backend {backend} is not installed; install it or choose another --backend"


def test_blas_takes_as_many_threads_as_the_process_may(tmp_path: Path) -> None:
    """Unless the user says how many; BLAS by itself does not see a quota of the process's group."""
    script = (
        "import os, sys; from app import __main__ as app; app.processor_limit = lambda: 3\n"
        f"code = app.main(['--input', {str(tmp_path / 'missing.nii')!r}, '--output', {str(tmp_path / 'x.nii.gz')!r}])\n"
        "print(code, os.environ.get('OPENBLAS_NUM_THREADS'))"
    )
    for given, expected in (({}, "3"), ({"OPENBLAS_NUM_THREADS": "1"}, "1")):
        environment = {key: value for key, value in os.environ.items() if key != "OPENBLAS_NUM_THREADS"} | given
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout.split()[-1] == expected
