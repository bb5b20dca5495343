"""Batches from a small cache on disk, and the worker processes that prepare them."""

import json
import multiprocessing
import operator
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch

from app.errors import AppError, FolderError, UsageError
from app.volume import Float32Array, LabelArray
from tools.train.augmentation import SMALL_DATA, WITHOUT
from tools.train.background import Background
from tools.train.cache import CaseCache, case_folder, open_cache
from tools.train.cache_writing import write_case
from tools.train.planning import TrainPlan
from tools.train.presets import make_plan
from tools.train.sampling import Batch, BatchLoader, patch_start

ORGANS = ("liver", "right kidney", "spleen", "left kidney")
AIR = -250 / 110
SHAPE = (32, 40, 48)


def train_plan(**changes: Any) -> TrainPlan:
    plan = make_plan("phantom-3d", ORGANS)
    small: dict[str, Any] = {"train_patch_size": (16, 24, 24), "labelled_batch": 3, "augmentation": WITHOUT}
    return replace(plan, **{**small, **changes})


def scan(seed: int) -> tuple[Float32Array, LabelArray]:
    """A noisy body with air around; a liver of thousands of voxels, a kidney of one; the spleen is nowhere."""
    image = np.full(SHAPE, AIR, dtype=np.float32)
    rng = np.random.default_rng(seed)
    image[:, 6:34, 6:42] = rng.normal(0, 0.2, (32, 28, 36))
    label = np.zeros(SHAPE, dtype=np.uint8)
    label[10:22, 14:26, 14:34] = 1
    label[16, 20, 36] = 2
    return image, label


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("cache")
    hidden: dict[str, list[str]] = {"a": [], "b": ["spleen"], "u": []}
    for seed, (name, not_annotated) in enumerate(hidden.items()):
        image, label = scan(seed)
        labelled = name != "u"
        meta = {
            "spacing_zyx_mm": (3.0, 3.0, 3.0),
            "labelled": labelled,
            "organs": ORGANS,
            "not_annotated": not_annotated,
            "digest": "",
        }
        write_case(case_folder(root, name), image, label if labelled else None, AIR, flat=False, meta=meta)
    return root


@pytest.fixture(scope="module")
def cases(folder: Path) -> list[CaseCache]:
    return open_cache(folder)


@contextmanager
def loading(cases: list[CaseCache], plan: TrainPlan, labelled: bool = True, **options: Any) -> Iterator[BatchLoader]:
    loader = BatchLoader(cases, plan, labelled, options.pop("seed", 7), workers=options.pop("workers", 0), **options)
    try:
        yield loader
    finally:
        loader.close()


def first_batches(cases: list[CaseCache], plan: TrainPlan, count: int, **options: Any) -> list[Batch]:
    with loading(cases, plan, **options) as loader:
        return [next(loader) for _ in range(count)]


def same(one: Batch, other: Batch) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("image", "label", "annotated"))


def test_shapes_and_types(cases: list[CaseCache]) -> None:
    batch = first_batches(cases, train_plan(), 1)[0]
    assert (batch.image.dtype, batch.image.shape) == (torch.float32, (3, 1, 16, 24, 24))
    assert (batch.label.dtype, batch.label.shape) == (torch.uint8, (3, 16, 24, 24))
    assert (batch.annotated.dtype, batch.annotated.shape) == (torch.bool, (3, 5))


def test_2d(cases: list[CaseCache]) -> None:
    plan = train_plan()
    network = replace(plan.app.network, strides=((1, 1), *((2, 2),) * 3), kernel_sizes=((3, 3),) * 4)
    window = replace(plan.app.sliding_window, patch_size=(1, 48, 48), mirror_axes=(1, 2))
    app = replace(plan.app, network=network, sliding_window=window)
    plan = replace(plan, app=app, train_patch_size=(1, 24, 32), augmentation=SMALL_DATA)
    batch = first_batches(cases, plan, 1)[0]
    assert batch.image.shape == (3, 1, 24, 32)
    assert batch.label.shape == (3, 24, 32)


