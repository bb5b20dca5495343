"""Random augmented patches from the cache, batch by batch, each a function of (seed, rank, number) alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from app.errors import UsageError
from app.volume import Array, Float32Array, LabelArray, Shape
from tools.train.background import Background
from tools.train.cache import Box, CaseCache
from tools.train.ct_effects import fill_outside
from tools.train.planning import TrainPlan
from tools.train.spatial import ReadBox
from tools.train.transforms import Augmenter

_BODY_HU = -150.0  # the mean of a few voxels of fat and better is above, air and lung are below
_BODY_REACH = 2  # voxels to each side
_BODY_TRIALS = 10

Arrays = tuple[Array, Array, Array]


@dataclass
class Batch:
    """Patches and what is known of them. A 2-D network's batches have no z axis.

    Attributes:
        image: float32 (batch, 1, z, y, x), normalised.
        label: uint8 (batch, z, y, x); zeros for unlabelled scans.
        annotated: bool (batch, classes): organs that the label map may be trusted on; background always.
    """

    image: Tensor
    label: Tensor
    annotated: Tensor


class BatchLoader:
    """Endless iterator over batches, prepared ahead in worker processes.

    Batch n is the same whatever the number of workers and wherever the loader was started.

    Args:
        cases: of the cache. Labelled batches draw from the labelled ones; unlabelled batches from the others, with
            ``plan.labelled_as_unlabelled`` from all.
        plan: patch, batch sizes, augmentation.
        labelled: which kind of batches.
        seed: of all draws, not negative.
        first_step: number of the first batch.
        workers: processes; 0 prepares each batch when it is asked for.
        rank, world_size: this process among all of the training; each draws its own batches of the plan's size.

    Raises:
        UsageError: there is no such case.
    """

    def __init__(
        self,
        cases: Sequence[CaseCache],
        plan: TrainPlan,
        labelled: bool,
        seed: int,
        first_step: int = 0,
        workers: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not 0 <= rank < world_size or workers < 0:
            raise ValueError(f"rank {rank} of {world_size}, {workers} workers")
        start = partial(_start, choose_cases(cases, plan, labelled), plan, labelled, seed, rank)
        self._background: Background[Arrays] | None = Background(start, first_step, workers) if workers else None
        self._batches: Iterator[Arrays] = self._background or _in_place(start, first_step)

    def __iter__(self) -> "BatchLoader":
        return self

    def __next__(self) -> Batch:
        image, label, annotated = (torch.from_numpy(array) for array in next(self._batches))
        return Batch(image, label, annotated)

    @property
    def waited_s(self) -> float:
        """Seconds that ``next`` has stood waiting for workers."""
        return self._background.waited_s if self._background else 0.0

    def close(self) -> None:
        """Ends the workers; may be called again."""
        if self._background:
            self._background.close()


def choose_cases(cases: Sequence[CaseCache], plan: TrainPlan, labelled: bool) -> list[CaseCache]:
    """The cases that labelled or unlabelled batches draw from.

    Raises:
        UsageError: there is none.
    """
    chosen = [case for case in cases if case.labelled is labelled or (not labelled and plan.labelled_as_unlabelled)]
    if not chosen:
        kind, remedy = "labelled", "Prepare one, or hold out fewer"
        if not labelled:
            kind, remedy = "unlabelled", "Prepare one, set labelled_as_unlabelled=true or train --supervised"
        raise UsageError(f"no {kind} case among the {len(cases)} to train on; expected one at least. {remedy}")
    return chosen


class BatchMaker:
    """Makes batch n of a rank; see ``BatchLoader`` for the arguments."""

    def __init__(self, cases: Sequence[CaseCache], plan: TrainPlan, labelled: bool, seed: int, rank: int) -> None:
        self._cases, self._plan, self._labelled, self._seed, self._rank = cases, plan, labelled, seed, rank
        self._augment = Augmenter(plan.augmentation, plan.app, plan.train_patch_size)
        self._air = plan.app.intensity.normalised(plan.app.sliding_window.pad_hu)
        self._repeats_edges = plan.app.sliding_window.padding == "edge"
        self._flat = plan.app.network.dimensions == 2
        organs = sorted({organ for case in cases for organ in case.foreground}) if labelled else []
        self._showing = {organ: [case for case in cases if organ in case.foreground] for organ in organs}

    def __call__(self, number: int) -> Arrays:
        """(image, label, annotated) of a batch, as in ``Batch``."""
        size = self._plan.labelled_batch if self._labelled else self._plan.unlabelled_batch
        on_organs = size * self._plan.foreground_part if self._labelled else 0
        samples = [self._sample(number, place, on_organs - place) for place in range(size)]
        images, labels, annotated = (np.stack(part) for part in zip(*samples, strict=True))
        if self._flat:
            images, labels = images[:, 0], labels[:, 0]
        return images[:, None], labels, annotated

    def _sample(self, number: int, place: int, on_organ: float) -> Arrays:
        """One sample: organs (every one as often), then scans that show it, then its voxels; or a place in the body.

        ``on_organ`` is the probability of the first, for sure from 1 on.
        """
        key = (int(self._labelled), self._rank, number, place)
        rng = np.random.default_rng(np.random.SeedSequence(self._seed, spawn_key=key))
        if rng.random() < on_organ and self._showing:
            organ = list(self._showing)[int(rng.integers(len(self._showing)))]
            case = self._showing[organ][int(rng.integers(len(self._showing[organ])))]
            voxels = case.foreground[organ]
            centre = voxels[rng.integers(len(voxels))]
        else:
            case = self._cases[int(rng.integers(len(self._cases)))]
            centre = self._place_in_body(case, rng)
        start = patch_start(centre, self._plan.train_patch_size, case)
        image, label = self._augment(self._reader(case), start, case.spacing_zyx_mm[0], rng)
        annotated = case.annotated.copy() if self._labelled else np.zeros_like(case.annotated)
        annotated[0] = True
        zeros = np.zeros(self._plan.train_patch_size, dtype=np.uint8)
        return image.numpy(), zeros if label is None else label.numpy(), annotated

    def _place_in_body(self, case: CaseCache, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """A voxel of the scan, most likely not in air or lung."""
        threshold = self._plan.app.intensity.normalised(_BODY_HU)
        shape = np.array(case.shape_zyx)
        for _ in range(_BODY_TRIALS):
            centre = rng.integers(shape)
            low, high = np.maximum(centre - _BODY_REACH, 0), np.minimum(centre + _BODY_REACH + 1, shape)
            if case.read_image(_box(low, high)).mean() > threshold:
                break
        return centre

    def _reader(self, case: CaseCache) -> ReadBox:
        """Reads boxes that may reach beyond the scan; there is what inference surrounds a small scan with."""
        cut_off = self._air if case.pad is None else case.pad
        z, y, x = case.offset_zyx
        first = (-z, -y, -x)

        def read(start: Shape, shape: Shape) -> tuple[Float32Array, LabelArray | None]:
            # PyTorch's memory is aligned always alike, NumPy's is not: see ct_effects.
            image: Float32Array = torch.full(shape, self._air, dtype=torch.float32).numpy()
            label: LabelArray | None = torch.zeros(shape, dtype=torch.uint8).numpy() if self._labelled else None
            whole = _overlap(start, shape, first, case.grid_shape_zyx)
            if whole:  # between its edge and the cached box lies what prepare cut off
                image[whole] = cut_off
            cached = _overlap(start, shape, (0, 0, 0), case.shape_zyx)
            source = _overlap((0, 0, 0), case.shape_zyx, start, shape)
            if cached and source:
                image[cached] = case.read_image(source)
                if label is not None:
                    label[cached] = case.read_label(source)
            if whole and self._repeats_edges:
                fill_outside(torch.from_numpy(image), None if label is None else torch.from_numpy(label), whole, None)
            return image, label

        return read


def patch_start(centre: npt.NDArray[Any], patch_size: Shape, case: CaseCache) -> Shape:
    """First voxel of the patch about a voxel, moved so that it stays in the scan, as tiles at inference do.

    A scan of 18 slices lies in the middle of a patch of 64: it starts at -23. Of 100 slices, voxel 90 gives 36.
    Voxels count in the cached box, the scan reaches beyond it by what was cut off as air.
    """
    starts = []
    for voxel, side, offset, length in zip(centre, patch_size, case.offset_zyx, case.grid_shape_zyx, strict=True):
        spare = length - side
        inside = -((-spare) // 2) if spare < 0 else min(max(int(voxel) + offset - side // 2, 0), spare)
        starts.append(inside - offset)
    return (starts[0], starts[1], starts[2])


def _start(cases: Sequence[CaseCache], plan: TrainPlan, labelled: bool, seed: int, rank: int) -> BatchMaker:
    """What a worker begins with: one thread, as one batch is one worker's work."""
    torch.set_num_threads(1)
    return BatchMaker(cases, plan, labelled, seed, rank)


def _in_place(start: "partial[BatchMaker]", first_step: int) -> Iterator[Arrays]:
    """Batches without workers, calculated on one thread too: more may round otherwise."""
    threads = torch.get_num_threads()
    make = start()
    torch.set_num_threads(threads)
    number = first_step
    while True:
        torch.set_num_threads(1)
        try:
            arrays = make(number)
        finally:
            torch.set_num_threads(threads)
        yield arrays
        number += 1


def _overlap(start: Shape, shape: Shape, other: Shape, extent: Shape) -> Box | None:
    """Which part of a box (its first voxel and sides) lies in another one; None: none.

    Five planes from 3 on, the other one has six from 0 on: the first three, [0, 3).
    """
    low = np.maximum(np.subtract(other, start), 0)
    high = np.minimum(np.subtract(np.add(other, extent), start), shape)
    return _box(low, high) if np.all(low < high) else None


def _box(low: npt.NDArray[Any], high: npt.NDArray[Any]) -> Box:
    z, y, x = (slice(int(first), int(stop)) for first, stop in zip(low, high, strict=True))
    return (z, y, x)
