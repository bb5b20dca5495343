"""Figures of recordings made by hand: areas, the organisers' formulas and files, penalties, stages."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app.errors import FolderError
from app.report import CaseRecord, RunRecord, Span
from tools.profile import areas
from tools.profile.measuring import write_profile
from tools.profile.official import PROTOCOLS, Figures, case_content, figures, write_case, write_table
from tools.profile.plots import draw_official
from tools.profile.recording import Ending, Header, Phase, Recording, RecordingWriter, Sample, read_recording
from tools.profile.summary import summarise
from tools.profile.timeline import partition, read_timeline, stage_table

UNIX_S = 1_700_000_000.0
HEADER = Header(command=["program"], interval_s=1.0, scope="tree", cores=4)
# One sample a second; the run lasts from 1 to 5 s. Columns: what host and command use at that moment.
SECONDS = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)
OWN_MIB = (None, 100.0, 100.0, 500.0, 500.0, 100.0)
OWN_CPU_S = (None, 0.0, 1.0, 3.0, 3.0, 3.5)
HOST_MIB = (1000.0, 1100.0, 1100.0, 1500.0, 1500.0, 1100.0)
GPU_MIB = (1000.0, 2000.0, 3000.0, 3000.0, 2148.0, 1000.0)
SPANS = [Span("read", UNIX_S + 2, UNIX_S + 3), Span("network", UNIX_S + 3, UNIX_S + 4)]


def recording(header: Header = HEADER, ended: bool = True) -> Recording:
    samples = [
        Sample(
            phase="before" if second < 1 else "run" if second < 5 else "end",
            monotonic_s=second,
            unix_s=UNIX_S + second,
            host_user_s=10 + second,
            host_system_s=5.0,
            host_idle_s=3 * second,
            host_busy_s=15 + second,
            host_memory_mib=HOST_MIB[index],
            gpu_mib=GPU_MIB[index] if header.gpu else None,
            memory_mib=OWN_MIB[index],
            cpu_s=OWN_CPU_S[index],
        )
        for index, second in enumerate(SECONDS)
    ]
    ending = Ending(0, "exit", UNIX_S + 1, 1.0, 4.0, 3.25, 0.02, 0)
    return Recording(header, samples if ended else samples[:-1], ending if ended else None)


def with_gpu() -> Recording:
    return recording(replace(HEADER, gpu={"index": 1, "name": "Quadro", "total_mib": 16384.0}))


def write_samples(folder: Path, found: Recording) -> None:
    with (folder / "samples.jsonl").open("wb") as stream:
        writer = RecordingWriter(stream, found.header)
        for sample in found.samples:
            writer.sample(sample)
        if found.ending:
            writer.ending(found.ending)


def write_report(path: Path, spans: list[Span], loading: Span | None = None) -> Path:
    record = RunRecord({}, network_load_span=loading)
    record.cases.append(CaseRecord("case", "in", "out", spans=spans))
    record.write(path)
    return path


def report_text(**changed: object) -> str:
    span = {"stage": "read", "start_unix_s": UNIX_S + 2, "end_unix_s": UNIX_S + 3} | changed
    return json.dumps({"cases": [{"spans": [span]}], "network_load_span": None})


def test_areas() -> None:
    times, values = [0.0, 0.1, 0.5, 0.6, 2.0], [10.0, 20.0, 5.0, 0.0, 7.0]
    assert areas.sum_area(values, 0.1) == pytest.approx(4.2)
    assert areas.trapezoid_area(times, values) == pytest.approx(float(np.trapezoid(values, times)))
    assert areas.above([2000, 2048, 2148, 9000], 2048) == [0, 0, 100, 6952]


@pytest.mark.parametrize(("seen", "expected"), [(1, 3000), (2, 3000), (3, 9000)])
def test_two_percent_rule(seen: int, expected: float) -> None:
    assert areas.stable_maximum([9000.0] * seen + [3000.0] * (100 - seen)) == expected


def test_no_stable_maximum_where_no_value_comes_back() -> None:
    assert areas.stable_maximum([float(value) for value in range(100)]) is None
    assert areas.stable_maximum([]) is None


@pytest.mark.parametrize("cores", [1, 2, 12, 64])
def test_an_idle_host_is_not_idle_for_the_organisers(cores: int) -> None:
    """In 0.1 s N idle cores have N / 10 idle seconds: 100 N / (N + 1) % idle."""
    ((user, system, idle),) = areas.official_cpu_percent([(5, 5, 100), (5, 5, 100 + cores / 10)])
    assert (user, system) == (0, 0)
    assert 100 - idle == pytest.approx(100 / (cores + 1))


def test_case_content_has_the_organisers_keys_and_starts_with_the_run(tmp_path: Path) -> None:
    write_case(case_content(with_gpu()), tmp_path / "case.json")
    content = json.loads((tmp_path / "case.json").read_text())
    assert list(content) == ["gpu_memory", "cpu_list", "RAM_list", "time"]
    assert content["gpu_memory"] == [2000, 3000, 3000, 2148]
    assert content["RAM_list"] == [1100, 1100, 1500, 1500]
    assert content["time"] == 4.0
    # Each second 1 s user and 3 s idle of 4.1: 24.39 % and 73.17 %.
    assert content["cpu_list"] == [pytest.approx([24.3902, 0, 73.1707], abs=1e-3)] * 4


def idle_host(*moments: tuple[Phase, float]) -> Recording:
    """Four idle cores, sampled at these times; the interval is the organisers'."""
    samples = [
        Sample(phase, time_s, UNIX_S + time_s, 0.0, 0.0, 4 * time_s, 0.0, 1000.0, None, None, None)
        for phase, time_s in moments
    ]
    return Recording(replace(HEADER, interval_s=0.1), samples, None)


