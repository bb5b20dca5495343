"""From a training to what goes on elsewhere: bundles and packed trainings."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file

from app.backends.shapes import network_shapes
from app.bundle import load_bundle
from app.errors import FolderError
from tests.small_training import ALONE, TINY, assert_equal, checkpoint, log_of, make_cache
from tools.convert.__main__ import main as convert
from tools.train.__main__ import main as train_main
from tools.train.cache import open_cache
from tools.train.planning import preprocessing_digest, read_train_plan
from tools.train.trainer import new_network, steps_to_full_decay

SHIPPED = Path(__file__).parent.parent / "weights" / "training" / "abdomen_ct_twin.safetensors"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cache(tmp_path_factory.mktemp("handover"))


def fit(cache: Path, run: Path, steps: int, *options: str) -> Path:
    start = ["fit", "--cache", str(cache), "--out", str(run), "--stop-at-step", str(steps)]
    assert train_main([*start, *TINY, *options]) == 0
    return run


def hand_over(run: Path, cache: Path) -> Path:
    """The training that ``pack`` and ``unpack`` make of another."""
    packed, unpacked = run.with_suffix(".safetensors"), run.with_name("unpacked")
    assert train_main(["pack", str(run), str(packed)]) == 0
    assert train_main(["unpack", str(packed), "--out", str(unpacked), "--cache", str(cache)]) == 0
    return unpacked


def as_half(networks: list[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
    return [{key: value.half().float() for key, value in network.items()} for network in networks]


def rounded(weights: torch.Tensor) -> torch.Tensor:
    """As a bundle stores them."""
    return weights.bfloat16().half()


def with_digest(cache: Path, folder: Path, digest: str) -> Path:
    """A copy of a cache that says that it was prepared with another plan."""
    shutil.copytree(cache, folder)
    for path in folder.glob("cases/*/meta.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "digest": digest}))
    return folder


def test_a_packed_training_goes_on_elsewhere(cache: Path, tmp_path: Path) -> None:
    first = fit(cache, tmp_path / "first", 3)
    second = hand_over(first, cache)
    assert (tmp_path / "first.safetensors").stat().st_size < (first / "checkpoint.pt").stat().st_size / 4
    before, after = checkpoint(first)["trainer"], checkpoint(second)["trainer"]
    assert_equal(after["networks"], as_half([dict(network) for network in before["networks"]]))
    assert train_main(["resume", str(second), *ALONE, "--stop-at-step", "4"]) == 0
    assert [line["step"] for line in log_of(second)] == [1, 2, 3, 4]


def test_running_means_are_handed_over(cache: Path, tmp_path: Path) -> None:
    """Networks and running means both start from the running means, which are the better ones."""
    first = fit(cache, tmp_path / "first", 3, "--ema", "0.9")
    second = hand_over(first, cache)
    before, after = checkpoint(first)["trainer"], checkpoint(second)["trainer"]
    assert not torch.equal(before["networks"][0]["enc.0.0.0.weight"], before["averages"][0]["enc.0.0.0.weight"])
    expected = as_half([dict(network) for network in before["averages"]])
    assert_equal(after["networks"], expected)
    assert_equal(after["averages"], expected)
    assert train_main(["resume", str(second), *ALONE, "--stop-at-step", "5"]) == 0
    assert len(checkpoint(second)["trainer"]["averages"]) == 2


def test_the_baseline_is_handed_over(cache: Path, tmp_path: Path) -> None:
    first = fit(cache, tmp_path / "first", 2, "--supervised")
    second = hand_over(first, cache)
    after = checkpoint(second)["trainer"]
    assert_equal(after["networks"], as_half([dict(network) for network in checkpoint(first)["trainer"]["networks"]]))
    assert (len(after["networks"]), after["averages"]) == (1, [])
    assert train_main(["resume", str(second), *ALONE, "--stop-at-step", "3"]) == 0
    assert "agreement" not in log_of(second)[-1]["losses"]


@pytest.mark.parametrize("packed", [False, True])
def test_a_training_starts_from_the_networks_of_others(cache: Path, tmp_path: Path, packed: bool) -> None:
    """CPS from two baselines: sibling 1 has the first one's weights, sibling 2 the second one's; the rate is 0."""
    others = [fit(cache, tmp_path / f"baseline{seed}", 2, "--supervised", "--seed", str(seed)) for seed in (0, 1)]
    expected = [checkpoint(other)["trainer"]["networks"][0] for other in others]
    if packed:
        expected = as_half([dict(network) for network in expected])
        files = [tmp_path / f"{number}.safetensors" for number in range(2)]
        for other, file in zip(others, files, strict=True):
            assert train_main(["pack", str(other), str(file)]) == 0
        others = files
    run = fit(cache, tmp_path / "cps", 1, "--ema", "0.9", "--start-from", *map(str, others))
    state = checkpoint(run)["trainer"]
    assert_equal([dict(network) for network in state["networks"]], [dict(network) for network in expected])
    assert_equal(state["averages"], state["networks"])
    assert state["averaged"] == steps_to_full_decay(0.9) + 1 == 81
    assert log_of(run)[0]["start_from"] == [str(other) for other in others]
    assert train_main(["resume", str(run), *ALONE, "--stop-at-step", "3"]) == 0
    assert [line["step"] for line in log_of(run)] == [0, 1, 2, 3]
    assert log_of(run)[-1]["learning_rate"] == pytest.approx(4e-5)


def test_a_sibling_without_weights_to_start_from_is_random(cache: Path, tmp_path: Path) -> None:
    baseline = fit(cache, tmp_path / "baseline", 2, "--supervised")
    run = fit(cache, tmp_path / "cps", 1, "--ema", "0.9", "--start-from", str(baseline))
    siblings = checkpoint(run)["trainer"]["networks"]
    assert_equal(dict(siblings[0]), dict(checkpoint(baseline)["trainer"]["networks"][0]))
    untouched = new_network(read_train_plan(baseline / "train_plan.json"), 1).state_dict()
    assert_equal(dict(siblings[1]), dict(untouched))
    assert checkpoint(run)["trainer"]["averaged"] == 1  # running means forget what is random as they always do


def test_running_means_of_trained_networks_have_their_full_decay() -> None:
    for decay in (0.9, 0.99, 0.998):
        steps = steps_to_full_decay(decay)
        assert (1 + steps) / (10 + steps) == pytest.approx(decay, abs=(1 - decay) / steps)
        assert steps == pytest.approx((10 * decay - 1) / (1 - decay), abs=1)
    assert steps_to_full_decay(0.0) == 0


@pytest.mark.parametrize("packed", [False, True])
def test_one_network_of_a_training_is_chosen_by_its_number(cache: Path, tmp_path: Path, packed: bool) -> None:
    """The second sibling goes on alone; one that a baseline does not have is refused."""
    other = fit(cache, tmp_path / "cps", 1)
    expected = dict(checkpoint(other)["trainer"]["networks"][1])
    if packed:
        (expected,) = as_half([expected])
        assert train_main(["pack", str(other), str(tmp_path / "cps.safetensors")]) == 0
        other = tmp_path / "cps.safetensors"
    run = fit(cache, tmp_path / "alone", 1, "--supervised", "--start-from", f"{other}:2")
    (network,) = checkpoint(run)["trainer"]["networks"]
    assert_equal(dict(network), expected)
    assert log_of(run)[0]["start_from"] == [f"{other}:2"]
    again = ["fit", "--cache", str(cache), "--out", str(tmp_path / "none"), *TINY, "--start-from", f"{run}:2"]
    assert train_main(again) == 2


def test_a_bundle_with_another_spacing_rule_and_window(cache: Path, tmp_path: Path) -> None:
    """``export --set`` changes how the network is served, never the network."""
    run = fit(cache, tmp_path / "run", 1)
    names = ["export", str(run), str(tmp_path / "bundle")]
    changes = ["--set", "app.spacing.enforce=header", "--set", "app.sliding_window.patch_size=[32,32,48]"]
    assert train_main([*names, *changes]) == 0
    bundle = load_bundle(tmp_path / "bundle")
    found, trained = bundle.plan, read_train_plan(run / "train_plan.json").app
    assert (found.spacing.enforce, found.sliding_window.patch_size) == ("header", (32, 32, 48))
    assert network_shapes(found)[0][2:] == [32, 32, 48]
    assert (
        onnx.load_from_string(bundle.read("network.onnx")).graph.input[0].type.tensor_type.shape.dim[4].dim_value == 48
    )
    assert found.network == trained.network
    wrong = ("app.network.features_per_stage=[4,8,16]", "app.intensity.subtract_hu=500", "learning_rate=1",
             "app.spacing.target_zyx_mm=[1,1,1]", 'app.orientation="RAS"')  # fmt: skip
    for change in wrong:
        assert train_main([*names, "--set", change]) == 2


def test_networks_of_another_plan_are_no_start(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["fit", "--cache", str(cache), "--out", str(tmp_path / "run"), *TINY, "--start-from", str(SHIPPED)]
    assert train_main(command) == 2
    assert "--start-from: not the plan's network; for sibling 1" in capsys.readouterr().err
    assert train_main([*command[:-1], str(tmp_path / "nothing")]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_new_optimisers_start_slowly(cache: Path, tmp_path: Path) -> None:
    """The first iteration after ``unpack`` has a rate of 0, the second 0.01 of the plan's 0.002; the log says so."""
    second = hand_over(fit(cache, tmp_path / "first", 2), cache)
    unpacked = checkpoint(second)["trainer"]["networks"]
    assert train_main(["resume", str(second), *ALONE, "--stop-at-step", "3"]) == 0
    still = checkpoint(second)["trainer"]
    for one, other in zip(still["networks"], unpacked, strict=True):
        assert_equal(dict(one), other)
    assert still["warm_up_left"] == 99
    assert train_main(["resume", str(second), *ALONE, "--stop-at-step", "4"]) == 0
    moved = checkpoint(second)["trainer"]["networks"]
    assert any(not torch.equal(moved[0][key], unpacked[0][key]) for key in moved[0])
    assert [line["learning_rate"] for line in log_of(second)] == pytest.approx([2e-3, 2e-3, 0, 2e-5])


