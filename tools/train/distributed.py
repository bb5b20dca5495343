"""One process or many: ``torchrun`` starts the processes, this says which one this is."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from app.errors import DeviceError
from app.network import UNet

Entry = TypeVar("Entry")

# A rank that is done with its share of a validation waits for the others in a collective. PyTorch's own limit on GPUs,
# 10 minutes, would end the training if their scans take that much longer. torchrun notices at once when a rank dies.
_LONGEST_WAIT = timedelta(hours=2)


@dataclass(frozen=True)
class Rank:
    """This process among all of a training.

    Attributes:
        rank: 0 logs, validates and writes checkpoints.
        world_size: how many there are; each draws its own batches, the loss is that of all of them together.
        device: where this process trains.
    """

    rank: int
    world_size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this process writes files and logs."""
        return self.rank == 0

    def any_of(self, flag: bool) -> bool:
        """Whether the flag is set on any rank, so that all of them stop in the same iteration."""
        if self.world_size == 1:
            return flag
        value = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(value, dist.ReduceOp.MAX)
        return bool(value.item())

    def mean_of(self, value: Tensor) -> Tensor:
        """The mean over ranks of a number."""
        if self.world_size == 1:
            return value
        total = value.detach().clone()
        dist.all_reduce(total)
        return total / self.world_size

    def gather(self, own: dict[str, Entry]) -> dict[str, Entry]:
        """The entries of all ranks."""
        parts = [own]
        if self.world_size > 1:
            parts = [{} for _ in range(self.world_size)]
            dist.all_gather_object(parts, own)
        return {key: entry for part in parts for key, entry in part.items()}


ALONE = Rank(0, 1, torch.device("cpu"))


@contextmanager
def join_ranks(device: str) -> Iterator[Rank]:
    """This process's rank, from what ``torchrun`` put into the environment; nccl on GPUs, gloo on CPUs.

    Raises:
        DeviceError: CUDA is asked for and not there.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise DeviceError("this PyTorch sees no CUDA device; use --device cpu")
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    place = torch.device(f"cuda:{local}" if device == "cuda" else "cpu")
    if world_size == 1:
        yield Rank(0, 1, place)
        return
    if place.type == "cuda":
        torch.cuda.set_device(place)
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo", timeout=_LONGEST_WAIT)
    try:
        yield Rank(dist.get_rank(), world_size, place)
    finally:
        dist.destroy_process_group()


class Heads(nn.Module):
    """A U-Net whose forward gives all deep-supervision heads: what DistributedDataParallel can wrap.

    The coarsest head has no weight in the loss (see ``deep_supervision_weights``), so it is not trained.
    """

    def __init__(self, network: UNet) -> None:
        super().__init__()
        self.network = network
        if len(network.seg) > 1:
            network.seg[0].requires_grad_(False)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Logits of all decoder levels, full resolution first.

        On a CPU sample by sample, for ``norms.py``.
        """
        if image.device.type != "cpu" or len(image) == 1:
            return self.network.deep_supervision(image)
        samples = [self.network.deep_supervision(sample) for sample in image.split(1)]
        return [torch.cat(level) for level in zip(*samples, strict=True)]


def spread(network: UNet, rank: Rank) -> nn.Module:
    """The network's heads, wrapped so that gradients are averaged over ranks."""
    heads = Heads(network)
    if rank.world_size == 1:
        return heads
    return DistributedDataParallel(heads, device_ids=[rank.device.index] if rank.device.type == "cuda" else None)
