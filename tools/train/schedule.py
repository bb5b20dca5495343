"""Learning rate and consistency weight over the epochs."""

from dataclasses import dataclass, field
from typing import Any

from tools.train.planning import TrainPlan

_SMOOTHING = 0.93  # nnU-Net v1's train_loss_MA_alpha
_SMALLEST_GAIN = 1e-3  # nnU-Net v1's lr_scheduler_eps, absolute
_POLY_EXPONENT = 0.9


@dataclass
class Schedule:
    """The learning rate of all optimisers, one step an epoch.

    ``plateau``: the rate is multiplied by ``plateau_factor`` once the moving average of the *supervised* loss has not
    fallen by 0.001 for more than ``plateau_patience`` epochs: 30 are let pass, the 31st lowers the rate, as with
    PyTorch's ReduceLROnPlateau. Counting starts when the ramp ends: until then the consistency weight rises, and with
    it the total loss, by construction. The baseline has no such loss, so it counts from the first epoch on. ``poly``:
    rate * (1 - epoch / epochs)^0.9.

    Attributes:
        plan: constants.
        supervised: whether this is the baseline.
        rate: current learning rate.
        average: moving average of the supervised loss; None before the first epoch.
        best, waited: smallest average since the ramp ended, and epochs since then.
    """

    plan: TrainPlan
    supervised: bool = False
    rate: float = field(default=0.0)
    average: float | None = None
    best: float = float("inf")
    waited: int = 0

    def __post_init__(self) -> None:
        self.rate = self.rate or self.plan.learning_rate

    def finish_epoch(self, epoch: int, supervised_loss: float) -> float:
        """The rate for the epoch after ``epoch`` (counted from 0)."""
        previous = supervised_loss if self.average is None else self.average
        self.average = _SMOOTHING * previous + (1 - _SMOOTHING) * supervised_loss
        if self.plan.schedule == "poly":
            self.rate = self._poly(epoch + 1)
        elif self.supervised or epoch + 1 > self.plan.ramp_up_epochs:
            self._watch(self.average)
        return self.rate

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"rate": self.rate, "average": self.average, "best": self.best, "waited": self.waited}

    def load_state(self, state: dict[str, Any], epoch: int) -> None:
        """Continues from ``state()`` in an epoch (counted from 0).

        ``poly`` calculates its rate anew: the plan may have more epochs by now than it had when the state was kept.
        """
        self.rate = self._poly(epoch) if self.plan.schedule == "poly" else state["rate"]
        self.average, self.best, self.waited = state["average"], state["best"], state["waited"]

    def _poly(self, epoch: int) -> float:
        left = max(0.0, 1 - epoch / self.plan.epochs)
        rate: float = self.plan.learning_rate * left**_POLY_EXPONENT
        return rate

    def _watch(self, average: float) -> None:
        if average < self.best - _SMALLEST_GAIN:
            self.best, self.waited = average, 0
            return
        self.waited += 1
        if self.waited > self.plan.plateau_patience:
            self.rate *= self.plan.plateau_factor
            self.waited = 0
