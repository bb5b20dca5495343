"""The fuzzer: its inputs, that it notices what it looks for, a short run, and what the long ones found."""

import gzip
import json
import os
import signal
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from app.errors import CaseError
from app.interruption import interruptible
from app.nifti import read_nifti_header
from app.volume_io import read_volume, write_label_map
from tests.conftest import ROOT, read_label_map, run_app, tissue, write_scan
from tools.hostile import fuzz as parent
from tools.hostile.constant import LABEL, ConstantPredictor, Finding
from tools.hostile.gzip_streams import bomb
from tools.hostile.mutation import make_input

SEEDS = 400


def test_equal_seeds_give_equal_files_and_healthy_ones_are_healthy(tmp_path: Path) -> None:
    healthy = 0
    for seed in range(SEEDS):
        given = make_input(seed)
        assert given == make_input(seed)
        if given.healthy:
            healthy += 1
            path = tmp_path / given.name.replace(".NII.GZ", ".nii.gz")
            path.write_bytes(given.content)
            assert np.isfinite(np.asarray(nib.load(path).dataobj)).all()
    assert SEEDS / 16 < healthy < SEEDS / 4


def test_a_bomb_is_a_sound_stream() -> None:
    packed = bomb(b"header", 150 * 2**20)
    assert len(packed) < 250_000
    assert gzip.decompress(packed) == b"header" + bytes(150 * 2**20)


