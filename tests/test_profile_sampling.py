"""Commands that are run and sampled: when samples are taken, how commands end, loads that are known."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from app.errors import FolderError
from tests.conftest import ROOT, tissue, write_scan
from tools.profile import runner, sampler
from tools.profile.__main__ import main
from tools.profile.live import LiveLine
from tools.profile.measuring import Sampling, record
from tools.profile.recording import Header, RecordingWriter, Sample, read_recording
from tools.profile.runner import CommandError, Job

QUICK = ("--baseline", "0", "--interval", "0.02")
OPTIONS_OF_IMAGES = (
    ("--inputs", "tests"),
    ("--team", "me"),
    ("--protocol", "flare24"),  # the default
    ("--stages",),
    ("-m", "1g"),
    ("--memory-swap", "1g"),
    ("--cpus", "1"),
    ("--shm-size", "1g"),
)
# Holds MIB for HOLD seconds, then burns BURN CPU seconds; a shell between, so that it is not the command itself.
# Prints what it knows itself: resident MiB without the held ones; least and most MiB s of the held ones, which differ
# by what a busy machine lets it wait between an act and its clock; wall and CPU seconds.
KNOWN_LOAD = """
import json, mmap, os, sys, time
born = time.monotonic()
mib, hold_s, burn_s = map(int, sys.argv[1:])
own_mib = int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
held, block, before, after = mmap.mmap(-1, mib << 20), b"x" * 2**20, [], []
for number in range(mib):
    before.append(time.monotonic())
    held[number << 20 : (number + 1) << 20] = block
    after.append(time.monotonic())
time.sleep(hold_s)
freeing = time.monotonic()
held.close()
freed = time.monotonic()
while time.process_time() < burn_s: pass
wall_s, cpu_s = time.monotonic() - born, time.process_time()
held_mib_s = [sum(freeing - moment for moment in after), sum(freed - moment for moment in before)]
print(json.dumps(dict(own_mib=own_mib, held_mib_s=held_mib_s, wall_s=wall_s, cpu_s=cpu_s)))
"""


@pytest.fixture(autouse=True)
def _same_signal_handlers_afterwards() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def profile(out: Path, *words: str, options: tuple[str, ...] = QUICK) -> int:
    return main(["--out", str(out), *options, "--", *words])


def read_profile(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "profile.json").read_text())
    return found


class FakeClock:
    """Time that passes by reading and waiting only."""

    def __init__(self, reading_s: list[float]) -> None:
        self.now_s, self._reading_s = 1000.0, reading_s

    def monotonic(self) -> float:
        return self.now_s

    def read(self) -> SimpleNamespace:
        self.now_s += self._reading_s.pop(0)
        return SimpleNamespace(user_s=0.0, system_s=0.0, idle_s=0.0, busy_s=0.0)

    def wait(self, seconds: float) -> bool:
        self.now_s += seconds
        return not self._reading_s


def test_slow_readings_do_not_shift_later_ones(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every 0.1 s, whatever a reading takes; one of 0.27 s costs the moments at 0.3 and 0.4 s: two samples fewer."""
    clock = FakeClock([0.04, 0.09, 0.27, 0.04, 0.04])
    monkeypatch.setattr(sampler, "time", SimpleNamespace(monotonic=clock.monotonic, time=lambda: clock.now_s + 5))
    monkeypatch.setattr(sampler, "host_cpu", clock.read)
    monkeypatch.setattr(sampler, "host_memory_mib", lambda: 1.0)
    taken: list[Sample] = []
    with (tmp_path / "samples").open("wb") as stream:
        found = sampler.Sampler(RecordingWriter(stream, Header([], 0.1, "tree", 1)), 0.1, None)
        found.take_until(clock, "run", taken.append)  # type: ignore[arg-type]
    assert [sample.monotonic_s for sample in taken] == pytest.approx([1000, 1000.1, 1000.2, 1000.5, 1000.6])
    assert found.skipped == 2
    assert [sample.unix_s for sample in taken] == [sample.monotonic_s + 5 for sample in taken]


@pytest.mark.parametrize(
    ("command", "code"), [(["true"], 0), (["sh", "-c", "exit 7"], 7), (["sh", "-c", "kill -9 $$"], 137)]
)
def test_exit_code_is_passed_through(command: list[str], code: int, tmp_path: Path) -> None:
    assert profile(tmp_path, *command) == code
    ending = read_profile(tmp_path)["ending"]
    assert (ending["exit_code"], ending["reason"]) == (code, "exit")


