"""FLARE's harness: with a stand-in for Docker that runs on the host, and with the real one."""

import csv
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from app.errors import FolderError
from tests.conftest import ROOT
from tests.fake_docker import calls, install_fake_docker
from tests.real_docker import build_image, skip_without_engine
from tools.profile.__main__ import main
from tools.profile.container import Container, ContainerStop, team_of
from tools.profile.harness import find_scans
from tools.profile.official import PROTOCOLS
from tools.profile.recording import Ending, Reason, read_recording
from tools.profile.results import judge

# What the scan's name asks for. As PID 1 of a container it is deaf to SIGTERM, which the first line makes true here.
PREDICT_SH = """\
trap '' TERM INT
name=$(basename inputs/*_0000.nii.gz _0000.nii.gz)
case $name in
    fail*) echo 'something broke' >&2; exit 3 ;;
    odd*) exit 125 ;;
    silent*) exit 0 ;;
    link*) ln -s "$PWD/inputs" "outputs/$name.nii.gz"; exit 0 ;;
    folder*) mkdir "outputs/$name.nii.gz"; exit 0 ;;
    stuck*) echo waiting; sleep 60; exit 0 ;;
    litter*) touch outputs/log.txt inputs/cache ;;
    load*) python3 -c '
import time
held = b"x" * (200 << 20)
time.sleep(2)
while time.process_time() < 1: pass' ;;
esac
cp "inputs/${name}_0000.nii.gz" "outputs/$name.nii.gz"
"""
CONTAINER_ID = "f00d" * 16  # of every container of the stand-in
QUICK = ("--baseline", "0", "--interval", "0.02")
REPORT_SH = """
start=$(date +%s.%N)
sleep 0.3
span="{\\"stage\\": \\"network\\", \\"start_unix_s\\": $start, \\"end_unix_s\\": $(date +%s.%N)}"
echo "{\\"cases\\": [{\\"spans\\": [$span]}], \\"network_load_span\\": null}" > "$2"
"""


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the stand-in, which is what ``docker`` now means."""
    folder = install_fake_docker(tmp_path / "docker", PREDICT_SH, monkeypatch)
    (folder / CONTAINER_ID).symlink_to("team")  # it keeps a container's process under the name
    return folder


def write_scans(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        (folder / f"{name}_0000.nii.gz").write_bytes(os.fsencode(name))
    return folder


def run_harness(tmp_path: Path, *options: str, image: str = "team:latest") -> int:
    words = ["--out", str(tmp_path / "out"), "--image", image, "--inputs", str(tmp_path / "scans"), *QUICK, *options]
    return main(words)


def read_table(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="") as stream:
        return {row["Name"]: row for row in csv.DictReader(stream)}


def test_command_is_the_organisers() -> None:
    container = Container("team:latest", "team", PROTOCOLS["flare22"], {})
    words = container.command(Path("/in"), Path("/out"), Path("/id"), Path("/report"), 1)
    assert words == [
        *("docker", "container", "run", "--gpus=device=1", "--name", "team", "--rm", "--cidfile", "/id"),
        *("-v", "/in/:/workspace/inputs/", "-v", "/out/:/workspace/outputs/"),
        *("team:latest", "/bin/bash", "-c", "sh predict.sh"),
    ]


@pytest.mark.parametrize(
    ("protocol", "given", "expected"),
    [
        ("flare22", {}, {}),
        ("flare23", {}, {"--shm-size": "28gb", "-m": "28G"}),
        ("flare24", {"-m": "4g", "--memory-swap": "4g"}, {"--shm-size": "28gb", "-m": "4g", "--memory-swap": "4g"}),
        ("laptop", {"--cpus": "2"}, {"-m": "8G", "--cpus": "2"}),
    ],
)
def test_limits(protocol: str, given: dict[str, str], expected: dict[str, str]) -> None:
    container = Container("team:latest", "team", PROTOCOLS[protocol], given)
    assert container.all_limits() == expected
    words = " ".join(container.command(Path("/in"), Path("/out"), Path("/id"), Path("/report"), None))
    assert all(f"{name} {value}" in words for name, value in expected.items())
    assert "--gpus" not in words


def test_flags_win_over_limits() -> None:
    """Docker takes the last of two values."""
    flags = ("--shm-size", "64m", "--read-only")
    container = Container("team:latest", "team", PROTOCOLS["flare23"], {}, flags=flags)
    words = container.command(Path("/in"), Path("/out"), Path("/id"), Path("/report"), None)
    assert words[3:10] == ["--shm-size", "28gb", "-m", "28G", *flags]


def test_one_start_per_case_and_the_organisers_files(docker: Path, tmp_path: Path) -> None:
    write_scans(tmp_path / "scans", "b", "a")
    limits = ("-m", "1g", "--memory-swap", "1g", "--cpus", "1.5")
    assert run_harness(tmp_path, "--baseline", "0.1", *limits) == 0  # so that there is a CPU share in any case
    folder = tmp_path / "out" / "team"
    runs = [words for words in calls(docker) if words[:2] == ["container", "run"]]
    assert len(runs) == 2
    assert " -m 1g --memory-swap 1g --cpus 1.5 " in " ".join(runs[0])
    pictures = [f"{name}_0000_{curve}-Time.png" for name in "ab" for curve in ("CPU", "RAM")]
    files = ["a_0000.json", "b_0000.json", "harness.json", "team_Efficiency.csv"]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*pictures, *files, "details", "outputs"])
    assert {path.name: path.read_text() for path in (folder / "outputs").iterdir()} == {
        "a.nii.gz": "a",
        "b.nii.gz": "b",
    }
    table = read_table(folder / "team_Efficiency.csv")
    assert list(table) == ["a_0000.nii.gz", "b_0000.nii.gz"]
    content = json.loads((folder / "a_0000.json").read_text())
    assert float(table["a_0000.nii.gz"]["Time"]) == pytest.approx(content["time"], abs=0.0051)
    assert float(table["a_0000.nii.gz"]["MaxRAM"]) == pytest.approx(max(content["RAM_list"]), abs=0.0051)
    harness = json.loads((folder / "harness.json").read_text())
    assert (harness["schema_version"], harness["image_id"]) == (1, "sha256:1234")
    assert [case["folder"] for case in harness["cases"]] == ["details/a_0000", "details/b_0000"]
    assert [case["scan"] for case in harness["cases"]] == ["a_0000.nii.gz", "b_0000.nii.gz"]
    assert harness["limits"] == {"--shm-size": "28gb", "-m": "1g", "--memory-swap": "1g", "--cpus": "1.5"}


@pytest.mark.parametrize(
    ("reason", "exit_code", "made", "status"),
    [
        ("exit", 0, {"a.nii.gz"}, "ok"),
        ("exit", 0, set(), "failed"),
        ("exit", 3, {"a.nii.gz"}, "failed"),
        ("timeout", 137, {"a.nii.gz"}, "stuck"),
        ("timeout", 0, set(), "stuck"),
        ("signal", 137, set(), "interrupted"),
    ],
)
def test_verdict(reason: Reason, exit_code: int, made: set[str], status: str) -> None:
    ending = Ending(exit_code, reason, 0.0, 0.0, 1.0, 0.5, 0.1, 0)
    found, notes = judge(ending, "a.nii.gz", dict.fromkeys(made, True), set())
    assert found == status
    assert bool(notes) == (status not in ("ok", "interrupted") or not made)


def test_a_link_or_folder_is_no_label_map(docker: Path, tmp_path: Path) -> None:
    write_scans(tmp_path / "scans", "folder", "link", "tame")
    assert run_harness(tmp_path) == 1
    details = read_table(tmp_path / "out" / "team" / "details" / "details.csv")
    remark = "outputs/{}.nii.gz: a link or folder, no file; expected the label map"
    assert {name: (row["Status"], row["Notes"]) for name, row in details.items()} == {
        "folder_0000.nii.gz": ("failed", remark.format("folder")),
        "link_0000.nii.gz": ("failed", remark.format("link")),
        "tame_0000.nii.gz": ("ok", ""),
    }


def test_penalties_of_failed_cases(docker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An exit code, no label map: the challenge's penalties, and the others go on."""
    write_scans(tmp_path / "scans", "fail", "litter", "silent")
    assert run_harness(tmp_path, "--protocol", "flare22") == 1
    folder = tmp_path / "out" / "team"
    table = read_table(folder / "team_Efficiency.csv")
    for name in ("fail", "silent"):
        row = table[f"{name}_0000.nii.gz"]
        assert (row["Time"], row["AUC_CPU_Time"], row["AUC_GPU_Time"]) in [
            ("3600.0", "360000.0", ""),
            ("3600.0", "360000.0", "29491200.0"),
        ]
    assert float(table["litter_0000.nii.gz"]["Time"]) < 60
    details = read_table(folder / "details" / "details.csv")
    assert [row["Status"] for row in details.values()] == ["failed", "ok", "failed"]
    assert float(details["fail_0000.nii.gz"]["Time"]) < 60  # as measured
    notes = {name: row["Notes"] for name, row in details.items()}
    assert "exit code 3, see log.txt" in notes["fail_0000.nii.gz"]
    assert notes["silent_0000.nii.gz"] == "no label map: expected outputs/silent.nii.gz"
    assert "outputs/log.txt: nothing but the label map" in notes["litter_0000.nii.gz"]
    assert "inputs/cache: nothing may be left there" in notes["litter_0000.nii.gz"]
    assert (folder / "details" / "fail_0000" / "log.txt").read_text() == "something broke\n"
    means = json.loads((folder / "harness.json").read_text())["means"]
    assert means["Time"] == pytest.approx((2 * 3600 + float(table["litter_0000.nii.gz"]["Time"])) / 3, abs=0.01)
    shown = capsys.readouterr().out
    assert f"2 failed, 1 ok, mean Time {means['Time']:.2f} s" in shown
    assert "exit code 3, see log.txt in details" in shown