def child_that(tmp_path: Path, does: str) -> str:
    """A stand-in for Python, and so for the fuzzer's child: at seed 3 of its range it ``does``."""
    script = tmp_path / "child"
    script.write_text(
        f"#!{sys.executable}\n"
        "import json, os, pathlib, signal, struct, sys, time\n"
        "first, count, folder = int(sys.argv[3]), int(sys.argv[4]), pathlib.Path(sys.argv[5])\n"
        "for seed in range(first, first + count):\n"
        "    (folder / 'seed').write_bytes(struct.pack('<q', seed))\n"
        f"    if seed == 3: {does}\n"
        "    tally = {'next': seed + 1, 'outcomes': {'label map': seed + 1 - first}, 'families': {}, 'reasons': {},\n"
        "             'slowest_s': 0.5, 'slowest_seed': first, 'largest_mib': 1.0, 'largest_seed': first}\n"
        "    if seed % 2: (folder / 'tally.json').write_text(json.dumps(tally))\n"
        "    elif seed + 1 == first + count: (folder / 'tally.json').write_text(json.dumps(tally))\n"
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return str(script)


@pytest.mark.parametrize(
    ("does", "end", "message"),
    [
        ("raise ValueError('odd')", "exit code 1", "ValueError: odd"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV", ""),
        ("time.sleep(60)", "hang", ""),
        ("exec('while True: pass')", "hang", ""),
    ],
)
def test_the_seed_of_a_crash_or_hang_is_found_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, does: str, end: str, message: str
) -> None:
    monkeypatch.setattr(sys, "executable", child_that(tmp_path, does))
    monkeypatch.setattr(parent, "LONGEST_S", 0.3)
    monkeypatch.setattr(parent, "LONGEST_WAIT_S", 0.6 if "sleep" in does else 30.0)
    saved: list[dict[str, Any]] = []
    record = parent.fuzz(parent.new_record(), 6, lambda each: saved.append(json.loads(json.dumps(each))))
    assert record["findings"] == [{"seed": 3, "end": end, "message": message}]
    assert record["outcomes"] == {"label map": 5}
    assert (record["next"], saved[-1]["next"]) == (6, 6)


def test_a_stopped_run_goes_on_and_one_of_other_code_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", child_that(tmp_path, "pass"))
    record = parent.fuzz(parent.new_record(), 2, lambda _: None)
    assert parent.fuzz(record, 5, lambda _: None)["outcomes"] == {"label map": 5}
    assert parent.fuzz({**record, "digest": "another"}, 1, lambda _: None)["outcomes"] == {"label map": 1}


@contextmanager
def terminated_when(condition: Callable[[], bool]) -> Iterator[None]:
    """Sends SIGTERM to this process as soon as something is so, unless the block has ended."""
    ended = threading.Event()

    def wait() -> None:
        while not condition():
            if ended.wait(0.02):
                return
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_what_was_tried_without_a_gap_and_every_finding_outlive_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seeds 0 and 1 are counted, 3 does not end; 5 to 9 are tried again, since 2 was not counted, but 7 is kept."""
    others = "    if seed == 7: raise ValueError('odd')\n    if seed == 9: (folder.parent.parent / 'nine').touch()"
    halting = child_that(tmp_path, f"(folder.parent.parent / 'three').touch(); time.sleep(60)\n{others}")
    monkeypatch.setattr(parent, "memory_disk", lambda: str(tmp_path))
    monkeypatch.setattr(parent, "BLOCK", 5)
    saved: list[dict[str, Any]] = []
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt), interruptible():
        patched.setattr(sys, "executable", halting)
        with terminated_when(lambda: (tmp_path / "three").exists() and (tmp_path / "nine").exists()):
            parent.fuzz(parent.new_record(), 10, lambda each: saved.append(json.loads(json.dumps(each))), workers=2)
    (record,) = saved
    findings = [{"seed": 7, "end": "exit code 1", "message": "ValueError: odd"}]
    assert (record["next"], record["outcomes"], record["findings"]) == (2, {"label map": 2}, findings)
    assert list(tmp_path.glob("hostile-*")) == []
    monkeypatch.setattr(sys, "executable", child_that(tmp_path, f"pass\n{others}"))
    record = parent.fuzz(record, 10, lambda _: None, workers=2)
    assert (record["next"], record["outcomes"], record["findings"]) == (10, {"label map": 9}, findings)


def test_ctrl_c_ends_the_children_and_is_no_finding(tmp_path: Path) -> None:
    """A terminal sends it to all processes of the group."""
    child = child_that(tmp_path, "(folder.parent.parent / f'started_{os.getpid()}').touch(); time.sleep(60)")
    script = (
        "import json, pathlib, signal, sys; from tools.hostile import fuzz\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "folder, sys.executable = pathlib.Path(sys.argv[1]), sys.argv[2]\n"
        "fuzz.memory_disk = lambda: str(folder)\n"
        "fuzz.fuzz(fuzz.new_record(), 5, lambda each: (folder / 'saved').write_text(json.dumps(each)))\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path), child]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True) as process:
        until = time.monotonic() + 60
        while not list(tmp_path.glob("started_*")) and time.monotonic() < until:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(30) == -signal.SIGINT
    (started,) = tmp_path.glob("started_*")
    assert not Path("/proc", started.name.removeprefix("started_")).exists()
    assert json.loads((tmp_path / "saved").read_text())["findings"] == []
    assert list(tmp_path.glob("hostile-*")) == []


def test_the_constant_predictor_objects_to_what_no_network_can_use() -> None:
    tile = np.zeros((2, 3, 4), dtype=np.float32)
    assert ConstantPredictor(4).predict(tile).argmax(axis=0).min() == LABEL
    tile[0, 0, 0] = np.nan
    with pytest.raises(Finding, match="not finite"):
        ConstantPredictor(4).predict(tile)


@pytest.mark.long
def test_a_short_run_finds_nothing() -> None:
    record = parent.fuzz(parent.new_record(), 1500, lambda _: None, workers=2)
    assert record["findings"] == []
    assert sum(record["outcomes"].values()) == 1500
    assert record["outcomes"]["label map"] > 300
    assert len(record["reasons"]) > 20


# --- what the long runs found -----------------------------------------------------------------------------


def fields(**values: Any) -> Callable[[Any], None]:
    """Sets header fields."""

    def edit(header: Any) -> None:
        for name, value in values.items():
            header[name] = value

    return edit


@pytest.mark.parametrize(
    "edit",
    [
        fields(sform_code=99, qform_code=1, quatern_b=1e3),  # nibabel drops the code 99 and then needs the quaternion
        fields(sform_code=2, qform_code=-1, quatern_c=np.nan),
        fields(magic=b"n+1x"),
    ],
)
def test_the_label_map_of_an_odd_header_is_one_that_others_read(tmp_path: Path, edit: Callable[[Any], None]) -> None:
    scan = write_scan(tmp_path / "a.nii", tissue(), edit=edit)
    volume = read_volume(scan)
    write_label_map(tmp_path / "labels.nii", np.ones((10, 11, 12), np.uint8), volume)
    found = nib.load(tmp_path / "labels.nii")
    assert (found.shape, int(found.header["sform_code"]) in (1, 2)) == ((12, 11, 10), True)
    assert bytes(found.header.binaryblock[-4:]) == b"n+1\0"
    np.testing.assert_array_equal(found.affine, np.diag([-1.0, -2.0, 3.0, 1.0]))


def test_a_nifti_2_label_map_has_the_standards_magic(tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "a.nii", tissue(), version=2, edit=fields(eol_check=0, unused_str=b"a name"))
    write_label_map(tmp_path / "labels.nii", np.ones((10, 11, 12), np.uint8), read_volume(scan))
    content = (tmp_path / "labels.nii").read_bytes()
    assert content[4:12] == b"n+2\0\r\n\x1a\n"
    assert b"a name" not in content


@pytest.mark.parametrize(
    "edit",
    [
        fields(srow_x=(3e38, 0, 0, 0)),  # its square overflows
        fields(srow_x=(0, 1e-45, 0, 0), srow_y=(1e-45, 0, 0, 0)),  # its determinant underflows
        fields(srow_x=(1, 2, 3, 0), srow_y=(2, 4, 6, 0)),
    ],
)
def test_axes_that_span_no_space_are_refused(tmp_path: Path, edit: Callable[[Any], None]) -> None:
    path = write_scan(tmp_path / "a.nii", tissue(), edit=edit)
    with pytest.raises(CaseError, match="is singular or vast; expected three independent axes"):
        read_nifti_header(path)


def test_a_qform_beyond_all_bounds_disagrees_and_is_no_warning_of_numpys(tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "a.nii", tissue(), version=2, edit=fields(qoffset_x=1e300))
    assert read_volume(scan).warnings == ("sform and qform disagree; the sform is used",)


def test_voxels_that_only_a_double_can_hold_become_air(tmp_path: Path) -> None:
    """-1024 HU would be 1e40 stored, which float32 cannot say either."""
    values = np.full((3, 4, 5), 1e300)
    values[0] = 0
    volume = read_volume(write_scan(tmp_path / "a.nii", values, version=2, edit=fields(scl_slope=-1e-37)))
    assert np.isfinite(volume.voxels.astype(np.float32)).all()


def test_an_axis_that_would_take_minutes_is_refused(tmp_path: Path, tiny_bundle: Path) -> None:
    scan = write_scan(tmp_path / "a.nii.gz", np.zeros((1, 5000, 1), np.int8), (1.0, 0.1, 0.1))
    report = tmp_path / "report.json"
    command = ("--input", scan, "--output", tmp_path / "b.nii.gz", "--bundle", tiny_bundle, "--report", report)
    assert run_app(*command) == 1
    assert "1x5000x1 voxels (z, y, x), 1x250x1 for the network; expected at most 4096" in report.read_text()


def test_a_consistent_gzip_bomb_is_refused_with_its_numbers(tmp_path: Path) -> None:
    """2,000,000,000 bytes in about 2 MB: a ratio of 1000. A large scan may shrink to a hundredth."""

    def promise(header: Any) -> None:
        header["dim"][1:4] = (1000, 1000, 1000)
        header["pixdim"][1:4] = 0.5
        header.set_sform(np.diag([-0.5, -0.5, 0.5, 1.0]), code=1)

    empty = write_scan(tmp_path / "a.nii", np.zeros((1, 1, 1), np.int16), edit=promise).read_bytes()[:352]
    path = tmp_path / "bomb.nii.gz"
    path.write_bytes(bomb(empty, 2_000_000_000))
    size = path.stat().st_size
    words = rf"1000x1000x1000 voxels \(2000000000 bytes\), {2_000_000_000 // size} times the {size} bytes of the file"
    with pytest.raises(CaseError, match=words):
        read_nifti_header(path)


def test_memory_that_a_scan_of_zeros_would_take_is_foreseen(tmp_path: Path, tiny_bundle: Path) -> None:
    """60,000^3 voxels of NIfTI-2 in a file that is as long as they are, and takes no space."""

    def promise(header: Any) -> None:
        header["dim"][1:4] = 60_000
        header.set_sform(np.diag([-0.05, -0.05, 0.05, 1.0]), code=1)
        header["pixdim"][1:4] = 0.05

    folder = Path("/dev/shm") / f"3dcps-{os.getpid()}"  # ext4's files end at 16 TB
    folder.mkdir()
    try:
        scan = write_scan(folder / "a.nii", np.zeros((1, 1, 1), np.uint8), version=2, edit=promise)
        os.truncate(scan, 544 + 60_000**3)
        report = tmp_path / "report.json"
        command = ("--input", scan, "--output", tmp_path / "b.nii.gz", "--bundle", tiny_bundle, "--report", report)
        assert run_app(*command) == 1
        (case,) = json.loads(report.read_text())["cases"]
    finally:
        (folder / "a.nii").unlink()
        folder.rmdir()
    assert "60000x60000x60000 voxels (z, y, x) need" in case["error"]
    assert case["seconds"]["read"] < 1


def test_label_maps_are_checked_without_the_apps_own_reader(tmp_path: Path) -> None:
    from tools.hostile.fuzz_child import _check_label_map

    path = tmp_path / "a.nii.gz"
    write_label_map(path, np.full((10, 11, 12), LABEL, np.uint8), read_volume(write_scan(tmp_path / "s.nii", tissue())))
    _check_label_map(path, (12, 11, 10))
    assert read_label_map(path).min() == LABEL
    content = gzip.decompress(path.read_bytes())
    for spoiled in (
        content[:-1],
        content[:-1] + b"\x03",
        content[:46] + struct.pack("<h", 9) + content[48:],
        content[:352] + bytes(1320),
    ):
        path.write_bytes(gzip.compress(spoiled))
        with pytest.raises(Finding, match="label map"):
            _check_label_map(path, (12, 11, 10))