@pytest.mark.parametrize(
    ("before", "running", "gaps"),
    [
        ([], [0, 0.1, 0.28, 0.3, 0.4], [0.1, 0.18, 0.12]),  # a late one, then one on time
        ([0], [0.004, 0.104, 0.204], [0.1, 0.1]),  # no baseline
        ([0, 0.1], [0.15, 0.25], [0.15, 0.1]),  # one that ends between two moments
        ([0], [0.102, 0.2, 0.301], [0.102, 0.098, 0.101]),  # some ms to and fro are no short gap
    ],
)
def test_cpu_share_is_of_gaps_that_the_organisers_loop_can_have(
    before: list[float], running: list[float], gaps: list[float]
) -> None:
    """N idle cores in g s: 100 - 100 N g / (N g + 0.1) % used; 0.02 s would be 56 %, 4 ms 86 %."""
    found = idle_host(*(("before", time_s) for time_s in before), *(("run", time_s) for time_s in running))
    used = [100 - idle for _, _, idle in case_content(found)["cpu_list"]]
    assert used == pytest.approx([10 / (4 * gap + 0.1) for gap in gaps])
    assert len(case_content(found)["RAM_list"]) == len(running)


def test_a_run_shorter_than_an_interval_has_no_cpu_share(tmp_path: Path) -> None:
    """The organisers' penalty for CPU holds all the same."""
    content = case_content(idle_host(("before", 0), ("run", 0.004)))
    assert content["cpu_list"] == []
    measured = figures(content, PROTOCOLS["flare22"], 0.1)
    assert measured.row("a") == ["a", 0.1, None, None, None, None, 1000.0, 100.0]
    assert measured.penalised().row("a")[5] == 360000.0
    draw_official(content, "a", tmp_path, 0.1)
    assert [path.name for path in tmp_path.iterdir()] == ["a_RAM-Time.png"]


def test_both_challenges_tables() -> None:
    found = summarise(with_gpu(), None)["official"]
    shared = {"Time": 4.0, "AUC_GPU_Time": 10148.0, "AUC_CPU_Time": 107.32, "AUC_RAM_Time": 5200.0}
    assert found["flare22"] == shared | {"GPU_Mem": 3000.0, "CPU_Utilization": 26.83, "RAM": 1500.0}
    assert found["flare23"] == shared | {"MaxGPU_Mem": 3000.0, "MaxCPU_Utilization": 26.83, "MaxRAM": 1500.0}


