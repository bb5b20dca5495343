"""Two processes against one: a training step on half of a batch each, a validation on half of the scans each."""

import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.spawn import spawn

from tools.train.cases import TrainingCase
from tools.train.distributed import ALONE, Rank, join_ranks
from tools.train.planning import TrainPlan
from tools.train.presets import make_plan
from tools.train.sampling import Batch
from tools.train.trainer import Trainer, TrainerOptions, new_network
from tools.train.validation import LiveNetwork, Validation

STEPS = 5
OPTIONS = TrainerOptions(precision="fp32", ema_decay=0.9)


def small_plan() -> TrainPlan:
    """A 2-D network of three stages, SGD with momentum as in the paper."""
    plan = make_plan("phantom-3d", ("first", "second"))
    network = replace(
        plan.app.network, features_per_stage=(4, 8, 8), strides=((1, 1), (2, 2), (2, 2)), kernel_sizes=((3, 3),) * 3
    )
    window = replace(plan.app.sliding_window, patch_size=(1, 16, 16))
    app = replace(plan.app, network=network, sliding_window=window)
    return replace(plan, app=app, train_patch_size=(1, 16, 16), optimiser="sgd", learning_rate=0.05, momentum=0.9)


def batches(rows: slice) -> tuple[Batch, Batch]:
    """Some of two labelled and two unlabelled samples; organ 2 is not annotated in the second one."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 1, 16, 16, generator=generator)
    labels = torch.randint(0, 3, (2, 16, 16), generator=generator, dtype=torch.uint8)
    labels[1][labels[1] == 2] = 0
    annotated = torch.tensor([[True, True, True], [True, True, False]])
    nothing = torch.tensor([[True, False, False]] * 2)
    labelled = Batch(images[:2][rows], labels[rows], annotated[rows])
    return labelled, Batch(images[2:][rows], torch.zeros_like(labels)[rows], nothing[rows])


def train(rank: Rank, rows: slice) -> list[dict[str, Any]]:
    """The numbers of each step, and the weights and running means after it."""
    torch.set_num_threads(1)
    trainer = Trainer(small_plan(), OPTIONS, rank)
    labelled, unlabelled = batches(rows)
    results = []
    for _ in range(STEPS):
        numbers = trainer.step(labelled, unlabelled, weight=0.5, rate=0.05)
        state = {key: [dict(one) for one in trainer.state()[key]] for key in ("networks", "averages")}
        copies = {
            f"{key}.{index}.{name}": value.clone()
            for key, networks in state.items()
            for index, weights in enumerate(networks)
            for name, value in weights.items()
        }
        results.append({"numbers": numbers, "weights": copies})
    return results


class NumberedValidation(Validation):
    """Case 3 has a DSC of 0.3 and an NSD of 0.03; notes which cases this process scored."""

    def __init__(self) -> None:
        cases = [TrainingCase(f"case_{number}", Path(), None) for number in (4, 3, 2, 1, 0)]
        super().__init__(cases, make_plan("phantom-3d").app)
        self.scored: list[str] = []

    def _score_case(self, case: TrainingCase, predictor: LiveNetwork) -> dict[str, tuple[float, float]]:
        self.scored.append(case.case_id)
        number = int(case.case_id[-1])
        return {"liver": (number / 10, number / 100)}


def validate(rank: Rank) -> dict[str, Any]:
    validation = NumberedValidation()
    return {**validation.score(new_network(make_plan("phantom-3d"), 0), rank), "scored": validation.scored}


def rank_main(index: int, port: int, folder: str) -> None:
    """One of two processes, as torchrun starts them."""
    own = {"RANK": index, "LOCAL_RANK": index, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in own.items()})
    with join_ranks("cpu") as rank:
        found: dict[str, Any] = {"train": train(rank, slice(index, index + 1)), "validate": validate(rank)}
        found["any_of"] = [rank.any_of(index == 1), rank.any_of(False)]
        torch.save(found, f"{folder}/{index}.pt")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(rank_main, args=(port, str(folder)), nprocs=2)
    return [torch.load(folder / f"{index}.pt", weights_only=True) for index in (0, 1)]


@pytest.mark.parametrize("step", [1, STEPS])
def test_two_processes_equal_one_with_the_doubled_batch(two: list[dict[str, Any]], step: int) -> None:
    """Losses, weights and running means.

    Biases before an instance norm do not change its output, so their gradient is rounding alone and they stay within
    a few 1e-8 of their start, 0: there ``atol`` counts. Other weights move by up to 0.25.
    """
    expected = train(ALONE, slice(0, 2))[step - 1]
    for found in (rank["train"][step - 1] for rank in two):
        assert found["numbers"] == pytest.approx(expected["numbers"], rel=1e-5)
        assert found["weights"].keys() == expected["weights"].keys()
        for name, value in expected["weights"].items():
            torch.testing.assert_close(found["weights"][name], value, rtol=1e-5, atol=1e-7, msg=name)


def test_ranks_share_the_scans_of_a_validation(two: list[dict[str, Any]]) -> None:
    found = [rank["validate"] for rank in two]
    assert [one.pop("scored") for one in found] == [["case_4", "case_2", "case_0"], ["case_3", "case_1"]]
    assert found[0] == found[1]
    assert list(found[0]["cases"]) == ["case_4", "case_3", "case_2", "case_1", "case_0"]
    assert (found[0]["mean_dsc"], found[0]["mean_nsd"]) == pytest.approx((0.2, 0.02))
    alone = validate(ALONE)
    assert alone.pop("scored") == list(found[0]["cases"])
    assert alone == found[0]


def test_all_ranks_stop_when_one_is_asked_to(two: list[dict[str, Any]]) -> None:
    assert [rank["any_of"] for rank in two] == [[True, False]] * 2
