"""Two sibling networks and one training step."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import dataclass
from math import ceil, isfinite
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from app.backends.processor import is_fast_in_bf16
from app.errors import UsageError
from app.network import UNet
from tools.train.cps import CpsLosses, cps_losses, supervised_losses
from tools.train.distributed import Rank, spread
from tools.train.losses import Target
from tools.train.norms import use_fast_norms
from tools.train.planning import TrainPlan
from tools.train.sampling import Batch

Precision = Literal["auto", "fp32", "bf16", "fp16"]

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_WARM_UP = 100  # iterations after which new optimisers have learnt the size of the gradients
_RISE = 10  # the running means' decay starts at 1 / 10 and rises, so that the random beginning is soon forgotten
_CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


@dataclass(frozen=True)
class TrainerOptions:
    """What is decided at the command line, not by the plan.

    Attributes:
        supervised: the baseline: one network, no unlabelled data.
        confidence_threshold: pseudo labels below it are left out; 0 keeps all.
        ema_decay: weights are also averaged over iterations with this decay; 0: not. The first iterations have a
            lower one, (1 + n) / (10 + n), so that a random start is soon forgotten; not those of trained networks.
        precision: auto is bf16 where the device calculates in it, else fp16 on CUDA and fp32 on a CPU.
        seed: of the initialisations; sibling 2 gets another one.
    """

    supervised: bool = False
    confidence_threshold: float = 0.0
    ema_decay: float = 0.0
    precision: Precision = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.confidence_threshold < 1 and 0 <= self.ema_decay < 1):
            found = f"confidence {self.confidence_threshold:g} and EMA decay {self.ema_decay:g}"
            raise ValueError(f"{found}: expected numbers from 0 to below 1")
        if self.supervised and self.confidence_threshold:
            raise ValueError("--supervised and --confidence: the baseline has no pseudo labels; choose one")
        if self.seed < 0:
            raise ValueError(f"seed {self.seed}: expected 0 or more")


class Trainer:
    """Networks, optimisers and scaler; ``step`` does one iteration.

    Attributes:
        networks: the siblings, or the baseline's one network.
        averages: their running means; none without ``ema_decay``.
        rate: learning rate of the last step.
        precision: what ``options.precision`` has come to.
    """

    def __init__(self, plan: TrainPlan, options: TrainerOptions, rank: Rank) -> None:
        self._plan, self._options, self._rank = plan, options, rank
        self._layout = _CHANNELS_LAST[plan.app.network.dimensions]
        self.networks = [
            self._place(new_network(plan, options.seed * 2 + sibling))
            for sibling in range(1 if options.supervised else 2)
        ]
        self._heads = [spread(network, rank) for network in self.networks]
        self._optimisers = [_new_optimiser(plan, network) for network in self.networks]
        self.averages = deepcopy(self.networks) if options.ema_decay else []
        self._averaged = 0
        self._warm_up_left = 0
        self.rate = 0.0
        self.precision = resolve_precision(options.precision, rank.device)
        self._scaler = torch.amp.GradScaler(rank.device.type, enabled=self.precision == "fp16")

    def step(self, labelled: Batch, unlabelled: Batch | None, weight: float, rate: float) -> dict[str, float]:
        """One iteration on a labelled and an unlabelled batch; losses and agreement of all ranks' batches as numbers.

        Args:
            labelled, unlabelled: of this rank.
            weight: of the consistency loss.
            rate: learning rate; lower for the first iterations of new optimisers.

        Raises:
            FloatingPointError: a loss or the norm of a gradient is no finite number; the latter before any weight has
                changed. Gradients that fp16 does not hold are its scaler's business, which leaves the iteration out.
        """
        losses = self._losses(labelled, unlabelled, weight)
        for optimiser in self._optimisers:
            optimiser.zero_grad(set_to_none=True)
        self._scaler.scale(losses.total).backward()
        self.rate = rate * (1 - self._warm_up_left / _WARM_UP)
        self._warm_up_left = max(0, self._warm_up_left - 1)
        self._clip_gradients()
        for optimiser in self._optimisers:
            for group in optimiser.param_groups:
                group["lr"] = self.rate
            self._scaler.step(optimiser)
        self._scaler.update()
        self._update_averages()
        numbers = {"total": losses.total, "supervised": losses.supervised, "cross": losses.cross}
        if losses.agreement is not None:
            numbers["agreement"] = self._rank.mean_of(losses.agreement)
        found = {name: float(value.detach()) for name, value in numbers.items()}
        for name in ("supervised", "total"):
            if not isfinite(found[name]):
                raise FloatingPointError(f"the {name} loss is {found[name]}")
        return found

    def start_from(self, weights: Sequence[dict[str, Tensor]]) -> None:
        """Takes the weights of other trainings, one after another, as far as they go; the rate rises from 0.

        A sibling for which there are none keeps its random ones, further ones are not used.

        Raises:
            UsageError: they are those of another network.
        """
        for number, (network, values) in enumerate(zip(self.networks, weights, strict=False), start=1):
            try:
                network.load_state_dict(values)
            except RuntimeError as error:
                detail = str(error).partition("\n")[2].strip().partition("\n")[0]
                raise UsageError(f"--start-from: not the plan's network; for sibling {number}: {detail}") from error
        for average, network in zip(self.averages, self.networks, strict=False):
            average.load_state_dict(network.state_dict())
        if len(weights) >= len(self.networks):  # none of them begins at random
            self._averaged = steps_to_full_decay(self._options.ema_decay)
        self._warm_up_left = _WARM_UP

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "networks": [network.state_dict() for network in self.networks],
            "optimisers": [optimiser.state_dict() for optimiser in self._optimisers],
            "scaler": self._scaler.state_dict(),
            "averages": [average.state_dict() for average in self.averages],
            "averaged": self._averaged,
            "warm_up_left": self._warm_up_left,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continues from ``state()``; without optimisers in it, with new ones and a rate that rises from 0."""
        for network, weights in zip(self.networks, state["networks"], strict=True):
            network.load_state_dict(weights)
        for optimiser, values in zip(self._optimisers, state["optimisers"], strict=False):
            optimiser.load_state_dict(values)
        if state["scaler"]:
            self._scaler.load_state_dict(state["scaler"])
        for average, weights in zip(self.averages, state["averages"], strict=True):
            average.load_state_dict(weights)
        self._averaged = state["averaged"]
        self._warm_up_left = state["warm_up_left"] if state["optimisers"] else _WARM_UP

    def _losses(self, labelled: Batch, unlabelled: Batch | None, weight: float) -> CpsLosses:
        target = Target(self._move(labelled.label), self._move(labelled.annotated))
        images = [labelled.image] if unlabelled is None else [labelled.image, unlabelled.image]
        image = self._move(torch.cat(images)).to(memory_format=self._layout)
        with self._autocast():
            heads = [cast(Sequence[Tensor], network(image)) for network in self._heads]
        if self._options.supervised:
            return supervised_losses(heads[0], target)
        pair = (heads[0], heads[1])
        return cps_losses(pair, len(labelled.image), target, weight, self._options.confidence_threshold)

    def _clip_gradients(self) -> None:
        for network, optimiser in zip(self.networks, self._optimisers, strict=True):
            self._scaler.unscale_(optimiser)
            norm = nn.utils.clip_grad_norm_(network.parameters(), self._plan.gradient_clip)
            if not self._scaler.is_enabled() and not isfinite(norm):
                raise FloatingPointError(f"the norm of a network's gradient is {norm:g}")

    @torch.no_grad()
    def _update_averages(self) -> None:
        decay = min(self._options.ema_decay, (1 + self._averaged) / (_RISE + self._averaged))
        for average, network in zip(self.averages, self.networks, strict=False):
            for mean, current in zip(average.parameters(), network.parameters(), strict=True):
                mean.lerp_(current, 1 - decay)
        self._averaged += 1

    def _autocast(self) -> AbstractContextManager[Any]:
        kind = _TYPES.get(self.precision)
        return torch.autocast(self._rank.device.type, kind, enabled=kind is not None)

    def _move(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._rank.device, non_blocking=True)

    def _place(self, network: UNet) -> UNet:
        """On this rank's device, channels last."""
        if self._rank.device.type == "cpu":
            use_fast_norms(network)
        network.to(self._rank.device)
        return cast(UNet, network.to(memory_format=self._layout))  # type: ignore[call-overload]


def steps_to_full_decay(decay: float) -> int:
    """After how many steps the running means' decay has risen to ``decay``: 4490 for 0.998."""
    return max(0, ceil((_RISE * decay - 1) / (1 - decay) - 1e-6))  # 80 for 0.9, which the division misses upwards


def new_network(plan: TrainPlan, seed: int) -> UNet:
    """The plan's network with He-normal weights (for LeakyReLU 0.01) and zero biases, from a seed."""
    network = UNet(plan.app.network, plan.app.classes)
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            nn.init.kaiming_normal_(module.weight, a=1e-2, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network


def _new_optimiser(plan: TrainPlan, network: UNet) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if plan.optimiser == "adamw":
        return torch.optim.AdamW(parameters, plan.learning_rate, weight_decay=plan.weight_decay)
    return torch.optim.SGD(
        parameters, plan.learning_rate, plan.momentum, weight_decay=plan.weight_decay, nesterov=plan.momentum > 0
    )


def resolve_precision(precision: Precision, device: torch.device) -> str:
    """``auto`` made definite. On a CPU bf16 where that is the faster; without instructions for it, it is emulated."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    return "bf16" if is_fast_in_bf16() else "fp32"