def test_a_cache_of_another_plan_is_refused_first(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, packed = fit(cache, tmp_path / "first", 1), tmp_path / "packed.safetensors"
    assert train_main(["pack", str(first), str(packed)]) == 0
    other = with_digest(cache, tmp_path / "other", "of another plan")
    assert train_main(["unpack", str(packed), "--out", str(tmp_path / "second"), "--cache", str(other)]) == 2
    assert f"prepare the scans into a new folder with --plan {packed}" in capsys.readouterr().err
    assert not (tmp_path / "second").exists()
    assert read_train_plan(packed) == read_train_plan(first / "train_plan.json")


def test_options_come_last(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until then an unpacked folder does not look whole."""
    first, packed = fit(cache, tmp_path / "first", 1), tmp_path / "packed.safetensors"
    assert train_main(["pack", str(first), str(packed)]) == 0

    def full(*_: object) -> None:
        raise FolderError("no space left")

    monkeypatch.setattr("tools.train.handover.save_checkpoint", full)
    assert train_main(["unpack", str(packed), "--out", str(tmp_path / "second"), "--cache", str(cache)]) == 3
    assert not (tmp_path / "second" / "options.json").exists()


def test_an_unpacked_training_knows_its_cases(cache: Path, tmp_path: Path) -> None:
    second = hand_over(fit(cache, tmp_path / "first", 1), cache)
    assert json.loads((second / "options.json").read_text())["cases"] == ["phantom_000", "phantom_001", "phantom_002"]


def test_what_pack_did_not_write_is_refused(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "something"
    file.write_bytes(b"no safetensors")
    assert train_main(["unpack", str(file), "--out", str(tmp_path / "run"), "--cache", str(cache)]) == 2
    assert "tools.train pack" in capsys.readouterr().err


@pytest.mark.long
def test_the_training_beside_the_weights_can_be_gone_on_with(cache: Path, tmp_path: Path) -> None:
    digest = preprocessing_digest(read_train_plan(SHIPPED).app)
    same = with_digest(cache, tmp_path / "cache", digest)
    run = tmp_path / "run"
    assert train_main(["unpack", str(SHIPPED), "--out", str(run), "--cache", str(same)]) == 0
    step = checkpoint(run)["progress"]["step"]
    assert train_main(["resume", str(run), *ALONE, "--stop-at-step", str(step)]) == 0
    assert {case.digest for case in open_cache(same)} == {digest}


@pytest.mark.parametrize(
    ("ema", "options", "expected"),
    [
        ("0.9", [], "averages"),
        ("0.9", ["--raw"], "networks"),
        ("0", [], "networks"),
    ],
)
def test_a_bundle_holds_what_validation_scores(
    cache: Path, tmp_path: Path, ema: str, options: list[str], expected: str
) -> None:
    """The running means where there are some; --raw the weights themselves. The model card says which.

    As values of bfloat16, stored as float16, so that fp32 and bf16 run one network.
    """
    run, bundle = fit(cache, tmp_path / "run", 2, "--ema", ema), tmp_path / "bundle"
    assert train_main(["export", str(run), str(bundle), *options]) == 0
    state: dict[str, Any] = checkpoint(run)["trainer"]
    found = load_file(bundle / "network.safetensors")
    assert found.keys() == state[expected][0].keys()
    assert all(np.array_equal(value, rounded(state[expected][0][key])) for key, value in found.items())
    assert all(np.array_equal(value.float(), value.bfloat16().float()) for value in found.values())
    what = {"averages": "network 1, running means of the weights", "networks": "network 1, last state of the weights"}
    assert what[expected] in (bundle / "MODEL_CARD.md").read_text()


def test_both_siblings_become_a_bundle_with_its_twin(cache: Path, tmp_path: Path) -> None:
    run, bundle = fit(cache, tmp_path / "run", 2), tmp_path / "bundle"
    assert train_main(["export", str(run), str(bundle), "--twin"]) == 0
    networks = checkpoint(run)["trainer"]["networks"]
    for folder, network in zip((bundle, bundle / "twin"), networks, strict=True):
        found = load_file(folder / "network.safetensors")
        assert all(np.array_equal(value, rounded(network[key])) for key, value in found.items())
    loaded = load_bundle(bundle)
    assert loaded.twin is not None
    assert (loaded.plan.name, loaded.twin.plan.name) == ("bundle", "bundle-twin")
    assert "network 2, last state of the weights; the twin of network 1" in (bundle / "twin/MODEL_CARD.md").read_text()
    before = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    (bundle / "twin" / "network.onnx").unlink()
    assert convert(["onnx", str(bundle)]) == 0
    assert {path: path.read_bytes() for path in before} == before
    assert train_main(["export", str(run), str(bundle), "--network", "2"]) == 0
    assert load_bundle(bundle).twin is None
    assert train_main(["export", str(run), str(bundle), "--network", "2", "--twin"]) == 0
    assert "network 1" in (bundle / "twin" / "MODEL_CARD.md").read_text()


def test_the_baseline_has_no_twin(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = fit(cache, tmp_path / "run", 1, "--supervised")
    assert train_main(["export", str(run), str(tmp_path / "bundle"), "--twin"]) == 2
    assert "a supervised training has one network; choose --network 1, without --twin" in capsys.readouterr().err
    assert train_main(["export", str(run), str(tmp_path / "bundle"), "--twin", "--network", "both"]) == 2
    assert not (tmp_path / "bundle").exists()
