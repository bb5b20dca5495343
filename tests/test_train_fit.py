"""Small first: phantom, prepare, fit, export, verify, segment; and a resume that changes nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from app.__main__ import main as app_main
from tools.convert.__main__ import main as convert_main
from tools.phantom import main as phantom_main
from tools.train.__main__ import main as train_main

ROOT = Path(__file__).parent.parent
# In fp32: oneDNN's bf16 weight gradients over two planes, as these patches have at the bottom, vary from call to call.
TINY = [
    "--set", "train_patch_size=[16,16,16]", "--set", "labelled_batch=1", "--set", "unlabelled_batch=1",
    "--set", "iterations_per_epoch=1", "--set", "ramp_up_epochs=4", "--workers", "0", "--threads", "1",
    "--precision", "fp32",
]  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two labelled and one unlabelled phantom, prepared for ``phantom-3d``."""
    folder = tmp_path_factory.mktemp("training")
    assert (
        phantom_main(
            [
                "--out",
                str(folder / "data"),
                "--count",
                "3",
                "--labels",
                "--shape",
                "32",
                "48",
                "48",
                "--spacing",
                "6",
                "6",
                "6",
            ]
        )
        == 0
    )
    labels = sorted((folder / "data" / "labels").iterdir())
    labels[-1].unlink()
    arguments = ["prepare", "--data", str(folder / "data"), "--preset", "phantom-3d", "--out", str(folder / "cache")]
    assert train_main([*arguments, "--workers", "1"]) == 0
    return folder / "cache"


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tools.train", *arguments]


def log_of(run: Path) -> list[dict[str, object]]:
    path = run / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for_step(run: Path, step: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 120
    while not any(int(str(line["step"])) >= step for line in log_of(run)):
        assert process.poll() is None, "the training ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def checkpoint(run: Path) -> dict[str, object]:
    state: dict[str, object] = torch.load(run / "checkpoint.pt", weights_only=True)
    return state


def assert_equal(found: object, expected: object) -> None:
    """Equal to the bit, through dicts and lists."""
    assert type(found) is type(expected)
    if isinstance(found, dict) and isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in found:
            assert_equal(found[key], expected[key])
    elif isinstance(found, list) and isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)
    elif isinstance(found, torch.Tensor) and isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    else:
        assert found == expected