def test_exit_code_is_passed_through_without_figures_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full_disk(_: Path) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("tools.profile.__main__.write_profile", full_disk)
    assert profile(tmp_path, "sh", "-c", "exit 7") == 7
    assert "no figures (No space left on device); the samples are there" in capsys.readouterr().err


def test_fault_in_the_figures_is_logged_and_not_the_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise TypeError("a font's")

    monkeypatch.setattr("tools.profile.plots.draw_profile", fail)
    assert profile(tmp_path, "sh", "-c", "exit 7") == 7
    assert f"the samples are there: --again {tmp_path}" in caplog.text
    assert "TypeError: a font's" in caplog.text


def test_arguments_that_are_not_utf8_are_in_the_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert profile(tmp_path, "sh", "-c", "exit 7", os.fsdecode(b"caf\xe9")) == 7
    assert "no figures" not in capsys.readouterr().err
    assert (tmp_path / "profile.png").exists()


def test_command_that_cannot_be_started(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert profile(tmp_path, str(tmp_path / "no-such-program")) == CommandError.exit_code == 127
    assert "no-such-program: cannot be started" in capsys.readouterr().err
    assert main(["--again", str(tmp_path)]) == 3
    assert "the command could not be started, or the profiler was killed before" in capsys.readouterr().err


def test_time_out_stops_the_whole_group(tmp_path: Path) -> None:
    start = time.monotonic()
    command = f"sleep 60 & echo $! > {tmp_path}/pid; wait"
    assert profile(tmp_path / "out", "sh", "-c", command, options=(*QUICK, "--timeout", "0.3")) == 124
    assert time.monotonic() - start < 30
    ending = read_profile(tmp_path / "out")["ending"]
    assert (ending["reason"], ending["exit_code"]) == ("timeout", 143)
    assert 0.3 <= ending["wall_s"] < 30
    assert _has_ended(int((tmp_path / "pid").read_text()))


def test_what_ignores_a_kind_word_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_GRACE_S", 0.1)
    code = profile(tmp_path, "sh", "-c", "trap '' TERM; sleep 60", options=(*QUICK, "--timeout", "0.2"))
    assert code == 124
    assert read_profile(tmp_path)["ending"]["exit_code"] == 137


@pytest.mark.parametrize(("trap", "exit_code"), [("", 143), ("trap '' TERM; ", 137)])
def test_time_out_does_not_wait_for_a_sample(
    trap: str, exit_code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second sample would be due after a minute. Neither does patience wait for it."""
    monkeypatch.setattr(runner, "_GRACE_S", 0.2)
    options = ("--baseline", "0", "--interval", "60", "--timeout", "0.3")
    assert profile(tmp_path, "sh", "-c", f"{trap}sleep 30; exit 0", options=options) == 124
    found = read_profile(tmp_path)
    assert (found["ending"]["reason"], found["ending"]["exit_code"]) == ("timeout", exit_code)
    assert 0.3 <= found["seconds"] < 20
    assert found["sampler"]["samples"] == 1


def _has_ended(pid: int) -> bool:
    """Also if nobody has waited for it yet."""
    for _ in range(200):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


def start_profiler(out: Path, *command: str) -> subprocess.Popen[bytes]:
    """In a process of its own; returns when it has taken samples of the run."""
    words = [sys.executable, "-m", "tools.profile", "--out", str(out), *QUICK, "--", *command]
    process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.DEVNULL)
    samples = out / "samples.jsonl"
    for _ in range(600):
        if samples.exists() and samples.read_text().count('"phase": "run"') > 3:
            return process
        time.sleep(0.05)
    process.kill()
    raise AssertionError("no samples within 30 s")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.long)]
)
def test_signal_stops_the_command_and_keeps_the_curves(number: signal.Signals, code: int, tmp_path: Path) -> None:
    process = start_profiler(tmp_path, "sleep", "60")
    process.send_signal(number)
    assert process.wait(60) == code
    found = read_profile(tmp_path)
    assert found["ending"]["reason"] == "signal"
    assert found["sampler"]["samples"] > 3
    assert (tmp_path / "profile.png").exists()


def test_killed_profiler_keeps_the_curves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    process = start_profiler(tmp_path / "out", "sh", "-c", f"echo $$ > {tmp_path}/pid; exec sleep 60")
    process.kill()
    process.wait()
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    assert main(["--again", str(tmp_path / "out")]) == 0
    assert "profiler killed, tree peak" in capsys.readouterr().out
    found = read_profile(tmp_path / "out")
    assert found["ending"] is None
    assert found["own"]["memory"]["peak_mib"] > 0


def test_output_stays_the_commands_own(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert profile(tmp_path, "sh", "-c", "echo out; echo err >&2") == 0
    captured = capfd.readouterr()
    assert captured.out == "out\n"
    assert captured.err.startswith("err\n")
    assert "no GPU curve (" in captured.err or "GPU peak" in captured.err


def test_report_that_was_there_before_is_not_this_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "report.json"
    report.write_text("{}")
    assert profile(tmp_path / "out", "true", options=(*QUICK, "--report", str(report))) == 0
    assert not (tmp_path / "out" / "report.json").exists()
    assert "no stages: no report.json of the app" in capsys.readouterr().err


def test_report_with_times_that_are_none_costs_the_stages_alone(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    span = '{"stage": "read", "start_unix_s": "12", "end_unix_s": 13}'
    script = f"""echo '{{"cases": [{{"spans": [{span}]}}], "network_load_span": null}}' > {report}; exit 7"""
    assert profile(tmp_path / "out", "sh", "-c", script, options=(*QUICK, "--report", str(report))) == 7
    assert "report.json: tells no spans" in read_profile(tmp_path / "out")["no_stages"]


def test_report_may_be_written_where_its_copy_goes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "report.json"
    options = (*QUICK, "--report", str(report))
    assert profile(tmp_path, "sh", "-c", f"echo '{{}}' > {report}", options=options) == 0
    assert "no figures" not in capsys.readouterr().err
    assert "report.json: tells no spans" in read_profile(tmp_path)["no_stages"]
    assert report.read_text() == "{}\n"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--out", "x"], 2, "expected one of"),
        (["--out", "x", "--image", "i", "--inputs", ".", "--", "true"], 2, "expected one of"),
        (["--out", "x", "--image", "i"], 2, "--image NAME and --inputs DIR together"),
        (["--", "true"], 2, "--out DIR is missing"),
        (["--out", "x", "--interval", "0", "--", "true"], 2, "--interval 0"),
        (["--out", "tests", "--", "true"], 3, "is not empty; expected a new or empty folder"),
        (["--again", "tests"], 3, "tests/samples.jsonl: No such file"),
        (["--out", "x", "--gpu-index", "77", "--", "true"], 4, "GPU 77: NVML says"),
        (["--out", "x", "--image", "i", "--inputs", "tests"], 3, r"no *.nii.gz in it"),
        (["--out", "x", "--team", "A b", "--image", "i", "--inputs", "tests"], 2, "--team 'A b'"),
        *(
            (["--out", "x", *words, "--", "true"], 2, f"{words[0]}: has no effect on a command; it is for --image NAME")
            for words in OPTIONS_OF_IMAGES
        ),
        (["--out", "x", "--image", "i", "--inputs", "tests", "--report", "r"], 2, "--report: has no effect on"),
        (
            ["--out", "x", "--image", "i", "--inputs", "tests", "--protocol", "laptop", "--gpu-index", "0"],
            2,
            "--gpu-index: has no effect with --protocol laptop, which has no GPU",
        ),
        (["--again", "tests", "--out", "x"], 2, "--out: has no effect on --again; it is for measuring"),
        (["--again", "tests", "--interval", "0.1"], 2, "--interval: has no effect on --again"),
    ],
)
def test_mistakes(
    words: list[str],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    (tmp_path / "tests").mkdir()
    if "is not empty" in message:
        (tmp_path / "tests" / "earlier").touch()
    monkeypatch.chdir(tmp_path)
    assert main(words) == code
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("option", "value"), [("--interval", "fast"), ("--timeout", "-1"), ("--gpu-index", "-1")])
def test_values_that_are_none(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main([f"{option}={value}", "--out", "x", "--", "true"])
    assert error.value.code == 2
    assert f"'{value}': expected" in capsys.readouterr().err


def test_fault_of_the_profiler_leaves_nothing_running(tmp_path: Path) -> None:
    def fail(_sample: Sample) -> None:
        if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text():
            raise FolderError("disk full")

    job = Job(["sh", "-c", f"echo $$ > {tmp_path}/pid; sleep 60"], after_each=fail)
    with pytest.raises(FolderError, match="disk full"):
        record(job, Sampling(interval_s=0.02, baseline_s=0), tmp_path)
    assert _has_ended(int((tmp_path / "pid").read_text()))


def test_full_disk_is_said() -> None:
    """/dev/full takes no byte."""
    with Path("/dev/full").open("wb") as stream, pytest.raises(FolderError, match="/dev/full: cannot be written"):
        RecordingWriter(stream, Header([], 0.1, "tree", 1))


def test_sampler_takes_under_2_percent_of_a_core(tmp_path: Path) -> None:
    """CPU time of this process while it samples at the organisers' rate; a busy machine does not change it much."""
    ending = record(Job(["sleep", "1.5"]), Sampling(interval_s=0.1, baseline_s=0), tmp_path)
    assert ending.wall_s >= 1.5
    assert 0 < ending.sampler_cpu_s < 0.02 * ending.wall_s


@pytest.mark.long
def test_known_load_within_5_percent(tmp_path: Path) -> None:
    """300 MiB for 2 s, then 3 s of one core, in a grandchild; what it measured itself is the truth."""
    out, truth_file = tmp_path / "out", tmp_path / "truth"
    command = f'"$0" -c "$1" 300 2 3 > {truth_file}; true'
    options = ("--interval", "0.05")
    assert profile(out, "sh", "-c", command, sys.executable, KNOWN_LOAD, options=options) == 0
    truth, found = json.loads(truth_file.read_text()), read_profile(out)
    own = found["own"]
    least, most = (held_mib_s + truth["own_mib"] * truth["wall_s"] for held_mib_s in truth["held_mib_s"])
    assert 600 <= least <= most
    assert 0.95 * least < own["memory"]["area_trapezoid"] < 1.05 * most
    assert own["memory"]["peak_mib"] == pytest.approx(300 + truth["own_mib"], rel=0.05)
    assert own["cpu"]["core_s"] == pytest.approx(truth["cpu_s"], rel=0.05)
    assert truth["cpu_s"] >= 3
    assert own["cpu"]["percent_s"] == pytest.approx(100 * truth["cpu_s"] / (os.cpu_count() or 1), rel=0.05)
    assert found["seconds"] >= truth["wall_s"]
    if not found["ending"]["skipped_samples"]:  # the organisers' sum knows no gaps
        assert 0.95 * least < own["memory"]["area_sum"] < 1.05 * most


@pytest.mark.long
def test_stages_of_the_app(tmp_path: Path, tiny_bundle: Path) -> None:
    scan = write_scan(tmp_path / "scan_0000.nii.gz", tissue((40, 60, 60)))
    report = tmp_path / "report.json"
    words = ["--bundle", str(tiny_bundle), "--input", str(scan), "--output", str(tmp_path / "labels.nii.gz")]
    options = (*QUICK, "--report", str(report))
    command = [sys.executable, "-m", "app", *words, "--report", str(report)]
    assert profile(tmp_path / "out", *command, options=options) == 0
    found, told = read_profile(tmp_path / "out"), json.loads(report.read_text())
    rows = {row["stage"]: row for row in found["stages"]["table"]}
    assert {"start-up", "read", "preprocess", "network", "restore", "write", "exit"} <= set(rows)
    assert sum(row["seconds"] for row in rows.values()) == pytest.approx(found["seconds"])
    assert rows["network"]["seconds"] == pytest.approx(told["cases"][0]["seconds"]["network"], abs=1e-6)
    assert sum(row["cpu_s"] or 0 for row in rows.values()) == pytest.approx(found["own"]["cpu"]["core_s"], rel=0.1)
    assert max(row["memory_peak_mib"] or 0 for row in rows.values()) <= found["own"]["memory"]["peak_mib"]
    assert found["own"]["memory"]["peak_mib"] == pytest.approx(told["peak_memory_mib"], rel=0.1)


def test_live_line_tells_twice_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    live, start = LiveLine("[1/2] scan", shown=True), time.monotonic()
    for later_s in (0.0, 0.3, 0.6, 0.9, 1.2):
        at_s = start + later_s
        live.show(Sample("run", at_s, at_s, 0.0, 0.0, 0.0, 0.0, 9.0, None, 100.0, 1.5 * at_s))
    live.close()
    shown = [line for line in capsys.readouterr().err.split("\r\x1b[K") if line]
    assert shown == ["[1/2] scan: 0 s, 100 MiB", *["[1/2] scan: 1 s, 1.5 cores, 100 MiB"] * 2]


def test_samples_are_at_real_times(tmp_path: Path) -> None:
    before = time.time()
    record(Job(["sleep", "0.3"]), Sampling(interval_s=0.02, baseline_s=0.1), tmp_path)
    found = read_recording(tmp_path / "samples.jsonl")
    start_s = found.during("run")[0].monotonic_s
    moments = [(sample.monotonic_s - start_s) / 0.02 for sample in found.during("run")]
    late = [moment - round(moment - 0.4) for moment in moments]  # each just after its moment, unless the CPU was away
    assert sorted(late)[len(late) // 2] < 0.5
    assert before <= found.samples[0].unix_s <= found.samples[-1].unix_s <= time.time()
    assert [sample.phase for sample in found.samples][:2] == ["before", "before"]
    assert found.samples[-1].phase == "end"
