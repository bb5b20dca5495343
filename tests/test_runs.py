"""Many cases: what overlaps, what one case may do to the next, and what is let go."""

import json
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app import loading, pipeline, reading, runs
from app.cases import Case
from app.errors import CaseError, DeviceError
from app.machine_limits import MemoryLimit
from app.memory_terms import NetworkMemory, ScanHeader
from app.options import Options
from app.plan import Plan
from app.preprocessing import preprocess
from app.progress import SilentProgress
from app.reading import Description, Reader, can_be_read_ahead, describe
from app.report import RunRecord, StageClock
from app.sliding_window import Predictor
from app.sources import NetworkSource, NetworkSources
from app.volume import Float32Array, Geometry, Volume
from tests.conftest import Oracle, default_plan

IDENTITY = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
SHAPE = (10, 11, 12)
OPTIONS = Options(mode="fastest", spacing="off")


@pytest.fixture
def plan() -> Plan:
    plan = default_plan()
    window = replace(plan.sliding_window, patch_size=(16, 16, 16))
    return replace(plan, labels=("low", "high"), sliding_window=window)


def scan() -> Volume:
    return Volume(np.zeros(SHAPE, np.int16), Geometry(SHAPE, (2.5, 2.0, 2.0), IDENTITY, (0.0, 0.0, 0.0)))


def header(_: Path) -> ScanHeader:
    return ScanHeader(scan().geometry, voxel_bytes=2, reading_bytes=2)


def air(tile: Float32Array) -> Float32Array:
    return np.stack([np.ones_like(tile), np.zeros_like(tile), np.zeros_like(tile)])


def cases_in(folder: Path, names: str) -> list[Case]:
    for name in names:
        (folder / f"{name}_0000.nii.gz").touch()
    return [Case(name, folder / f"{name}_0000.nii.gz", folder / f"{name}.nii.gz") for name in names]


@dataclass
class Traced:
    """The network and the reader of a run, and what they did in which order."""

    events: list[str]
    network_runs: threading.Event
    reads: dict[str, Callable[[], None]]

    def read(self, path: Path) -> Volume:
        name = path.name[0]
        self.events.append(f"read {name}")
        self.reads.get(name, lambda: None)()
        return scan()

    def predict(self, tile: Float32Array) -> Float32Array:
        self.events.append("network")
        self.network_runs.set()
        return air(tile)

    def sources(self, plan: Plan) -> NetworkSources:
        return NetworkSources(NetworkSource(plan, lambda: (Oracle(self.predict), ())))


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Traced:
    traced = Traced([], threading.Event(), {})
    monkeypatch.setattr(reading, "read_volume", traced.read)
    monkeypatch.setattr(reading, "read_header", header)
    return traced


def segmented(cases: list[Case], sources: NetworkSources, options: Options = OPTIONS) -> RunRecord:
    record = RunRecord(options={})
    runs.run(cases, sources, options, SilentProgress(), record)
    return record


def test_the_network_loads_while_the_first_scan_is_read(plan: Plan, tmp_path: Path, traced: Traced) -> None:
    is_loading, is_reading = threading.Event(), threading.Event()

    def read() -> None:
        is_reading.set()
        assert is_loading.wait(10), "the network was not being loaded while the scan was read"

    def load() -> tuple[Predictor, tuple[str, ...]]:
        is_loading.set()
        assert is_reading.wait(10), "the scan was not being read while the network was loaded"
        return Oracle(air), ("chosen for a reason",)

    traced.reads["x"] = read
    record = segmented(cases_in(tmp_path, "x"), NetworkSources(NetworkSource(plan, load)))
    assert record.count("segmented") == 1
    assert record.warnings == ["chosen for a reason"]
    assert record.network == {"backend": "oracle", "device": "cpu", "precision": "fp32"}


def test_the_next_scan_is_read_while_the_network_runs(plan: Plan, tmp_path: Path, traced: Traced) -> None:
    """The second scan arrives only once the network has begun, and the network ends only once it is asked for."""
    asked = threading.Event()
    traced.reads["b"] = asked.set

    def predict(tile: Float32Array) -> Float32Array:
        assert asked.wait(10), "the next scan was not asked for while the network ran"
        return air(tile)

    sources = NetworkSources(NetworkSource(plan, lambda: (Oracle(predict), ())))
    record = segmented(cases_in(tmp_path, "ab"), sources)
    assert record.count("segmented") == 2
    assert traced.events == ["read a", "read b"]


