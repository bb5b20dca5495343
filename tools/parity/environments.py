"""The peers' Pythons: a virtual environment each, made once, outside git."""

import shlex
import subprocess
import sys
from pathlib import Path

from app.errors import AppError
from tools.parity.peer_models import Peer

ROOT = Path(__file__).resolve().parents[2]
_HERE = Path(__file__).resolve().parent


def ensure_environment(peer: Peer, work: Path, pip_options: str = "") -> Path:
    """The Python of a peer's environment; makes it if it is not there or its requirements have changed.

    Args:
        peer: whose.
        work: the folder ``venv-v1`` or ``venv-v2`` lies in.
        pip_options: given to pip, such as the index with PyTorch's CPU builds.

    Raises:
        AppError: pip failed; it has said why.
    """
    folder = work / f"venv-{peer}"
    python = folder / "bin" / "python"
    requirements = _HERE / f"requirements-{peer}.txt"
    stamp = folder / "installed.txt"
    if stamp.is_file() and stamp.read_bytes() == requirements.read_bytes():
        return python
    print(f"nnU-Net {peer}: making {folder} (once; PyTorch is the large part)", flush=True)
    if not python.is_file():
        _run([sys.executable, "-m", "venv", str(folder)])
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", *shlex.split(pip_options)]
    _run([*pip, "-r", str(requirements)])
    stamp.write_bytes(requirements.read_bytes())
    return python


def runner(peer: Peer, python: Path) -> list[str]:
    """The command that runs a peer's script; ``-I`` keeps this repository and the user's packages out of it."""
    return [str(python), "-I", str(_HERE / f"run_{peer}.py")]


def variables(work: Path) -> dict[str, str]:
    """Environment variables that both peers want before they are imported: where data and results would lie."""
    folder = work / "nnunet"
    folder.mkdir(parents=True, exist_ok=True)
    names = (
        "nnUNet_raw_data_base",
        "RESULTS_FOLDER",
        "nnUNet_raw",
        "nnUNet_preprocessed",
        "nnUNet_results",
    )
    return dict.fromkeys(names, str(folder))


def _run(command: list[str]) -> None:
    code = subprocess.run(command, check=False, cwd=ROOT).returncode
    if code != 0:
        raise AppError(
            f"`{shlex.join(command)}` ended with exit code {code}; expected an environment. It says why above; "
            "remove the folder to begin anew"
        )