def test_names_that_are_not_utf8_have_their_rows(
    docker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scans(tmp_path / "scans", "a", os.fsdecode(b"caf\xe9"))
    assert run_harness(tmp_path) == 0
    table = read_table(tmp_path / "out" / "team" / "team_Efficiency.csv")
    assert list(table) == ["a_0000.nii.gz", "caf\\udce9_0000.nii.gz"]
    assert "[2/2] caf\\udce9_0000: ok" in capsys.readouterr().out


def test_dockers_own_exit_code_from_predict_sh_is_a_failed_case(docker: Path, tmp_path: Path) -> None:
    write_scans(tmp_path / "scans", "odd", "tame")
    assert run_harness(tmp_path) == 1
    details = read_table(tmp_path / "out" / "team" / "details" / "details.csv")
    assert [row["Status"] for row in details.values()] == ["failed", "ok"]


@pytest.mark.long
def test_stuck_case_is_ended_and_penalised(docker: Path, tmp_path: Path) -> None:
    write_scans(tmp_path / "scans", "stuck", "tame")
    start = time.monotonic()
    assert run_harness(tmp_path, "--timeout", "1.5") == 1
    assert time.monotonic() - start < 40
    folder = tmp_path / "out" / "team"
    details = read_table(folder / "details" / "details.csv")
    assert [row["Status"] for row in details.values()] == ["stuck", "ok"]
    assert details["stuck_0000.nii.gz"]["Notes"].startswith("stopped after 2 s")
    assert read_table(folder / "team_Efficiency.csv")["stuck_0000.nii.gz"]["Time"] == "3600.0"
    assert json.loads((folder / "stuck_0000.json").read_text())["time"] == pytest.approx(2, abs=1)
    assert ["container", "kill", CONTAINER_ID] in calls(docker)
    assert ["container", "rm", "--force", CONTAINER_ID] in calls(docker)
    assert len(read_recording(folder / "details" / "stuck_0000" / "samples.jsonl").during("run")) > 10


def test_time_out_of_0_s_is_none_of_an_hour(docker: Path, tmp_path: Path) -> None:
    write_scans(tmp_path / "scans", "tame")
    assert run_harness(tmp_path, "--timeout", "0") == 1
    harness = json.loads((tmp_path / "out" / "team" / "harness.json").read_text())
    assert (harness["timeout_s"], [case["status"] for case in harness["cases"]]) == (0, ["stuck"])


@pytest.mark.long
def test_interrupted_case_does_not_count(docker: Path, tmp_path: Path) -> None:
    write_scans(tmp_path / "scans", "a", "stuck", "z")
    words = ["--out", str(tmp_path / "out"), "--image", "team:latest", "--inputs", str(tmp_path / "scans"), *QUICK]
    process = subprocess.Popen([sys.executable, "-m", "tools.profile", *words], cwd=ROOT, stdout=subprocess.DEVNULL)
    log = tmp_path / "out" / "team" / "details" / "stuck_0000" / "log.txt"
    while process.poll() is None and not (log.exists() and log.read_text()):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 130
    folder = tmp_path / "out" / "team"
    assert list(read_table(folder / "team_Efficiency.csv")) == ["a_0000.nii.gz"]
    cases = json.loads((folder / "harness.json").read_text())["cases"]
    assert [(case["status"], case["row"] is None) for case in cases] == [("ok", False), ("interrupted", True)]
    assert not list(folder.glob("inputs-*"))


def test_interruption_before_the_start_removes_no_container(
    docker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C during the baseline: a container called ``team`` is somebody else's."""
    write_scans(tmp_path / "scans", "a")
    monkeypatch.setattr("tools.profile.sampler.Sampler.take_for", _interrupt)
    assert run_harness(tmp_path) == 130
    assert [words[:2] for words in calls(docker)] == [["image", "inspect"]]


def test_fault_of_the_profiler_removes_its_own_container(
    docker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_scans(tmp_path / "scans", "a")
    monkeypatch.setattr("tools.profile.recording.RecordingWriter.ending", _interrupt)
    assert run_harness(tmp_path) == 130
    assert calls(docker)[-1] == ["container", "rm", "--force", CONTAINER_ID]


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_container_that_has_no_id_yet_is_removed_when_it_has(docker: Path, tmp_path: Path) -> None:
    """Stopped while Docker makes it; the file is there before it has the id."""
    id_file = tmp_path / "id"
    id_file.touch()
    stop = ContainerStop(id_file)
    stop(signal.SIGTERM)
    assert not (docker / "calls").exists()
    id_file.write_text(CONTAINER_ID)
    stop.finish(ended=True)
    assert calls(docker) == [["container", "rm", "--force", CONTAINER_ID]]


def test_report_of_the_app_gives_the_stages(docker: Path, tmp_path: Path) -> None:
    write_scans(tmp_path / "scans", "a")
    (docker / "predict.sh").write_text(REPORT_SH + PREDICT_SH)
    assert run_harness(tmp_path, "--stages") == 0
    details = tmp_path / "out" / "team" / "details" / "a_0000"
    stages = json.loads((details / "profile.json").read_text())["stages"]
    assert [row["stage"] for row in stages["table"]] == ["start-up", "network", "exit"]
    assert (details / "report.json").exists()


def test_docker_that_cannot_start_is_no_failed_case(
    docker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scans(tmp_path / "scans", "a")
    (docker / "broken").touch()
    assert run_harness(tmp_path) == 4
    assert "Docker could not start the container" in (error := capsys.readouterr().err)
    assert "daemon: Conflict." in error


def test_missing_image_is_not_looked_for_elsewhere(
    docker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scans(tmp_path / "scans", "a")
    assert run_harness(tmp_path, image="missing:latest") == 4
    assert "No such image: missing:latest" in capsys.readouterr().err
    assert [words[:2] for words in calls(docker)] == [["image", "inspect"]]


def test_no_docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write_scans(tmp_path / "scans", "a")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run_harness(tmp_path) == 4
    assert "docker: not installed" in capsys.readouterr().err


def test_earlier_results_are_left_alone(docker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_scans(tmp_path / "scans", "a")
    (tmp_path / "out" / "team").mkdir(parents=True)
    (tmp_path / "out" / "team" / "harness.json").touch()
    assert run_harness(tmp_path) == 3
    assert "is not empty" in capsys.readouterr().err


def test_scan_that_cannot_be_copied_is_no_failed_case(
    docker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full_disk(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tools.profile.harness.shutil.copy", full_disk)
    scan = write_scans(tmp_path / "scans", "a") / "a_0000.nii.gz"
    assert run_harness(tmp_path) == 3
    error = capsys.readouterr().err
    assert f"error: {scan}: cannot be copied to {tmp_path / 'out' / 'team'}/inputs-" in error
    assert "(No space left on device); expected a readable file and room in --out" in error


@pytest.mark.parametrize("names", [["a.1", "a.2"], ["x"]])
def test_scans_whose_results_would_mix(
    names: list[str], docker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scans = write_scans(tmp_path / "scans", *names)
    (scans / "x.nii.gz").touch()
    assert run_harness(tmp_path) == 3
    assert "would give results of one name" in capsys.readouterr().err


def test_hidden_files_are_no_cases(tmp_path: Path) -> None:
    """macOS leaves ``._X`` beside X on other file systems."""
    scans = write_scans(tmp_path / "scans", "a", "._a")
    assert find_scans(scans) == [scans / "a_0000.nii.gz"]
    (scans / "a_0000.nii.gz").unlink()
    with pytest.raises(FolderError, match=r"no \*\.nii\.gz in it"):
        find_scans(scans)


@pytest.mark.parametrize("image", ["team:latest", "registry:5000/group/team:1", "team@sha256:12", "team"])
def test_team_is_in_the_images_name(image: str) -> None:
    assert team_of(image) == "team"


@pytest.mark.long
def test_real_docker(tmp_path: Path) -> None:
    """Counters of the container's own control group; a stuck container is gone afterwards."""
    skip_without_engine()
    image = f"profiletest{os.getpid()}"
    build_image(tmp_path / "build", image, PREDICT_SH)
    try:
        write_scans(tmp_path / "scans", "load", "stuck")
        words = ["--out", str(tmp_path / "out"), "--image", image, "--inputs", str(tmp_path / "scans")]
        assert main([*words, "--protocol", "laptop", "--timeout", "15", "-m", "1g", "--cpus", "1"]) == 1
        left = subprocess.run(["docker", "ps", "-aq", "--filter", f"name={image}"], capture_output=True, check=True)
        assert left.stdout == b""
    finally:
        subprocess.run(["docker", "image", "rm", "--force", image], capture_output=True, check=False)
    folder = tmp_path / "out" / image
    load, stuck = (_details(folder, name) for name in ("load_0000", "stuck_0000"))
    assert [load["Status"], stuck["Status"]] == ["ok", "stuck"]
    assert float(load["ContainerPeak_MiB"]) == pytest.approx(215, rel=0.07)  # 200 and a Python of 5 to 25
    assert float(load["ContainerArea_MiBs"]) > 400
    assert float(load["ContainerCPU_core_s"]) == pytest.approx(1.05, rel=0.15)
    assert float(stuck["ContainerPeak_MiB"]) < 50
    assert 0 < float(stuck["Sampler_percent_of_core"]) < 2  # in its 15 s; at the organisers' rate
    assert read_table(folder / f"{image}_Efficiency.csv")["stuck_0000.nii.gz"]["Time"] == "3600.0"


def _details(folder: Path, stem: str) -> dict[str, Any]:
    return read_table(folder / "details" / "details.csv")[f"{stem}.nii.gz"]