def test_each_scan_is_read_once_and_in_order(plan: Plan, tmp_path: Path, traced: Traced) -> None:
    assert segmented(cases_in(tmp_path, "abcd"), traced.sources(plan)).count("segmented") == 4
    assert [event for event in traced.events if event != "network"] == ["read a", "read b", "read c", "read d"]


def test_without_memory_for_two_nothing_is_read_ahead(
    plan: Plan, tmp_path: Path, traced: Traced, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What two cases need together decides, to the byte; this process is taken to hold nothing, and no reserve."""
    monkeypatch.setattr("app.memory._RESERVE", 0)
    begun: list[str] = []
    begin = Reader.begin

    def watch(reader: Reader, found: Description) -> None:
        begun.append(found.case.case_id)
        begin(reader, found)

    monkeypatch.setattr("app.memory.resident_bytes", lambda: 0)
    monkeypatch.setattr(Reader, "begin", watch)
    cases = cases_in(tmp_path, "ab")
    ample = segmented(cases, traced.sources(plan))
    together, alone = (case.memory for case in ample.cases)
    assert alone is not None
    assert together is not None
    assert together.need_mib > alone.need_mib
    assert begun == ["b"]
    for less, expected in ((0, ["b", "b"]), (1, ["b", "b"])):
        limit = MemoryLimit(round(together.need_mib * 2**20) - less, "a test")
        monkeypatch.setattr("app.memory.memory_limit", lambda *_, limit=limit: limit)
        found = segmented(cases, traced.sources(plan))
        assert begun == expected
        assert found.count("segmented") == 2
    assert [case.memory.need_mib for case in found.cases if case.memory] == [alone.need_mib] * 2


def test_what_cannot_be_read_ahead_is_read_again_in_its_turn(plan: Plan, tmp_path: Path, traced: Traced) -> None:
    """Memory that was short while the network ran may be there after it."""

    def fail_once() -> None:
        if traced.events.count("read b") == 1:
            raise MemoryError

    traced.reads["b"] = fail_once
    assert segmented(cases_in(tmp_path, "ab"), traced.sources(plan)).count("segmented") == 2
    assert traced.events.count("read b") == 2


def test_a_case_that_finds_no_memory_is_tried_again_without_the_next_one(
    plan: Plan, tmp_path: Path, traced: Traced
) -> None:
    def predict(tile: Float32Array) -> Float32Array:
        traced.events.append("network")
        if traced.events.count("network") == 1:
            raise MemoryError
        return air(tile)

    sources = NetworkSources(NetworkSource(plan, lambda: (Oracle(predict), ())))
    record = segmented(cases_in(tmp_path, "ab"), sources)
    assert [case.status for case in record.cases] == ["segmented", "segmented"]
    assert [event for event in traced.events if event != "network"] in (
        ["read a", "read b", "read a", "read b"],
        ["read a", "read a", "read b"],  # the thread had not begun when it was called off
    )


def test_the_second_attempt_begins_without_what_the_first_one_held(
    plan: Plan, tmp_path: Path, traced: Traced, monkeypatch: pytest.MonkeyPatch
) -> None:
    images: list[weakref.ref[Float32Array]] = []
    held: list[bool] = []

    def traced_preprocess(*arguments: Any) -> Any:
        held.extend(image() is not None for image in images)
        image, record = preprocess(*arguments)
        images.append(weakref.ref(image))
        return image, record

    def predict(tile: Float32Array) -> Float32Array:
        if len(images) == 1:
            raise MemoryError
        return air(tile)

    monkeypatch.setattr(pipeline, "preprocess", traced_preprocess)
    segmented(cases_in(tmp_path, "ab"), NetworkSources(NetworkSource(plan, lambda: (Oracle(predict), ()))))
    assert (len(images), held) == (3, [False] * 3)


def test_no_memory_to_examine_a_label_map_costs_no_label_map(
    plan: Plan, tmp_path: Path, traced: Traced, monkeypatch: pytest.MonkeyPatch
) -> None:
    def examine(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("app.runs.examine", examine)
    cases = cases_in(tmp_path, "ab")
    record = segmented(cases, traced.sources(plan))
    assert [case.status for case in record.cases] == ["segmented", "segmented"]
    assert all(case.output_path.is_file() for case in cases)
    assert [event for event in traced.events if event.startswith("read")] == ["read a", "read b"]
    for case in record.cases:
        assert case.plausibility is None
        assert ["plausible" in warning for warning in case.warnings] == [True]


def test_no_thread_for_reading_ahead_costs_no_label_map(
    plan: Plan, tmp_path: Path, traced: Traced, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(Reader, "begin", begin)
    assert segmented(cases_in(tmp_path, "ab"), traced.sources(plan)).count("segmented") == 2


def test_skipped_and_refused_cases_are_not_read_ahead(plan: Plan, tmp_path: Path, traced: Traced) -> None:
    first, done, refused = cases_in(tmp_path, "abc")
    done.output_path.touch()
    cases = [first, done, replace(refused, refusal="a name that cannot be")]
    record = segmented(cases, traced.sources(plan), replace(OPTIONS, skip_existing=True))
    assert [case.status for case in record.cases] == ["segmented", "skipped", "failed"]
    assert traced.events == ["read a", "network"]


@pytest.mark.parametrize("name", ["b.mha", "b.nrrd", "series"])
def test_what_foreign_code_reads_is_not_read_ahead(name: str) -> None:
    assert not can_be_read_ahead(Case("b", Path(name), Path("out.nii.gz")))
    assert can_be_read_ahead(Case("b", Path("B_0000.NII.GZ"), Path("out.nii.gz")))


@pytest.mark.parametrize("ahead", [True, False])
def test_the_voxels_are_let_go_before_the_network_runs(
    plan: Plan, tmp_path: Path, traced: Traced, monkeypatch: pytest.MonkeyPatch, ahead: bool
) -> None:
    """Of the first case and of the second, whether that was read ahead or not."""
    voxels: list[weakref.ref[Any]] = []
    alive: list[bool] = []

    def read_volume(path: Path) -> Volume:
        volume = traced.read(path)
        voxels.append(weakref.ref(volume.voxels))
        return volume

    def predict(tile: Float32Array) -> Float32Array:
        alive.append(voxels[len(alive)]() is not None)
        return air(tile)

    monkeypatch.setattr(reading, "read_volume", read_volume)
    sources = NetworkSources(NetworkSource(plan, lambda: (Oracle(predict), ())))
    segmented(cases_in(tmp_path, "ab"), sources, replace(OPTIONS, read_ahead=ahead))
    assert alive == [False, False]


def test_a_scan_read_ahead_for_another_case_is_let_go(tmp_path: Path, traced: Traced) -> None:
    first, second = cases_in(tmp_path, "ab")
    reader = Reader()
    reader.begin(describe(second))
    assert reader.take(first) is None
    assert reader.take(second) is None
    assert traced.events == ["read b"]
    assert not reader.drop()
    reader.begin(describe(second))
    assert reader.drop()
    reader.close()


def test_a_file_that_was_replaced_since_is_read_again(plan: Plan, tmp_path: Path, traced: Traced) -> None:
    """Its header and its voxels must be of one state: it is written to when it was read ahead."""
    (second,) = cases_in(tmp_path, "b")
    reader = Reader()
    reader.begin(describe(second))
    assert reader.take(second) is not None
    reader.begin(describe(second))
    assert reader._ahead is not None
    reader._ahead[1].result()
    second.input_path.write_bytes(b"another")
    assert reader.take(second) is None
    reader.begin(describe(second))
    assert reader._ahead is not None
    reader._ahead[1].result()
    second.input_path.unlink()
    with pytest.raises(CaseError, match=r"b_0000\.nii\.gz: cannot be read"):
        reader.take(second)
    reader.close()


@pytest.mark.parametrize("found", [np.full((3, 16, 16, 16), np.nan, np.float32), np.zeros((2, 16, 16, 16), np.float32)])
def test_a_network_that_fails_fails_the_case_and_writes_nothing(
    plan: Plan, tmp_path: Path, traced: Traced, found: Float32Array
) -> None:
    cases = cases_in(tmp_path, "ab")
    sources = NetworkSources(NetworkSource(plan, lambda: (Oracle(lambda _: found), ())))
    assert segmented(cases, sources).count("failed") == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a_0000.nii.gz", "b_0000.nii.gz"]


def test_a_twin_that_is_let_go_is_waited_for(plan: Plan) -> None:
    """Its memory is free only when nothing loads it any more."""
    began, ended = threading.Event(), threading.Event()

    def load() -> tuple[Predictor, tuple[str, ...]]:
        began.set()
        time.sleep(0.1)
        ended.set()
        return Oracle(air), ()

    first = NetworkSource(plan, lambda: (Oracle(air), ()))
    networks = loading.Networks(NetworkSources(first, twin=NetworkSource(plan, load)), RunRecord(options={}))
    networks.begin()
    networks.begin_twin()
    assert began.wait(10)
    networks.drop_twin()
    assert ended.is_set()
    assert networks.get(StageClock())[2] is None
    networks.close()


def test_the_network_is_waited_for_with_its_first_window(
    plan: Plan, tmp_path: Path, traced: Traced, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It arrives only once the scan is resampled; the time until then is the stage ``load``, entered once."""
    resampled = threading.Event()
    usual = pipeline.preprocess  # type: ignore[attr-defined]

    def preprocess(*arguments: Any) -> Any:
        found = usual(*arguments)
        resampled.set()
        return found

    def load() -> tuple[Predictor, tuple[str, ...]]:
        assert resampled.wait(10), "the scan was not resampled while the network was loaded"
        return Oracle(traced.predict), ()

    monkeypatch.setattr(pipeline, "preprocess", preprocess)
    record = segmented(cases_in(tmp_path, "a"), NetworkSources(NetworkSource(plan, load)))
    (case,) = record.cases
    assert case.status == "segmented"
    assert case.seconds["load"] > 0
    assert [span.stage for span in case.spans].count("load") == 1
    stages = list(dict.fromkeys(span.stage for span in case.spans))
    assert stages.index("preprocess") < stages.index("load")


def test_the_locator_is_loaded_first(plan: Plan, tmp_path: Path, traced: Traced) -> None:
    """It is needed first: the segmenter comes only once the locator has run."""
    order: list[str] = []
    located = threading.Event()

    def find(tile: Float32Array) -> Float32Array:
        located.set()
        return air(tile)

    def load_locator() -> tuple[Predictor, tuple[str, ...]]:
        order.append("locator")
        return Oracle(find), ("the same reason",)

    def load() -> tuple[Predictor, tuple[str, ...]]:
        assert located.wait(10), "the locator did not run while the segmenter was loaded"
        order.append("segmenter")
        return Oracle(traced.predict), ("the same reason",)

    sources = NetworkSources(NetworkSource(plan, load), NetworkSource(plan, load_locator))
    record = segmented(cases_in(tmp_path, "a"), sources, replace(OPTIONS, crop="organs"))
    assert (order, record.count("segmented")) == (["locator", "segmenter"], 1)
    assert record.warnings == ["the same reason"]
    assert record.network_load_span is not None
    assert record.network_load_s is not None
    lasted = record.network_load_span.end_unix_s - record.network_load_span.start_unix_s
    assert lasted >= record.network_load_s > 0


def test_a_runtime_that_fails_while_loading_is_not_taken_for_a_failed_window(
    plan: Plan, tmp_path: Path, traced: Traced
) -> None:
    def fail() -> tuple[Predictor, tuple[str, ...]]:
        raise RuntimeError("no such instruction")

    with pytest.raises(DeviceError, match=r"the network cannot be loaded \(no such instruction\)"):
        segmented(cases_in(tmp_path, "ab"), NetworkSources(NetworkSource(plan, fail)))


@pytest.mark.parametrize("which", ["segmenter", "locator"])
def test_a_network_that_cannot_be_loaded_ends_the_run(plan: Plan, tmp_path: Path, traced: Traced, which: str) -> None:
    def fail() -> tuple[Predictor, tuple[str, ...]]:
        raise DeviceError("no such device")

    bad, good = NetworkSource(plan, fail), NetworkSource(plan, lambda: (Oracle(air), ()))
    sources = NetworkSources(bad) if which == "segmenter" else NetworkSources(good, bad)
    record = RunRecord(options={})
    with pytest.raises(DeviceError, match="no such device"):
        runs.run(cases_in(tmp_path, "ab"), sources, replace(OPTIONS, crop="organs" if sources.locator else "none"),
                 SilentProgress(), record)  # fmt: skip
    assert [(case.status, case.error) for case in record.cases] == [("failed", "no such device"), ("not_begun", None)]


def test_the_sources_add_up(plan: Plan) -> None:
    def source(*sizes: int) -> NetworkSource:
        return NetworkSource(plan, lambda: (Oracle(air), ()), NetworkMemory(*sizes))

    sources = NetworkSources(source(100, 20, 300), source(100, 2, 30), source(100, 20, 300))
    assert sources.memory() == NetworkMemory(100, 22, 330)
    assert sources.memory(with_twin=True) == NetworkMemory(100, 42, 630)


def test_a_kernel_that_does_not_tell_the_peak_costs_no_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda path, *_, **__: "Name:\tpython\nVmRSS:\t  1000 kB\n")
    RunRecord(options={}).write(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_bytes())["peak_memory_mib"] is None
