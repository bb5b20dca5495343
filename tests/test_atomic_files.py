"""Whole files or none: two writers of one name, what a killed run left, file systems that know no locks."""

import errno
import fcntl
import json
import os
from pathlib import Path

import pytest

from app.atomic_files import atomic_file, remove_partials, write_text
from app.errors import CaseError, FolderError
from app.report import CaseRecord, RunRecord


def partials(folder: Path) -> list[Path]:
    return sorted(folder.glob(".*.partial"))


def test_a_second_writer_is_refused_and_the_first_one_unharmed(tmp_path: Path) -> None:
    """flock tells two descriptors apart, so one process can play both runs."""
    path = tmp_path / "a.nii.gz"
    with atomic_file(path) as stream:
        stream.write(b"first")
        with pytest.raises(CaseError, match=r"a\.nii\.gz: another run is writing it"), atomic_file(path) as second:
            second.write(b"second")
        remove_partials(path.parent)
        assert len(partials(tmp_path)) == 1
    assert path.read_bytes() == b"first"
    assert partials(tmp_path) == []


def test_what_a_killed_run_left_is_overwritten_or_removed(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    with pytest.raises(FolderError, match="Is a directory"), atomic_file(path):
        (left,) = partials(tmp_path)
        path.mkdir()
    path.rmdir()
    left.write_bytes(b"longer than what follows")
    with atomic_file(path) as stream:
        stream.write(b"whole")
    assert path.read_bytes() == b"whole"
    left.write_bytes(b"left again")
    remove_partials(path.parent)
    assert [each.name for each in tmp_path.iterdir()] == ["a.nii.gz"]


def test_partial_files_of_other_names_are_removed_too_but_nothing_else(tmp_path: Path) -> None:
    """Each of FLARE's containers has one case: what the first one left, the second one knows no name for."""
    (tmp_path / ".0123456789abcdef.partial").write_bytes(b"left")
    others = [".0123456789abcdef.partial.gz", ".0123456789ABCDEF.partial", ".probe.partial", "a.partial"]
    for name in others:
        (tmp_path / name).write_bytes(b"not ours")
    (tmp_path / ".fedcba9876543210.partial").mkdir()
    with atomic_file(tmp_path / "b.nii.gz") as stream:
        (held,) = (path for path in partials(tmp_path) if path.is_file() and not path.read_bytes())
        remove_partials(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {*others, ".fedcba9876543210.partial", held.name}
        stream.write(b"whole")
    assert (tmp_path / "b.nii.gz").read_bytes() == b"whole"
    remove_partials(tmp_path / "nowhere")


def test_a_writer_waits_while_another_run_looks_at_its_new_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with atomic_file(tmp_path / "a"):
        (partial,) = partials(tmp_path)
    (tmp_path / "a").rename(partial)
    looking = partial.open("r+b")
    fcntl.flock(looking, fcntl.LOCK_EX)

    def removed_meanwhile(_seconds: float) -> None:
        partial.unlink()
        looking.close()

    monkeypatch.setattr("app.atomic_files.time.sleep", removed_meanwhile)
    with atomic_file(tmp_path / "a") as stream:
        stream.write(b"whole")
    assert (tmp_path / "a").read_bytes() == b"whole"


def test_a_link_in_place_of_the_partial_file_is_not_followed(tmp_path: Path) -> None:
    outputs, path = tmp_path / "outputs", tmp_path / "outputs" / "a.nii.gz"
    outputs.mkdir()
    treasure = tmp_path / "treasure"
    treasure.write_bytes(b"mine")
    with atomic_file(path) as stream:
        stream.write(b"x")
        (left,) = partials(outputs)
    left.symlink_to(treasure)
    with pytest.raises(FolderError, match="symbolic links"), atomic_file(path) as stream:
        stream.write(b"y")
    assert treasure.read_bytes() == b"mine"
    remove_partials(path.parent)
    assert not left.is_symlink()


def test_a_file_system_without_locks_and_folder_flushes_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As SMB shares are: flock says ENOTSUP, and fsync of a folder EINVAL."""
    fsync = os.fsync

    def no_lock(*_: object) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    def files_only(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").is_dir():
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(descriptor)

    monkeypatch.setattr(fcntl, "flock", no_lock)
    monkeypatch.setattr(os, "fsync", files_only)
    with atomic_file(tmp_path / "a") as stream:
        remove_partials(tmp_path)  # which may be another run's
        stream.write(b"whole")
    assert (tmp_path / "a").read_bytes() == b"whole"


def test_a_lock_that_fails_otherwise_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(FolderError, match=r"a: cannot be written \(Input/output error\)"), atomic_file(tmp_path / "a"):
        pass


def test_names_that_are_not_utf8_make_no_text_that_is_not(tmp_path: Path) -> None:
    """In JSON, as the app's report is, such a name comes back as it was."""
    name = os.fsdecode(b"caf\xe9")
    write_text(tmp_path / "a.csv", f"{name},é\n")
    assert (tmp_path / "a.csv").read_text(encoding="utf-8") == "caf\\udce9,é\n"
    record = RunRecord({})
    record.cases.append(CaseRecord(name, f"{name}_0000.nii.gz", f"{name}.nii.gz"))
    record.write(tmp_path / "report.json")
    (case,) = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["cases"]
    assert (case["case_id"], case["output"]) == (name, f"{name}.nii.gz")