@pytest.mark.parametrize("labelled", [True, False])
def test_a_batch_depends_on_seed_rank_and_number_only(cases: list[CaseCache], labelled: bool) -> None:
    plan = train_plan(augmentation=SMALL_DATA)
    batches = first_batches(cases, plan, 4, labelled=labelled)
    resumed = first_batches(cases, plan, 2, labelled=labelled, first_step=2)
    assert [same(one, other) for one, other in zip(batches[2:], resumed, strict=True)] == [True, True]
    others = [
        first_batches(cases, plan, 1, labelled=labelled, seed=8)[0],
        first_batches(cases, plan, 1, labelled=labelled, rank=1, world_size=2)[0],
        batches[1],
    ]
    assert not any(same(batches[0], other) for other in others)
    assert same(batches[0], first_batches(cases, plan, 1, labelled=labelled, world_size=2)[0])


@pytest.mark.long
@pytest.mark.parametrize("workers", [1, 3])
def test_any_number_of_workers_gives_the_same_batches(cases: list[CaseCache], workers: int) -> None:
    plan = train_plan(augmentation=SMALL_DATA)
    expected = first_batches(cases, plan, 7)[2:]
    found = first_batches(cases, plan, 5, workers=workers, first_step=2)
    assert all(same(one, other) for one, other in zip(found, expected, strict=True))
    assert multiprocessing.active_children() == []


def test_label_and_image_come_from_the_same_place(cases: list[CaseCache]) -> None:
    """Without augmentation each patch is found in its scan, padded where the cache has cut air off."""
    scans = [scan(0), scan(1)]
    for batch in first_batches(cases, train_plan(), 2):
        for image, label in zip(batch.image[:, 0].numpy(), batch.label.numpy(), strict=True):
            assert any(_is_part(image, label, whole, organs) for whole, organs in scans)


