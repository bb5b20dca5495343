"""predict.sh on a host: which interpreter, which folders, which arguments reach the app."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
SHELL = shutil.which("dash") or "sh"  # FLARE's image has dash as its sh
RECORDER = """#!/bin/sh
printf '%s\\n' "PYTHONPATH=$PYTHONPATH" "PWD=$(pwd)" "$@" > "$RECORD"
exit "${EXIT_CODE:-0}"
"""


class Checkout:
    """A folder with a copy of predict.sh, run with an interpreter that only writes down how it was called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.record = folder / "record"
        self.interpreter = self.make_interpreter(folder / "recorder")
        shutil.copy(REPOSITORY / "predict.sh", folder)

    def make_interpreter(self, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(RECORDER)
        path.chmod(0o755)
        return path

    def run(
        self, *arguments: str, script: str | None = None, cwd: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if name not in ("PYTHON", "PYTHONPATH", "CDPATH")}
        return subprocess.run(
            [SHELL, script or str(self.folder / "predict.sh"), *arguments],
            cwd=cwd or self.folder,
            env={**clean, "RECORD": str(self.record), "PYTHON": str(self.interpreter), **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    def called_with(self) -> list[str]:
        return self.record.read_text().splitlines()[2:]

    def default_call(self) -> list[str]:
        inputs, outputs = self.folder / "inputs", self.folder / "outputs"
        return ["-P", "-m", "app", "--input-dir", str(inputs), "--output-dir", str(outputs)]


@pytest.fixture(params=["plain", "with two spaces", "$HOME 'quoted'"])
def checkout(tmp_path: Path, request: pytest.FixtureRequest) -> Checkout:
    folder = tmp_path / request.param
    folder.mkdir()
    return Checkout(folder)


def test_is_executable_posix_shell() -> None:
    script = REPOSITORY / "predict.sh"
    assert os.access(script, os.X_OK)
    assert subprocess.run([SHELL, "-n", str(script)], check=False).returncode == 0
    assert "set -eu" in script.read_text().splitlines()


def test_segments_the_two_folders_beside_it(checkout: Checkout) -> None:
    assert checkout.run(script="predict.sh").returncode == 0
    assert checkout.called_with() == checkout.default_call()


def test_works_from_another_folder_and_stays_there(checkout: Checkout, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert checkout.run(cwd=elsewhere, CDPATH=str(tmp_path)).returncode == 0
    assert checkout.called_with() == checkout.default_call()
    assert f"PWD={elsewhere}" in checkout.record.read_text().splitlines()


def test_passes_arguments_on_after_its_own(checkout: Checkout) -> None:
    arguments = ["--input-dir", "my scans", "--mode", "normal", "", "a*b"]
    checkout.run(*arguments)
    assert checkout.called_with() == [*checkout.default_call(), *arguments]


@pytest.mark.parametrize("code", [0, 1, 4])
def test_exit_code_is_the_apps(checkout: Checkout, code: int) -> None:
    assert checkout.run(EXIT_CODE=str(code)).returncode == code


def test_own_folder_comes_first_on_pythonpath(checkout: Checkout) -> None:
    checkout.run()
    assert f"PYTHONPATH={checkout.folder}" in checkout.record.read_text().splitlines()
    checkout.run(PYTHONPATH="/elsewhere")
    assert f"PYTHONPATH={checkout.folder}:/elsewhere" in checkout.record.read_text().splitlines()


def test_without_python_takes_the_virtual_environment(checkout: Checkout) -> None:
    checkout.make_interpreter(checkout.folder / ".venv" / "bin" / "python")
    assert checkout.run(PYTHON="").returncode == 0
    assert checkout.called_with() == checkout.default_call()


def test_without_virtual_environment_takes_python3(checkout: Checkout) -> None:
    interpreter = checkout.make_interpreter(checkout.folder / "bin" / "python3")
    assert checkout.run(PYTHON="", PATH=f"{interpreter.parent}:{os.environ['PATH']}").returncode == 0
    assert checkout.called_with() == checkout.default_call()


def test_help_of_the_app_itself(tmp_path: Path) -> None:
    """The real interpreter, in a folder that holds another "app"."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__init__.py").write_text("raise ImportError('the wrong app')")
    command = [SHELL, str(REPOSITORY / "predict.sh"), "--help"]
    found = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stderr) == (0, "")
    assert "13 abdominal organs" in found.stdout
