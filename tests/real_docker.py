"""Small images for tests with a real Docker engine."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

BASE_IMAGE = "python:3.11-slim-bookworm"


def skip_without_engine() -> None:
    """Skips the test where no Docker engine answers."""
    command = ["docker", "info"]
    if shutil.which("docker") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no Docker engine")


def build_image(folder: Path, image: str, predict_sh: str, lines: str = "", base: str = BASE_IMAGE) -> None:
    """Builds an image with predict.sh in WORKDIR, and ``lines`` at the end of its Dockerfile."""
    folder.mkdir()
    (folder / "predict.sh").write_text(predict_sh)
    (folder / "Dockerfile").write_text(f"FROM {base}\nWORKDIR /workspace\nCOPY predict.sh .\n{lines}")
    legacy = {**os.environ, "DOCKER_BUILDKIT": "0"}  # the builder that every engine has
    subprocess.run(["docker", "build", "-q", "-t", image, str(folder)], env=legacy, capture_output=True, check=True)