@pytest.mark.parametrize("padding", ["constant", "edge"])
@pytest.mark.parametrize("labelled", [True, False])
def test_a_patch_larger_than_the_scan_is_surrounded_as_at_inference(
    tmp_path: Path, padding: Literal["constant", "edge"], labelled: bool
) -> None:
    """An organ reaches both ends of the scan. The cache has cut air off beside the body, which does not."""
    whole, organs = scan(0)
    organs[:, 20:24, 20:24] = 3
    meta = {"spacing_zyx_mm": (3.0,) * 3, "labelled": labelled, "organs": ORGANS, "not_annotated": [], "digest": ""}
    write_case(case_folder(tmp_path, "a"), whole, organs if labelled else None, AIR, flat=False, meta=meta)
    plan = train_plan(train_patch_size=(40, 56, 56), unlabelled_batch=3)
    window = replace(plan.app.sliding_window, padding=padding)
    plan = replace(plan, app=replace(plan.app, sliding_window=window))
    widths = [((side - length) // 2,) * 2 for side, length in zip(plan.train_patch_size, SHAPE, strict=True)]

    def surrounded(values: npt.NDArray[Any], fill: float) -> npt.NDArray[Any]:
        return (
            np.pad(values, widths, mode="edge") if padding == "edge" else np.pad(values, widths, constant_values=fill)
        )

    batch = first_batches(open_cache(tmp_path), plan, 1, labelled=labelled)[0]
    for image, label in zip(batch.image[:, 0].numpy(), batch.label.numpy(), strict=True):
        np.testing.assert_allclose(image, surrounded(whole, AIR), atol=1e-3)
        np.testing.assert_array_equal(label, surrounded(organs, 0) if labelled else np.zeros_like(label))


@pytest.mark.parametrize("written_down", [True, False])
def test_what_prepare_cut_off_comes_back_whatever_the_plan_pads_with(tmp_path: Path, written_down: bool) -> None:
    """Air beside the body stays air when the plan pads with 50 HU now, which is 0; beyond the scan there is 0.

    A cache of before the value was written down has nothing but the plan's.
    """
    whole, organs = scan(0)
    meta = {"spacing_zyx_mm": (3.0,) * 3, "labelled": True, "organs": ORGANS, "not_annotated": [], "digest": ""}
    write_case(case_folder(tmp_path, "a"), whole, organs, AIR, flat=False, meta=meta)
    path = case_folder(tmp_path, "a") / "meta.json"
    if not written_down:
        stored = json.loads(path.read_text())
        path.write_text(json.dumps({key: value for key, value in stored.items() if key != "pad"}))
    plan = train_plan(train_patch_size=(40, 56, 56), labelled_batch=1)
    window = replace(plan.app.sliding_window, padding="constant", pad_hu=50.0)
    plan = replace(plan, app=replace(plan.app, sliding_window=window))
    image = first_batches(open_cache(tmp_path), plan, 1)[0].image[0, 0].numpy()
    inside = whole if written_down else np.where(whole == np.float32(AIR), np.float32(0), whole)
    np.testing.assert_allclose(image, np.pad(inside, ((4, 4), (8, 8), (4, 4))), atol=1e-3)


def _is_part(image: Float32Array, label: LabelArray, whole: Float32Array, organs: LabelArray) -> bool:
    for z in range(SHAPE[0] - 16 + 1):
        for y in range(SHAPE[1] - 24 + 1):
            for x in range(SHAPE[2] - 24 + 1):
                box = (slice(z, z + 16), slice(y, y + 24), slice(x, x + 24))
                if np.array_equal(label, organs[box]) and np.abs(image - whole[box]).max() < 1e-3:
                    return True
    return False


def test_a_third_is_centred_on_organs_and_small_ones_as_often(cases: list[CaseCache]) -> None:
    """The liver has 2880 voxels and the kidney one. Nine of forty draws at least: binomial(40, 1/2) is below 9 in one
    of 10,000 seeds."""
    plan = train_plan(train_patch_size=(16, 16, 16), foreground_part=1 / 3)
    labels = torch.stack([batch.label for batch in first_batches(cases, plan, 40)])
    centres = labels[:, :, 8, 8, 8]
    organs, counts = np.unique(centres[:, 0], return_counts=True)
    assert organs.tolist() == [1, 2]
    assert counts.min() >= 9
    assert (centres[:, 1:] == 0).any()


def test_of_a_fraction_chance_decides(cases: list[CaseCache]) -> None:
    """Of 200 batches of one patch 66 with a deviation of 7: outside of 40 to 95 in one of 10,000 seeds; places in the
    body hit an organ seldom, and none lies at the centre if no patch is centred on one."""
    on_organ = []
    for part in (0.0, 0.33, 1.0):
        plan = train_plan(train_patch_size=(16, 16, 16), labelled_batch=1, foreground_part=part)
        labels = torch.stack([batch.label for batch in first_batches(cases, plan, 200)])
        on_organ.append(int((labels[:, 0, 8, 8, 8] > 0).sum()))
    elsewhere, third, all_of_them = on_organ
    assert all_of_them == 200
    assert 40 <= third - elsewhere * 2 // 3 <= 95


def test_unlabelled_scans_are_sampled_in_the_body(cases: list[CaseCache]) -> None:
    plan = train_plan(train_patch_size=(16, 16, 16), unlabelled_batch=4)
    batches = first_batches(cases, plan, 5, labelled=False)
    centre = torch.cat([batch.image[:, 0, 6:11, 6:11, 6:11] for batch in batches]).mean(dim=(1, 2, 3))
    assert (centre > -1.9).all()
    assert not any(batch.label.any() for batch in batches)
    assert torch.cat([batch.annotated for batch in batches]).unique(dim=0).tolist() == [[True, *[False] * 4]]


def test_labelled_scans_serve_as_unlabelled_ones_if_the_plan_says_so(cases: list[CaseCache]) -> None:
    plan = train_plan(labelled_as_unlabelled=True)
    batch = first_batches(cases[:2], plan, 1, labelled=False)[0]
    assert not batch.label.any()
    assert not batch.annotated[:, 1:].any()
    with pytest.raises(UsageError, match="no unlabelled case among the 2 to train on"):
        first_batches(cases[:2], train_plan(), 1, labelled=False)
    with pytest.raises(UsageError, match="no labelled case"):
        first_batches(cases[2:], train_plan(), 1)


def test_organs_that_are_not_annotated_are_told(cases: list[CaseCache]) -> None:
    for case, spleen in zip(cases[:2], (True, False), strict=True):
        batch = first_batches([case], train_plan(), 1)[0]
        assert batch.annotated.tolist() == [[True, True, True, spleen, True]] * 3


def test_patch_stays_in_the_scan() -> None:
    def start(voxel: int, side: int, offset: int, cached: int, grid: int) -> int:
        case = CaseCache(
            Path(), "x", (cached,) * 3, (1.0, 1.0, 1.0), True, np.ones(5, bool), (offset,) * 3, (grid,) * 3, ""
        )
        return patch_start(np.full(3, voxel), (side,) * 3, case)[1]

    assert start(50, 64, 0, 100, 100) == 18
    assert start(90, 64, 0, 100, 100) == 36
    assert start(5, 64, 0, 100, 100) == 0
    assert start(9, 64, 0, 18, 18) == -23
    assert start(9, 64, 0, 19, 19) == -22  # as the app pads: 45 // 2 before
    assert start(5, 64, 10, 80, 100) == -10  # ten voxels of air were cut off
    assert start(79, 64, 10, 80, 100) == 26


def test_an_error_names_its_file(tmp_path: Path, folder: Path) -> None:
    broken = tmp_path / "cache"
    (broken / "cases").mkdir(parents=True)
    (broken / "cases" / "a").symlink_to(folder / "cases" / "a")
    missing = replace(open_cache(broken)[0], folder=tmp_path / "gone")
    with pytest.raises((FolderError, FileNotFoundError), match="gone"):
        first_batches([missing], train_plan(), 1)


def test_results_come_in_order_from_all_workers() -> None:
    background = Background(partial(partial, divmod, 100), first=3, workers=2)
    assert [next(background) for _ in range(6)] == [divmod(100, number) for number in range(3, 9)]
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    assert all(os.getpgid(worker.pid or 0) == worker.pid for worker in workers)  # Ctrl-C does not reach them
    background.close()
    background.close()
    assert multiprocessing.active_children() == []
    with pytest.raises(ValueError, match="closed"):
        next(background)


def test_an_error_in_a_worker_surfaces_with_its_traceback_in_its_turn() -> None:
    background = Background(partial(partial, operator.truediv, 1), first=-2, workers=1)
    assert [next(background), next(background)] == [-0.5, -1.0]
    with pytest.raises(ZeroDivisionError) as caught:
        next(background)
    assert "in a worker" in caught.value.__notes__[0]
    assert "background.py" in caught.value.__notes__[0]
    assert multiprocessing.active_children() == []


def test_the_end_of_a_worker_is_noticed() -> None:
    background: Background[None] = Background(partial(partial, os._exit), first=3, workers=1)
    with pytest.raises(AppError, match="exit code 3"):
        next(background)
    assert multiprocessing.active_children() == []


class Unreadable:
    """Cannot be unpickled: 1 / 0 is calculated first."""

    def __reduce__(self) -> tuple[Any, ...]:
        return operator.truediv, (1, 0)


def test_a_result_that_cannot_be_read_is_an_error_and_no_endless_wait() -> None:
    background: Background[Unreadable] = Background(partial(partial, make_unreadable), first=0, workers=1)
    with pytest.raises(ZeroDivisionError):
        next(background)
    assert multiprocessing.active_children() == []


def make_unreadable(_number: int) -> Unreadable:
    return Unreadable()


def test_sigterm_to_all_processes_of_a_job_leaves_the_workers_at_their_work() -> None:
    """Results are larger than a pipe, so few of them are ahead."""
    background = Background(partial(partial, bytes), first=2_000_000, workers=1)
    assert len(next(background)) == 2_000_000
    (worker,) = multiprocessing.active_children()
    worker.terminate()
    assert [len(next(background)) for _ in range(8)] == list(range(2_000_001, 2_000_009))
    background.close()
    assert multiprocessing.active_children() == []


_PARENT = """
from functools import partial
from tools.train.background import Background
if __name__ == "__main__":
    background = Background(partial(partial, divmod, 100), first=1, workers=2)
    print(next(background), flush=True)
    {then}
"""


@pytest.mark.parametrize("then", ["input()", "pass", "raise KeyboardInterrupt"])
def test_workers_end_with_their_parent_however_it_ends(tmp_path: Path, then: str) -> None:
    """The workers hold the parent's output open: it ends when the last of them has ended."""
    script = tmp_path / "parent.py"
    script.write_text(_PARENT.format(then=then))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    with subprocess.Popen(
        [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env=environment,
    ) as parent:  # fmt: skip
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"(100, 0)\n"
        if then == "input()":
            parent.kill()
        rest, _ = parent.communicate(timeout=60)
        assert rest == b""
