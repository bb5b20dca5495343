"""Learning rate over the epochs, against sequences worked out by hand."""

from dataclasses import replace
from typing import Literal

import pytest

from tests.conftest import default_plan
from tools.train.planning import TrainPlan
from tools.train.schedule import Schedule


@pytest.fixture
def plan() -> TrainPlan:
    return TrainPlan(
        app=default_plan(),
        train_patch_size=(64, 96, 96),
        labelled_batch=2,
        unlabelled_batch=2,
        epochs=100,
        iterations_per_epoch=10,
        learning_rate=0.01,
        weight_decay=3e-5,
        momentum=0.99,
        ramp_up_epochs=0,
        plateau_patience=3,
        plateau_factor=0.2,
    )


def rates(schedule: Schedule, losses: list[float]) -> list[float]:
    return [schedule.finish_epoch(epoch, loss) for epoch, loss in enumerate(losses)]


def test_poly_is_nnunets(plan: TrainPlan) -> None:
    schedule = Schedule(replace(plan, schedule="poly"))
    found = rates(schedule, [1.0] * 100)
    assert found[49] == pytest.approx(0.01 * 0.5**0.9)
    assert found[-1] == 0


def test_plateau_drops_after_patience_epochs_without_gain(plan: TrainPlan) -> None:
    # epoch 0 sets the best; 1, 2, 3 wait; epoch 4 is the fourth without gain: 0.01 -> 0.002; four more: 0.0004
    found = rates(Schedule(plan), [1.0] * 10)
    assert found == pytest.approx([0.01] * 4 + [0.002] * 4 + [0.0004] * 2)


def test_plateau_does_not_count_during_the_ramp(plan: TrainPlan) -> None:
    found = rates(Schedule(replace(plan, ramp_up_epochs=5)), [1.0] * 11)
    assert found == pytest.approx([0.01] * 9 + [0.002] * 2)


def test_the_baseline_has_no_ramp_to_wait_for(plan: TrainPlan) -> None:
    found = rates(Schedule(replace(plan, ramp_up_epochs=500), supervised=True), [1.0] * 10)
    assert found == pytest.approx([0.01] * 4 + [0.002] * 4 + [0.0004] * 2)


def test_more_epochs_for_a_finished_training_raise_its_rate_at_once(plan: TrainPlan) -> None:
    """Of 100 epochs all are done, of 200 a half: 0.01 * 0.5^0.9 in the next one."""
    finished = Schedule(replace(plan, schedule="poly"))
    assert rates(finished, [1.0] * 100)[-1] == 0
    again = Schedule(replace(plan, schedule="poly", epochs=200))
    again.load_state(finished.state(), 100)
    assert again.rate == pytest.approx(0.00535886731)


@pytest.mark.parametrize("schedule", ["poly", "plateau"])
def test_a_rate_goes_on_to_the_bit(plan: TrainPlan, schedule: Literal["poly", "plateau"]) -> None:
    changed = replace(plan, schedule=schedule)
    cut = Schedule(changed)
    for epoch, rate in enumerate(rates(cut, [1.0] * 30)):
        whole = Schedule(changed)
        rates(whole, [1.0] * (epoch + 1))
        again = Schedule(changed)
        again.load_state(whole.state(), epoch + 1)
        assert again.rate == rate


def test_a_falling_loss_keeps_the_rate(plan: TrainPlan) -> None:
    assert rates(Schedule(plan), [1.0 - 0.05 * i for i in range(20)]) == [0.01] * 20


def test_gains_below_a_thousandth_of_the_moving_average_do_not_count(plan: TrainPlan) -> None:
    # the average falls by 0.07 * 0.001 in its first step and by less after it
    assert rates(Schedule(plan), [1.0, *[0.999] * 7])[-1] == pytest.approx(0.002)


def test_moving_average_is_nnunets(plan: TrainPlan) -> None:
    schedule = Schedule(plan)
    rates(schedule, [1.0, 0.0])
    assert schedule.average == pytest.approx(0.93)


def test_state_goes_on_where_it_was(plan: TrainPlan) -> None:
    whole, cut = Schedule(plan), Schedule(plan)
    expected = rates(whole, [1.0] * 10)
    rates(cut, [1.0] * 6)
    again = Schedule(plan)
    again.load_state(cut.state(), 6)
    assert [again.finish_epoch(epoch, 1.0) for epoch in range(6, 10)] == expected[6:]
