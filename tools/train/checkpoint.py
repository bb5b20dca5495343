"""Checkpoints: everything that an exact resume needs, in one file that appears whole or not at all."""

import io
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from app.atomic_files import atomic_file
from app.errors import AppError

CHECKPOINT_FILE = "checkpoint.pt"


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Writes the state of a training beside its log.

    Raises:
        FolderError: the folder cannot be written.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with atomic_file(folder / CHECKPOINT_FILE) as stream:
        stream.write(buffer.getbuffer())


def load_checkpoint(folder: Path) -> dict[str, Any]:
    """The state in a folder; tensors and plain values only, nothing is executed.

    Raises:
        AppError: there is none, or it is damaged.
    """
    path = folder / CHECKPOINT_FILE
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, UnpicklingError) as error:
        reason = str(error).partition("\n")[0] or "it is empty"
        raise AppError(f"{path}: cannot be read ({reason}); expected a checkpoint of `tools.train fit`") from error
    if not isinstance(state, dict):
        raise AppError(f"{path}: found {type(state).__name__}; expected the state of a training")
    return state