def test_time_is_counted_from_samples_where_the_run_never_ended() -> None:
    content = case_content(recording(ended=False))
    assert "time" not in content
    assert figures(content, PROTOCOLS["flare22"], 0.1).time_s == pytest.approx(0.4)


def test_table_is_csv_as_the_organisers_write_it(tmp_path: Path) -> None:
    measured = Figures(12.3456, 3000.4, 123456.7, 55.555, 220.126, 15000.129, 99999.5)
    rows = [measured.row("a.nii.gz"), measured.penalised().row("b.nii.gz")]
    rows.append(replace(measured, gpu_mb=None, gpu_area=None).penalised().row("c.nii.gz"))
    write_table(PROTOCOLS["flare22"].columns, rows, tmp_path / "team_Efficiency.csv")
    assert (tmp_path / "team_Efficiency.csv").read_bytes().decode().split("\r\n") == [
        "Name,Time,GPU_Mem,AUC_GPU_Time,CPU_Utilization,AUC_CPU_Time,RAM,AUC_RAM_Time",
        "a.nii.gz,12.35,3000.0,123457.0,55.55,220.13,15000.13,100000.0",
        "b.nii.gz,3600.0,3000.0,29491200.0,55.55,360000.0,15000.13,100000.0",
        "c.nii.gz,3600.0,,,55.55,360000.0,15000.13,100000.0",
        "",
    ]
    write_table(PROTOCOLS["flare24"].columns, rows, tmp_path / "team_Efficiency.csv")
    header = (tmp_path / "team_Efficiency.csv").read_text().splitlines()[0]
    assert header == "Name,Time,MaxGPU_Mem,AUC_GPU_Time,MaxCPU_Utilization,AUC_CPU_Time,MaxRAM,AUC_RAM_Time"


def test_organisers_pictures(tmp_path: Path) -> None:
    draw_official(case_content(with_gpu()), "with", tmp_path, 0.1)
    draw_official(case_content(recording()), "without", tmp_path, 0.1)
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found == [f"with_{name}-Time.png" for name in ("CPU", "GPU", "RAM")] + [
        f"without_{name}-Time.png" for name in ("CPU", "RAM")
    ]
    with Image.open(tmp_path / "with_GPU-Time.png") as picture:
        assert picture.info["dpi"] == pytest.approx((300, 300), abs=0.1)


def test_profile_of_both_scopes() -> None:
    found = summarise(with_gpu(), None, "none")
    # Trapezoids of one second: 100, 300, 500, 300.
    assert found["own"] == {
        "scope": "tree",
        "memory": {
            "peak_mib": 500,
            "area_sum": 1200,
            "area_trapezoid": 1200,
            "area_trapezoid_above_baseline": None,
        },
        "cpu": {"core_s": 3.5, "percent_s": 87.5},
    }
    assert found["host"]["memory"]["area_trapezoid"] == 5200
    assert found["host"]["cpu"] == {"core_s": 4, "core_s_above_baseline": None, "percent_s": 100}
    gpu = found["gpu"]
    assert (gpu["peak_mib"], gpu["stable_peak_mib"]) == (3000, 3000)
    assert gpu["area_sum"] == 10148
    assert gpu["area_sum_above_2048"] == 952 + 952 + 100
    assert gpu["area_trapezoid"] == 2500 + 3000 + 2574 + 1574
    assert gpu["area_trapezoid_above_2048"] == 476 + 952 + 526 + 50
    assert found["sampler"] == {"samples": 4, "longest_gap_s": 1.0, "cpu_percent_of_a_core": pytest.approx(0.5)}
    assert (found["schema_version"], found["recording"]["schema_version"]) == (1, 1)


