"""The app unpickles nothing: a pickle may name any function, and reading it calls that.

import-linter keeps ``pickle`` out of app's own imports; here a run in a process of its own proves it for the libraries,
too. The hook sees every class that is looked up, the replaced functions every other beginning of unpickling.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, tissue, write_scan

GUARD = """
import sys

def refuse(*_, **__):
    raise SystemExit("something was unpickled")

class Unpickler:
    def __init__(self, *_, **__):
        refuse()

sys.addaudithook(lambda event, _: refuse() if event == "pickle.find_class" else None)
import _pickle, pickle
for module in (_pickle, pickle):
    module.load, module.loads, module.Unpickler = refuse, refuse, Unpickler
pickle._load, pickle._loads, pickle._Unpickler = refuse, refuse, Unpickler
"""
RUN = "from app.__main__ import main\nsys.exit(main(sys.argv[1:]))"
UNPICKLING = (
    "import pickle; pickle.loads(b'N.')",
    "import io, pickle; pickle.Unpickler(io.BytesIO(b'N.'))",
    "import io, numpy; s = io.BytesIO(); numpy.save(s, [None], allow_pickle=True); s.seek(0); "
    "numpy.load(s, allow_pickle=True)",
    "import shelve, tempfile; d = shelve.open(tempfile.mkdtemp() + '/d'); d['a'] = 1; d['a']",
)


def guarded(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-c", GUARD + code, *map(str, arguments)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("code", UNPICKLING)
def test_the_guard_sees_what_unpickles(code: str) -> None:
    done = guarded(code)
    assert (done.returncode, done.stderr.strip()) == (1, "something was unpickled")


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_a_run_unpickles_nothing(tmp_path: Path, tiny_bundle: Path, backend: str) -> None:
    write_scan(tmp_path / "a.nii.gz", tissue())
    files = ("--input", tmp_path / "a.nii.gz", "--output", tmp_path / "labels.nii.gz")
    done = guarded(RUN, *files, "--bundle", tiny_bundle, "--backend", backend, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "labels.nii.gz").exists()


@pytest.mark.long
def test_a_run_with_torch_and_the_default_network_unpickles_nothing(tmp_path: Path) -> None:
    """Imports torch, builds the network and reads ``network.safetensors``; the scan fails before it is segmented."""
    (tmp_path / "a.nii.gz").touch()
    files = ("--input", tmp_path / "a.nii.gz", "--output", tmp_path / "labels.nii.gz")
    done = guarded(RUN, *files, "--backend", "torch", "--device", "cpu")
    assert done.returncode == 1, done.stderr
    assert "network ready: torch" in done.stderr
    assert "1 failed" in done.stderr


def test_pickle_of_a_name_is_no_scan(tmp_path: Path, tiny_bundle: Path) -> None:
    """Whatever its ending says."""
    content = b"cos\nsystem\n(S'touch up'\ntR."
    for suffix in (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".nhdr"):
        (tmp_path / f"a{suffix[1]}{suffix}").write_bytes(content)
    files = ("--input-dir", tmp_path, "--output-dir", tmp_path / "labels")
    done = guarded(RUN, *files, "--bundle", tiny_bundle, "--device", "cpu")
    assert done.returncode == 1, done.stderr
    assert list((tmp_path / "labels").iterdir()) == []