@pytest.mark.long
def test_ten_steps_equal_five_kill_9_and_the_rest(cache: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    fit = ["--cache", str(cache), *TINY, "--ema", "0.9", "--checkpoint-minutes", "0"]
    subprocess.run(command("fit", "--out", str(whole), *fit, "--stop-at-step", "10"), cwd=ROOT, check=True)
    process = subprocess.Popen(command("fit", "--out", str(cut), *fit), cwd=ROOT)
    wait_for_step(cut, 5, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    resume = ["resume", str(cut), "--workers", "0", "--threads", "1", "--stop-at-step", "10"]
    assert checkpoint(cut)["progress"]["step"] < 10  # type: ignore[index]
    subprocess.run(command(*resume), cwd=ROOT, check=True)
    found, expected = checkpoint(cut), checkpoint(whole)
    assert_equal(found["trainer"], expected["trainer"])
    assert_equal(found["schedule"], expected["schedule"])
    losses = [[line["losses"] for line in log_of(run)] for run in (cut, whole)]
    assert losses[0] == losses[1]
    assert [line["step"] for line in log_of(cut)] == list(range(1, 11))


@pytest.mark.long
def test_sigterm_writes_a_checkpoint_and_ends_well(cache: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen(command("fit", "--cache", str(cache), "--out", str(run), *TINY), cwd=ROOT)
    wait_for_step(run, 1, process)
    process.terminate()
    assert process.wait(timeout=60) == 0
    assert checkpoint(run)["progress"]["step"] >= 1  # type: ignore[index]


@pytest.mark.long
def test_two_ranks_train_together(cache: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    fit = ["tools.train", "fit", "--cache", str(cache), "--out", str(run), *TINY, "--stop-at-step", "2"]
    subprocess.run([*launcher, *fit], cwd=ROOT, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert [line["step"] for line in log_of(run)] == [1, 2]


@pytest.mark.long
@pytest.mark.parametrize(("supervised", "network"), [(False, "1"), (False, "both"), (True, "1")])
def test_phantom_to_label_map(cache: Path, tmp_path: Path, supervised: bool, network: str) -> None:
    data = cache.parent / "data"
    run, bundle = tmp_path / "run", tmp_path / "bundle"
    fit = ["fit", "--cache", str(cache), "--out", str(run), *TINY, "--stop-at-step", "2"]
    validate = ["--data", str(data), "--hold-out", "phantom_001", "--validate-every", "2"]
    assert train_main([*fit, *validate, *(["--supervised"] if supervised else [])]) == 0
    epochs = [line for line in log_of(run) if line["kind"] == "epoch"]
    assert [line["consistency_weight"] for line in epochs] == [0, 0.125]
    assert ("agreement" in epochs[0]["losses"]) is not supervised  # type: ignore[operator]
    assert [line["kind"] for line in log_of(run)] == ["epoch", "epoch", "validation"]
    assert train_main(["curves", str(run)]) == 0
    assert (run / "curves.png").stat().st_size > 10_000
    assert train_main(["export", str(run), str(bundle), "--network", network]) == 0
    assert convert_main(["verify", str(bundle), "--random", "1"]) == 0
    scan = data / "images" / "phantom_000_0000.nii.gz"
    assert app_main(["--bundle", str(bundle), "--input", str(scan), "--output", str(tmp_path / "labels.nii.gz")]) == 0
    assert np.asarray(nib.load(tmp_path / "labels.nii.gz").dataobj).shape == nib.load(scan).shape


def test_a_training_is_not_overwritten(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log.jsonl").write_text("{}\n")
    assert train_main(["fit", "--cache", str(cache), "--out", str(tmp_path), *TINY]) == 1
    assert "tools.train resume" in capsys.readouterr().err


def test_unknown_plan_values_are_named(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit = ["fit", "--cache", str(cache), "--out", str(tmp_path / "run")]
    assert train_main([*fit, "--set", "epoch=3"]) == 2
    assert "--set epoch=3" in capsys.readouterr().err
    assert train_main([*fit, "--set", "epochs=many"]) == 2
    assert "plan.epochs" in capsys.readouterr().err


def test_exporting_nothing_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_main(["export", str(tmp_path / "nowhere"), str(tmp_path / "bundle")]) == 3
    assert "train_plan.json" in capsys.readouterr().err


def test_a_packed_training_goes_on_elsewhere(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, packed, second = tmp_path / "first", tmp_path / "siblings.safetensors", tmp_path / "second"
    assert train_main(["fit", "--cache", str(cache), "--out", str(first), *TINY, "--stop-at-step", "3"]) == 0
    assert train_main(["pack", str(first), str(packed)]) == 0
    assert packed.stat().st_size < (first / "checkpoint.pt").stat().st_size / 4
    assert train_main(["unpack", str(packed), "--out", str(second), "--cache", str(cache)]) == 0
    before, after = checkpoint(first)["trainer"], checkpoint(second)["trainer"]
    for one, other in zip(before["networks"], after["networks"], strict=True):  # type: ignore[index]
        assert_equal({key: value.half().float() for key, value in one.items()}, other)
    assert train_main(["resume", str(second), "--workers", "0", "--threads", "1", "--stop-at-step", "4"]) == 0
    assert [line["step"] for line in log_of(second)] == [1, 2, 3, 4]
    assert (
        train_main(["unpack", str(first / "checkpoint.pt"), "--out", str(tmp_path / "x"), "--cache", str(cache)]) == 2
    )
    assert "tools.train pack" in capsys.readouterr().err


def test_new_optimisers_start_slowly(cache: Path, tmp_path: Path) -> None:
    """The first iteration after ``unpack`` has a rate of 0, the hundredth 0.99 of the plan's."""
    first, packed, second = tmp_path / "first", tmp_path / "siblings.safetensors", tmp_path / "second"
    assert train_main(["fit", "--cache", str(cache), "--out", str(first), *TINY, "--stop-at-step", "2"]) == 0
    assert train_main(["pack", str(first), str(packed)]) == 0
    assert train_main(["unpack", str(packed), "--out", str(second), "--cache", str(cache)]) == 0
    unpacked = checkpoint(second)["trainer"]["networks"]  # type: ignore[index]
    resume = ["resume", str(second), "--workers", "0", "--threads", "1"]
    assert train_main([*resume, "--stop-at-step", "3"]) == 0
    still = checkpoint(second)["trainer"]
    for one, other in zip(still["networks"], unpacked, strict=True):  # type: ignore[index]
        assert_equal(dict(one), other)
    assert still["warm_up_left"] == 99  # type: ignore[index]
    assert train_main([*resume, "--stop-at-step", "4"]) == 0
    moved = checkpoint(second)["trainer"]["networks"]  # type: ignore[index]
    assert any(not torch.equal(moved[0][key], unpacked[0][key]) for key in moved[0])


def test_impossible_options_are_named(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit = ["fit", "--cache", str(cache), "--out", str(tmp_path / "run"), *TINY]
    for extra, expected in {
        ("--confidence", "80"): "confidence 80",
        ("--ema", "5"): "EMA decay 5",
        ("--seed", "-1"): "seed -1",
        ("--validate-every", "1"): "--data and --hold-out",
        ("--set", "unlabelled_batch=0"): "batches",
    }.items():
        assert train_main([*fit, *extra]) == 2
        assert expected in capsys.readouterr().err


def test_other_organs_are_not_scored_as_flares() -> None:
    from dataclasses import replace

    from app.errors import UsageError
    from tools.train.presets import make_plan
    from tools.train.validation import Validation

    plan = make_plan("phantom-3d").app
    with pytest.raises(UsageError, match="spleen, liver"):
        Validation([], replace(plan, labels=("spleen", "liver")))


def test_a_training_of_two_processes_is_not_resumed_by_one(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train_main(["fit", "--cache", str(cache), "--out", str(run), *TINY, "--stop-at-step", "1"]) == 0
    options = json.loads((run / "options.json").read_text())
    (run / "options.json").write_text(json.dumps({**options, "world_size": 2}))
    assert train_main(["resume", str(run)]) == 2
    assert "torchrun --nproc-per-node 2" in capsys.readouterr().err


def test_a_diverged_training_stops(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit = ["fit", "--cache", str(cache), "--out", str(tmp_path / "run"), *TINY, "--set", "learning_rate=1e30"]
    assert train_main([*fit, "--stop-at-step", "6"]) == 1
    assert "diverged" in capsys.readouterr().err