def test_baseline_is_taken_off() -> None:
    """Two seconds before with 1000 MiB and half a core: the run's 4 s then used 2 of its 4 core seconds itself."""
    whole = recording()
    early = replace(whole.samples[0], monotonic_s=-2.0, host_busy_s=14.0)
    found = summarise(replace(whole, samples=[early, *whole.samples]), None)
    assert found["baseline"] == {"seconds": 2, "memory_mib": 1000, "gpu_mib": None, "busy_cores": 0.5}
    assert found["host"]["cpu"]["core_s_above_baseline"] == 2
    assert found["host"]["memory"]["area_trapezoid_above_baseline"] == 5200 - 4000


def test_without_gpu_there_is_no_curve_and_a_reason() -> None:
    found = summarise(recording(replace(HEADER, no_gpu="no driver")), None)
    assert (found["gpu"], found["no_gpu"]) == (None, "no driver")
    assert found["official"]["flare22"]["GPU_Mem"] is None


def test_stages_tell_who_holds_the_memory_and_who_the_cpu(tmp_path: Path) -> None:
    loading = Span("load network", UNIX_S + 1.5, UNIX_S + 2.5)
    report = write_report(tmp_path / "report.json", SPANS, loading)
    found = summarise(with_gpu(), read_timeline(report, with_gpu()))["stages"]
    keys = ("stage", "seconds", "memory_mib", "memory_peak_mib", "memory_change_mib", "cpu_s", "cores", "gpu_peak_mib")
    assert [tuple(row[key] for key in keys) for row in found["table"]] == [
        ("start-up", 1, 100, 100, 0, 1, 1, 3000),
        ("read", 1, 300, 500, 400, 2, 2, 3000),
        ("network", 1, 500, 500, 0, 0, 0, 3000),
        ("exit", 1, 300, 500, -400, 0.5, 0.5, 2148),
    ]
    assert [row["memory_area"] for row in found["table"]] == [100, 300, 500, 300]
    assert (found["memory_peak_in"], found["most_memory_in"], found["most_cpu_in"]) == ("read", "network", "read")
    assert found["network_loaded_beside"]["cpu_s"] == pytest.approx(0.5 + 1)
    assert [span["stage"] for span in found["spans"]] == ["start-up", "read", "network", "exit"]


def test_stages_without_samples_have_no_figures() -> None:
    """Everything is known from 2 to 4 s of a run from 1 to 5 s; start-up ends at 2.5 s."""
    whole = recording(replace(HEADER, gpu={"index": 1, "name": "Quadro", "total_mib": 16384.0}))
    samples = [
        found if 2 <= found.monotonic_s <= 4 else replace(found, memory_mib=None, cpu_s=None, gpu_mib=None)
        for found in whole.samples
    ]
    stretches = (("early", 1, 1.75), ("start-up", 1, 2.5), ("read", 2.5, 4), ("late", 4.5, 5))
    spans = [Span(name, UNIX_S + start, UNIX_S + end) for name, start, end in stretches]
    table = {row.stage: row for row in stage_table(spans, replace(whole, samples=samples))}
    start_up = table["start-up"]
    assert (start_up.seconds, start_up.memory_mib, start_up.memory_area) == (1.5, 200, 100)  # from 100 to 300 in 0.5 s
    assert (start_up.memory_change_mib, start_up.memory_peak_mib) == (200, 300)
    assert (start_up.cpu_s, start_up.cores, start_up.gpu_peak_mib) == (1, 2, 3000)
    for stage in ("early", "late"):
        assert {name for name, value in asdict(table[stage]).items() if value is not None} == {"stage", "seconds"}
    assert sum(row.memory_area or 0 for row in table.values()) == 100 + 200 + 500


def test_partition_has_no_gaps() -> None:
    spans = [Span("a", 12, 13), Span("b", 15, 19)]
    assert partition(spans, 10, 20) == [
        Span("start-up", 10, 12),
        Span("a", 12, 13),
        Span("between", 13, 15),
        Span("b", 15, 19),
        Span("exit", 19, 20),
    ]
    assert partition([], 10, 20) == [Span("start-up", 10, 20)]
    assert partition(spans, 12, 19) == [spans[0], Span("between", 13, 15), spans[1]]


