"""The plan of a training: what inference gets (``app.plan.Plan``) and how its network is trained.

JSON in and out, as strict as a bundle's ``plan.json``: an unknown key or a wrong type is an error.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from app.atomic_files import write_text
from app.errors import FolderError, UsageError
from app.json_values import build_value
from app.plan import Plan, SpacingKind
from app.volume import Shape
from tools.train.augmentation import AugmentationPlan

PLAN_FILE = "train_plan.json"  # in a cache and in a training


@dataclass(frozen=True)
class TrainPlan:
    """All of a training's constants. Class 0 is background; organ i of ``app.labels`` has label i + 1.

    Attributes:
        app: what inference gets; the cache is made with it, so training and inference see the same image.
        train_patch_size: voxels (z, y, x) of a training patch; may be smaller than inference's.
        labelled_batch, unlabelled_batch: patches an iteration.
        foreground_part: of a labelled batch, centred on an organ, on average if that is no whole number (nnU-Net 0.33).
        labelled_as_unlabelled: whether unlabelled batches also draw from labelled scans.
        epochs, iterations_per_epoch: the paper's 1000 x 250.
        ramp_up_epochs: epochs over which the consistency weight rises linearly from 0.
        consistency_weight: lambda of equation 3 after the ramp.
        momentum: of ``sgd``; ``adamw`` does not use it, its betas are PyTorch's 0.9 and 0.999.
        optimiser: ``sgd`` with Nesterov momentum, as the paper; ``adamw`` gets further in a short training.
        schedule: ``plateau`` watches the moving average of the supervised loss, ``poly`` is (1 - t)^0.9.
        plateau_patience, plateau_factor: epochs without improvement that are let pass, and what one more of them
            multiplies the rate by.
        gradient_clip: largest norm of a network's gradient.
        organs_as_one: all organs of the label maps are the plan's only label, as a locator wants them. Organs that are
            not annotated are then background.
        augmentation: random changes of the patches.
    """

    app: Plan
    train_patch_size: Shape
    labelled_batch: int
    unlabelled_batch: int
    epochs: int
    iterations_per_epoch: int
    learning_rate: float
    weight_decay: float
    momentum: float
    ramp_up_epochs: int
    consistency_weight: float = 0.5
    optimiser: Literal["sgd", "adamw"] = "sgd"
    schedule: Literal["plateau", "poly"] = "plateau"
    plateau_patience: int = 30
    plateau_factor: float = 0.2
    gradient_clip: float = 12.0
    foreground_part: float = 0.33
    labelled_as_unlabelled: bool = False
    organs_as_one: bool = False
    augmentation: AugmentationPlan = field(default_factory=AugmentationPlan)

    def __post_init__(self) -> None:
        counts = (self.labelled_batch, self.epochs, self.iterations_per_epoch, self.plateau_patience)
        if min(*counts, self.unlabelled_batch) < 1 or self.ramp_up_epochs < 0:
            raise ValueError("batches, epochs, iterations and patience must be positive")
        if min(self.learning_rate, self.gradient_clip) <= 0 or min(self.weight_decay, self.consistency_weight) < 0:
            raise ValueError("rates, weights and limits must be positive")
        if not (0 <= self.momentum < 1 and 0 < self.plateau_factor < 1 and 0 <= self.foreground_part <= 1):
            raise ValueError("momentum, plateau_factor and foreground_part must lie between 0 and 1")
        if self.organs_as_one and len(self.app.labels) != 1:
            raise ValueError(f"organs_as_one: found {len(self.app.labels)} labels; expected one")
        self._check_patch()

    def _check_patch(self) -> None:
        found, strides = f"train_patch_size {list(self.train_patch_size)}", total_stride(self.app)
        if self.app.network.dimensions == 2 and self.train_patch_size[0] != 1:
            raise ValueError(f"{found}: expected [1, H, W] for a 2-D network")
        for total, length in zip(strides, self.train_patch_size, strict=True):
            if length < 1 or length % total:
                raise ValueError(f"{found}: {length} is not a multiple of the stride {total}")
        if self.train_patch_size == strides:
            raise ValueError(
                f"{found}: leaves one voxel in the deepest stage, which instance norm cannot normalise; expected more "
                f"than {list(strides)} along an axis at least"
            )


def total_stride(plan: Plan) -> Shape:
    """Voxels (z, y, x) of the input per voxel of the deepest stage; a 2-D network has 1 along z."""
    totals = [1, 1, 1]
    for stride in plan.network.strides:
        for axis, step in enumerate(stride, start=3 - plan.network.dimensions):
            totals[axis] *= step
    return (totals[0], totals[1], totals[2])


def training_spacing(plan: Plan) -> SpacingKind:
    """The spacing rule that the cache is made with: inference's default.

    The paper's ``header`` override is the exception: it was used on the test set only, a network trained at
    spacings that are not true would be another one.
    """
    return "off" if plan.spacing.enforce == "header" else plan.spacing.enforce


def preprocessing_digest(plan: Plan) -> str:
    """SHA-256 of what decides the content of a cache; batch sizes, epochs and network do not."""
    values = asdict(plan)
    parts = {name: values[name] for name in ("labels", "orientation", "intensity", "interpolation")}
    parts |= {name: values[name] for name in ("transpose_forward", "crop_to_nonzero")}
    parts |= {name: values["spacing"][name] for name in ("target_zyx_mm", "keep_first_axis")}
    parts["spacing"] = training_spacing(plan)
    if parts["spacing"] == "resample":
        parts["largest_grid_zyx"] = plan.spacing.largest_grid_zyx
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def changed(plan: TrainPlan, changes: Sequence[str]) -> TrainPlan:
    """The plan with some values changed, each given as ``KEY=VALUE`` or ``OUTER.KEY=VALUE``.

    Raises:
        UsageError: there is no such key, or the plan does not allow the value.
    """
    if not changes:
        return plan
    values = asdict(plan)
    for change in changes:
        path, separator, text = change.partition("=")
        *outer, key = path.split(".")
        part = values
        for name in outer:
            inner = part.get(name)
            if not isinstance(inner, dict):
                raise _unknown(change, part)
            part = inner
        if not separator or key not in part:
            raise _unknown(change, part)
        try:
            part[key] = json.loads(text)
        except json.JSONDecodeError:
            part[key] = text
    return parse_train_plan(json.dumps(values), "--set")


def _unknown(change: str, part: dict[str, Any]) -> UsageError:
    known = ", ".join(sorted(part))
    return UsageError(f"--set {change}: expected KEY=VALUE with a key of the plan; here there are {known}")


def to_json(plan: TrainPlan) -> str:
    """The plan as JSON text that ``parse_train_plan`` reads back to an equal plan."""
    return json.dumps(asdict(plan), indent=1) + "\n"


def parse_train_plan(text: str, source: str) -> TrainPlan:
    """The plan in a JSON text.

    Args:
        text: JSON.
        source: the file's name, for messages.

    Raises:
        UsageError: not JSON, an unknown or missing key, a wrong type or an impossible value.
    """
    try:
        data: Any = json.loads(text)
        plan = build_value(TrainPlan, data, "plan")
    except json.JSONDecodeError as error:
        raise UsageError(f"{source}: not JSON ({error}); expected a training plan") from error
    except ValueError as error:
        raise UsageError(f"{source}: {error}") from error
    assert isinstance(plan, TrainPlan)
    return plan


def read_train_plan(path: Path) -> TrainPlan:
    """The plan in a JSON file, or in a training that ``tools.train pack`` wrote (``.safetensors``).

    Raises:
        FolderError: the file cannot be read.
        UsageError: it is not a training plan.
    """
    try:
        text = _packed_plan(path) if path.suffix == ".safetensors" else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, SafetensorError) as error:
        raise FolderError(f"{path}: cannot be read ({error}); expected a training plan") from error
    return parse_train_plan(text, str(path))


def _packed_plan(path: Path) -> str:
    with safe_open(path, framework="np") as packed:
        metadata = packed.metadata() or {}
    if "training" not in metadata:
        raise UsageError(f"{path}: holds no training plan; expected a file that `tools.train pack` wrote")
    return json.dumps(json.loads(metadata["training"])["plan"])


def write_train_plan(path: Path, plan: TrainPlan) -> None:
    """Writes the plan, all at once or not at all.

    Raises:
        FolderError: the folder cannot be written.
    """
    write_text(path, to_json(plan))
