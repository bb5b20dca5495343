"""What both importers need of nnU-Net's results folder, with messages that say what is wrong."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from app.errors import AppError, UsageError
from app.plan import Mode


class ModelError(AppError):
    """The model cannot be read, or does something that a bundle cannot say; it is not imported by guessing."""

    exit_code: ClassVar[int] = 4


@dataclass(frozen=True)
class Request:
    """What the command line asks for.

    Attributes:
        model: nnU-Net's results folder.
        fold: ``0`` to ``4``, or ``all``.
        checkpoint: which of the fold's checkpoints.
        name: of the bundle.
        mode, tile_step_size: defaults of the bundle.
        trainer: nnU-Net's trainer that a trainer unknown here inherits network and mirroring from.
        postprocessing: whether the model's post-processing is imported; a joint one cannot be.
    """

    model: Path
    fold: str
    checkpoint: str
    name: str
    mode: Mode = "normal"
    tile_step_size: float = 0.5
    trainer: str | None = None
    postprocessing: bool = True


def fold_folder(request: Request, name_of_all: str) -> Path:
    """The folder of the one fold that is imported.

    Raises:
        UsageError: several folds, or something that is no fold.
        ModelError: the folder is not there.
    """
    if not request.model.is_dir():
        raise ModelError(f"{request.model}: no such folder; expected nnU-Net's results, with fold_0 and plans in it")
    if request.fold != "all" and not request.fold.isdecimal():
        raise UsageError(
            f"--fold {request.fold}: expected one of 0 to 4 or all. A bundle holds one network; "
            "nnU-Net's default, the mean of five folds, takes five times as long and is not imported"
        )
    folder = request.model / (name_of_all if request.fold == "all" else f"fold_{request.fold}")
    if not folder.is_dir():
        found = ", ".join(sorted(path.name for path in request.model.iterdir())) or "nothing"
        raise ModelError(f"{folder}: no such folder; {request.model} holds {found}")
    return folder


def read_bytes(path: Path) -> bytes:
    """The content of a file of the model."""
    try:
        return path.read_bytes()
    except OSError as error:
        beside = ", ".join(sorted(entry.name for entry in path.parent.glob("*"))) or "nothing"
        raise ModelError(f"{path}: cannot be read ({error.strerror or error}); beside it lies {beside}") from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of the model."""
    try:
        content = json.loads(read_bytes(path))
    except ValueError as error:
        raise ModelError(f"{path}: not JSON ({error}); expected what nnU-Net wrote") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}: holds a {type(content).__name__}; expected an object")
    return content


def entry(mapping: Any, key: Any, source: str) -> Any:
    """``mapping[key]`` of something that nnU-Net wrote; ``source`` says where, for the message."""
    if not isinstance(mapping, dict) or key not in mapping:
        known = ", ".join(map(str, mapping)) if isinstance(mapping, dict) else repr(mapping)
        raise ModelError(f"{source}: {key!r} is missing; found {known}")
    return mapping[key]


def refuse_unless(fits: bool, source: str, found: str, expected: str) -> None:
    """Raises ModelError with what was found and expected, unless it fits."""
    if not fits:
        raise ModelError(f"{source}: {found}; {expected}")


def known_trainer(request: Request, found: str, known: frozenset[str], source: str) -> str:
    """The trainer whose network and mirroring hold: the checkpoint's, or the one that ``--trainer`` names.

    Raises:
        ModelError: a cascade, or a trainer of which it is not known what network it builds.
        UsageError: ``--trainer`` names an unknown one.
    """
    refuse_unless(
        "cascade" not in found.lower(), source, f"trainer {found}", "a cascade takes two networks, a bundle holds one"
    )
    if request.trainer is not None:
        if request.trainer not in known:
            raise UsageError(f"--trainer {request.trainer}: expected one of {', '.join(sorted(known))}")
        return request.trainer
    refuse_unless(
        found in known,
        source,
        f"trainer {found}",
        "it is not known which network and mirroring it uses. If it inherits both from one of nnU-Net's, name that: "
        f"--trainer {min(known, key=len)}",
    )
    return found


def trainer_note(found: str, same_as: str) -> str:
    """Which trainer it was, for the user."""
    return f"trainer {found}" if found == same_as else f"trainer {found}, taken to be as {same_as} (--trainer)"