def test_a_stage_that_comes_twice_is_one_row() -> None:
    twice = [Span("network", UNIX_S + 1, UNIX_S + 2), Span("network", UNIX_S + 3, UNIX_S + 4)]
    (row,) = stage_table(twice, recording())
    assert (row.seconds, row.cpu_s, row.memory_mib) == (2, 1, 300)


@pytest.mark.parametrize(
    "content",
    [
        "no JSON",
        "[" * 100_000,
        "[]",
        '{"cases": [{}]}',
        '{"cases": [], "network_load_span": {"a": 1}}',
        report_text(start_unix_s="12"),
        report_text(end_unix_s=float("nan")),
        report_text(end_unix_s=None),
        report_text(stage=["read"]),
    ],
)
def test_what_is_no_report_costs_the_stages_and_nothing_else(content: str, tmp_path: Path) -> None:
    write_samples(tmp_path, recording())
    (tmp_path / "report.json").write_text(content)
    _, profile = write_profile(tmp_path)
    assert profile["stages"] is None
    assert "report.json: tells no spans of stages" in profile["no_stages"]
    assert json.loads((tmp_path / "profile.json").read_text()) == profile


def test_report_of_another_run_is_refused(tmp_path: Path) -> None:
    report = write_report(tmp_path / "report.json", [Span("read", UNIX_S - 100, UNIX_S - 90)])
    with pytest.raises(FolderError, match="expected the report of this run"):
        read_timeline(report, recording())


def test_recording_comes_back_and_survives_a_cut_last_line(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    write_samples(tmp_path, with_gpu())
    assert read_recording(path) == with_gpu()
    path.write_bytes(path.read_bytes()[:-30])  # the line with the ending
    cut = read_recording(path)
    assert cut.ending is None
    assert cut.samples == with_gpu().samples


def test_killed_profiler_leaves_figures(tmp_path: Path) -> None:
    write_samples(tmp_path, recording(ended=False))
    _, profile = write_profile(tmp_path)
    assert (profile["ending"], profile["seconds"]) == (None, 3)
    assert profile["own"]["memory"]["peak_mib"] == 500
    with Image.open(tmp_path / "profile.png") as picture:
        picture.load()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda lines: [], "the first line is not a recording's header"),
        (lambda lines: lines[1:], "the first line is not a recording's header"),
        (lambda lines: [lines[0], "{}"], "line 2 is not of a recording"),
        (lambda lines: [lines[0].replace('"schema_version": 1', '"schema_version": 9')], "schema version 9"),
        (lambda lines: lines[:2], "the command could not be started, or the profiler was killed before"),
    ],
)
def test_what_is_no_recording_is_refused(edit: Any, message: str, tmp_path: Path) -> None:
    write_samples(tmp_path, recording())
    path = tmp_path / "samples.jsonl"
    path.write_text("".join(f"{line}\n" for line in edit(path.read_text().splitlines())))
    with pytest.raises(FolderError, match=message):
        write_profile(tmp_path)


def test_picture_shows_each_stage_in_its_colour(tmp_path: Path) -> None:
    """Fewer colours without the bands: nothing else in the picture differs."""
    write_samples(tmp_path, with_gpu())
    write_profile(tmp_path)
    plain = _colours(tmp_path / "profile.png")
    write_report(tmp_path / "report.json", SPANS)
    write_profile(tmp_path)
    assert len(_colours(tmp_path / "profile.png") - plain) >= 4  # start-up, read, network, exit


def _colours(path: Path) -> set[int]:
    """Those of at least 2 % of the pixels, as one number each."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(np.int32) @ (1 << 16, 1 << 8, 1)
    found, counts = np.unique(pixels, return_counts=True)
    return set(found[counts > 0.02 * pixels.size].tolist())
