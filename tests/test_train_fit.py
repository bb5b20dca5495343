"""Small first: phantom, prepare, fit, export, verify, segment; and a resume that changes nothing."""

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from app.__main__ import main as app_main
from app.errors import AppError, FolderError, UsageError
from tests.conftest import write_scan
from tests.small_training import ALONE, TINY, assert_equal, checkpoint, log_of, make_cache
from tools.convert.__main__ import main as convert_main
from tools.train.__main__ import main as train_main
from tools.train.cache import open_cache
from tools.train.checkpoint import save_checkpoint
from tools.train.fit import Fit
from tools.train.guards import only_run
from tools.train.planning import read_train_plan
from tools.train.presets import make_plan
from tools.train.running_time import running_s
from tools.train.sampling import Batch, BatchLoader
from tools.train.trainer import Trainer, new_network
from tools.train.training_log import append_line, drop_later_lines, read_lines
from tools.train.validation import Validation, cases_to_validate

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cache(tmp_path_factory.mktemp("training"))


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tools.train", *arguments]


def wait_for_step(run: Path, step: int, process: "subprocess.Popen[bytes]") -> float:
    """Waits for a log line of the iteration or a later one; returns a time at which it was not there yet."""
    start = absent = time.perf_counter()
    while True:
        looked = time.perf_counter()
        if any(line["step"] >= step for line in log_of(run)):
            return absent
        assert process.poll() is None, "the training ended by itself"
        assert looked < start + 120
        absent = looked
        time.sleep(0.02)


@pytest.mark.long
@pytest.mark.parametrize(("precision", "patch"), [("fp32", "[16,16,16]"), ("bf16", "[24,24,24]")])
def test_ten_steps_equal_five_kill_9_and_the_rest(cache: Path, tmp_path: Path, precision: str, patch: str) -> None:
    """To the bit; in bf16 with three planes in the deepest stage, the fewest that README.md promises it for."""
    if precision == "bf16" and not torch.cpu.get_capabilities().get("avx512_bf16"):
        pytest.skip("this CPU has no bf16 instructions; PyTorch would emulate them")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    fit = ["--cache", str(cache), *TINY, "--ema", "0.9", "--checkpoint-minutes", "0"]
    fit += ["--precision", precision, "--set", f"train_patch_size={patch}"]
    subprocess.run(command("fit", "--out", str(whole), *fit, "--stop-at-step", "10"), cwd=ROOT, check=True)
    process = subprocess.Popen(command("fit", "--out", str(cut), *fit), cwd=ROOT)
    wait_for_step(cut, 5, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    resume = ["resume", str(cut), *ALONE, "--stop-at-step", "10"]
    assert checkpoint(cut)["progress"]["step"] < 10
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
    assert checkpoint(run)["progress"]["step"] >= 1


@pytest.mark.long
def test_time_spent_stopped_does_not_count(cache: Path, tmp_path: Path) -> None:
    """Stopped for three seconds, of which at most one may count."""
    run = tmp_path / "run"
    process = subprocess.Popen(command("fit", "--cache", str(cache), "--out", str(run), *TINY), cwd=ROOT)
    start = wait_for_step(run, 1, process)
    process.send_signal(signal.SIGSTOP)
    time.sleep(3)
    step = log_of(run)[-1]["step"]
    process.send_signal(signal.SIGCONT)
    wait_for_step(run, step + 1, process)
    lines, end = log_of(run), time.perf_counter()
    process.terminate()
    assert process.wait(timeout=60) == 0
    rounding = 0.1
    assert lines[-1]["wall_s"] - lines[0]["wall_s"] <= end - start - 2 + rounding


_STOPPED = """
import os, signal, time
from tools.train.running_time import RunningClock
start = time.perf_counter()
with RunningClock() as clock:
    time.sleep(1.5)
    waited = clock.elapsed_s()
    os.kill(os.getpid(), signal.SIGSTOP)
    stopped = clock.elapsed_s() - waited
print(waited >= 1.5, stopped <= 1.1, time.perf_counter() - start >= 3.5)
"""


def test_a_clock_that_stands_still_while_its_process_is_stopped() -> None:
    with subprocess.Popen([sys.executable, "-c", _STOPPED], stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:
        os.waitpid(child.pid, os.WUNTRACED)
        time.sleep(2)
        child.send_signal(signal.SIGCONT)
        assert child.communicate()[0].split() == ["True"] * 3


@pytest.mark.parametrize(("wall_s", "cpu_s", "expected"), [(0.3, 0.0, 0.3), (600, 0.2, 1), (3, 3.1, 3), (600, 40, 40)])
def test_a_gap_counts_up_to_a_second_or_its_cpu_time(wall_s: float, cpu_s: float, expected: float) -> None:
    assert running_s(wall_s, cpu_s) == expected


@pytest.mark.long
def test_two_ranks_train_together(cache: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    fit = ["tools.train", "fit", "--cache", str(cache), "--out", str(run), *TINY, "--stop-at-step", "2"]
    validate = ["--hold-out", "phantom_001", "--validate-every", "2"]
    subprocess.run([*launcher, *fit, *validate], cwd=ROOT, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert [(line["kind"], line["step"]) for line in log_of(run)] == [("epoch", 1), ("epoch", 2), ("validation", 2)]
    assert list(log_of(run)[-1]["cases"]) == ["phantom_001"]


@pytest.mark.long
@pytest.mark.parametrize(("supervised", "network"), [(False, "1"), (False, "both"), (True, "1")])
def test_phantom_to_label_map(cache: Path, tmp_path: Path, supervised: bool, network: str) -> None:
    data = cache.parent / "data"
    run, bundle = tmp_path / "run", tmp_path / "bundle"
    fit = ["fit", "--cache", str(cache), "--out", str(run), *TINY, "--stop-at-step", "2"]
    validate = ["--hold-out", "phantom_001", "--validate-every", "2"]
    assert train_main([*fit, *validate, *(["--supervised"] if supervised else [])]) == 0
    epochs = [line for line in log_of(run) if line["kind"] == "epoch"]
    assert [line["consistency_weight"] for line in epochs] == [0, 0.125]
    assert ("agreement" in epochs[0]["losses"]) is not supervised
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


def fitted(cache: Path, run: Path, steps: int, *more: str) -> Path:
    """A baseline's training of some iterations."""
    fit = ["fit", "--cache", str(cache), "--out", str(run), *TINY, "--supervised", "--stop-at-step", str(steps)]
    assert train_main([*fit, *more]) == 0
    return run


def test_a_training_without_a_checkpoint_is_not_gone_on_with(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its log stays."""
    run = fitted(cache, tmp_path / "run", 2)
    log = (run / "log.jsonl").read_text()
    (run / "checkpoint.pt").unlink()
    assert train_main(["resume", str(run), *ALONE, "--stop-at-step", "3"]) == 1
    assert "checkpoint.pt: cannot be read" in capsys.readouterr().err
    assert (run / "log.jsonl").read_text() == log
    assert not (run / "checkpoint.pt").exists()


@pytest.mark.parametrize("start_from", [False, True])
def test_a_training_ended_before_its_first_iteration_can_be_gone_on_with(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start_from: bool
) -> None:
    more = ["--start-from", str(fitted(cache, tmp_path / "other", 1, "--seed", "3"))] if start_from else []
    whole = fitted(cache, tmp_path / "whole", 2, *more)
    with monkeypatch.context() as patched:
        patched.setattr(Fit, "run", interrupted)
        fit = ["fit", "--cache", str(cache), "--out", str(tmp_path / "cut"), *TINY, "--supervised", *more]
        assert train_main(fit) == 130
    assert checkpoint(tmp_path / "cut")["progress"]["step"] == 0
    assert train_main(["resume", str(tmp_path / "cut"), *ALONE, "--stop-at-step", "2"]) == 0
    assert_equal(checkpoint(tmp_path / "cut")["trainer"], checkpoint(whole)["trainer"])


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_second_training_is_kept_out_of_a_folder(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the first has no checkpoint and no log yet, and while another run is at it; not after its end."""
    run = fitted(cache, tmp_path / "run", 1)
    again = ["fit", "--cache", str(cache), "--out", str(run), *TINY]
    with only_run(run):
        for command in (again, ["resume", str(run), *ALONE]):
            assert train_main(command) == 1
            assert f"{run}: another `tools.train` is training in it" in capsys.readouterr().err
    for name in ("checkpoint.pt", "log.jsonl"):
        (run / name).unlink()
    options = (run / "options.json").read_text()
    assert train_main([*again, "--seed", "5"]) == 1
    assert "holds a training" in capsys.readouterr().err
    assert (run / "options.json").read_text() == options


_HOLDER = """
import sys, time
from pathlib import Path
from tools.train.guards import only_run
with only_run(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_killed_run_is_in_nobodys_way(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", _HOLDER, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(AppError, match="expected to be alone"), only_run(tmp_path):
            pass
        holder.kill()
        holder.wait()
        with only_run(tmp_path):
            pass


def test_a_second_ctrl_c_does_not_cost_the_last_checkpoint(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes while that is written; the one of step 0 is there already."""

    def save(folder: Path, state: dict[str, Any]) -> None:
        if state["progress"]["step"]:
            os.kill(os.getpid(), signal.SIGINT)
        save_checkpoint(folder, state)

    monkeypatch.setattr("tools.train.fit.save_checkpoint", save)
    assert checkpoint(fitted(cache, tmp_path / "run", 2))["progress"]["step"] == 2


def test_what_was_done_before_batches_failed_is_kept(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And is what a training of as many iterations is."""
    batches = BatchLoader.__next__
    numbers = iter(range(5))

    def fail_third(loader: BatchLoader) -> Batch:
        if next(numbers) == 2:
            raise AppError("a process that prepares batches ended")
        return batches(loader)

    with monkeypatch.context() as patched:
        patched.setattr(BatchLoader, "__next__", fail_third)
        fit = ["fit", "--cache", str(cache), "--out", str(tmp_path / "run"), *TINY, "--supervised"]
        assert train_main(fit) == 1
    assert "a process that prepares batches ended" in capsys.readouterr().err
    found, expected = checkpoint(tmp_path / "run"), checkpoint(fitted(cache, tmp_path / "two", 2))
    assert found["progress"]["step"] == 2
    assert_equal(found["trainer"], expected["trainer"])


def test_a_gradient_that_is_no_number_reaches_no_checkpoint(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The loss of iteration 2 is finite."""
    seen = iter(range(5))
    make = Trainer.__init__

    def with_hook(trainer: Trainer, *arguments: Any) -> None:
        make(trainer, *arguments)
        first = next(trainer.networks[0].parameters())
        first.register_hook(lambda gradient: gradient * float("nan") if next(seen) == 1 else gradient)

    monkeypatch.setattr(Trainer, "__init__", with_hook)
    fit = ["fit", "--cache", str(cache), "--out", str(tmp_path / "run"), *TINY, "--ema", "0.9"]
    assert train_main([*fit, "--checkpoint-minutes", "0", "--stop-at-step", "3"]) == 1
    assert "the norm of a network's gradient is nan in iteration 2; the training diverged" in capsys.readouterr().err
    state = checkpoint(tmp_path / "run")
    assert state["progress"]["step"] == 1
    weights = [value for part in ("networks", "averages") for one in state["trainer"][part] for value in one.values()]
    assert all(bool(torch.isfinite(value).all()) for value in weights)


def test_cases_that_come_later_change_nothing(
    cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    grown, later = tmp_path / "cache", tmp_path / "phantom_001"
    shutil.copytree(cache, grown)
    (grown / "cases" / "phantom_001").rename(later)
    whole = fitted(grown, tmp_path / "whole", 3)
    run = fitted(grown, tmp_path / "run", 1)
    later.rename(grown / "cases" / "phantom_001")
    resume = ["resume", str(run), *ALONE, "--stop-at-step"]
    assert train_main([*resume, "3"]) == 0
    assert_equal(checkpoint(run)["trainer"], checkpoint(whole)["trainer"])
    assert "1 cases are left out" in caplog.text
    options = json.loads((run / "options.json").read_text())
    assert options.pop("cases") == ["phantom_000", "phantom_002"]
    (grown / "cases" / "phantom_000").rename(tmp_path / "phantom_000")
    assert train_main([*resume, "4"]) == 2
    assert "lacks phantom_000, from which this training learns" in capsys.readouterr().err
    (run / "options.json").write_text(json.dumps(options))  # as trainings had them that began before
    assert train_main([*resume, "4"]) == 0


def test_a_run_says_its_precision(cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = fitted(cache, tmp_path / "first", 1)
    with caplog.at_level(logging.INFO, "tools.train"):
        second = fitted(cache, tmp_path / "second", 1, "--start-from", str(run))
        assert caplog.text.count("training in fp32 on cpu") == 1
        assert train_main(["resume", str(second), *ALONE, "--stop-at-step", "2"]) == 0
        assert caplog.text.count("training in fp32 on cpu") == 2
    assert log_of(second)[0]["precision"] == "fp32"


def test_unknown_plan_values_are_named(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit = ["fit", "--cache", str(cache), "--out", str(tmp_path / "run")]
    assert train_main([*fit, "--set", "epoch=3"]) == 2
    assert "--set epoch=3" in capsys.readouterr().err
    assert train_main([*fit, "--set", "epochs=many"]) == 2
    assert "plan.epochs" in capsys.readouterr().err
    assert train_main([*fit, "--set", "augmentation.dose=1"]) == 2
    assert "dose_probability" in capsys.readouterr().err
    assert train_main([*fit, "--set", "epochs.many=1"]) == 2
    assert "--set epochs.many=1" in capsys.readouterr().err
    assert train_main([*fit, "--set", "app.spacng.enforce=off"]) == 2
    assert "sliding_window" in capsys.readouterr().err


def test_one_value_within_the_plan_is_changed(cache: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    fit = ["fit", "--cache", str(cache), "--out", str(run), *TINY, "--stop-at-step", "1"]
    assert train_main([*fit, "--set", "augmentation.dose_probability=0.125"]) == 0
    found, usual = read_train_plan(run / "train_plan.json").augmentation, read_train_plan(cache / "train_plan.json")
    assert found == replace(usual.augmentation, dose_probability=0.125)


def test_exporting_nothing_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_main(["export", str(tmp_path / "nowhere"), str(tmp_path / "bundle")]) == 3
    assert "train_plan.json" in capsys.readouterr().err


def test_impossible_options_are_named(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is written."""
    fit = ["fit", "--cache", str(cache), "--out", str(tmp_path / "run"), *TINY]
    for extra, expected in {
        ("--confidence", "80"): "confidence 80",
        ("--ema", "5"): "EMA decay 5",
        ("--seed", "-1"): "seed -1",
        ("--validate-every", "1"): "labelled scans with --hold-out",
        ("--hold-out", "phantom_009"): "no such case",
        ("--set", "unlabelled_batch=0"): "batches",
        ("--set", "train_patch_size=[8,8,8]"): "one voxel in the deepest stage",
        ("--workers", "-1"): "--workers -1",
        ("--threads", "0"): "--threads 0",
        ("--validate-every", "-1"): "--validate-every -1",
        ("--checkpoint-minutes", "nan"): "--checkpoint-minutes nan",
        ("--stop-after-cpu-minutes", "-1"): "--stop-after-cpu-minutes -1",
        ("--stop-at-step", "0"): "--stop-at-step 0",
        ("--supervised", "--confidence", "0.5"): "--supervised and --confidence",
        ("--hold-out", "phantom_000", "phantom_001"): "no labelled case among the 1 to train on",
        ("--out", "/proc/run"): "/proc/run: cannot be written",
    }.items():
        assert train_main([*fit, *extra]) == (3 if "/proc/run" in extra else 2)
        assert expected in capsys.readouterr().err
        assert not (tmp_path / "run").exists()


def test_other_organs_are_not_scored_as_flares() -> None:
    plan = make_plan("phantom-3d").app
    with pytest.raises(UsageError, match="spleen, liver"):
        Validation([], replace(plan, labels=("spleen", "liver")))


def test_held_out_scans_are_where_prepare_found_them(cache: Path) -> None:
    data = cache.parent / "data"
    cases = cases_to_validate(open_cache(cache))
    assert [(case.case_id, case.image_path.relative_to(data), case.label_path) for case in cases] == [
        (name, Path("images", f"{name}_0000.nii.gz"), data / "labels" / f"{name}.nii.gz")
        for name in ("phantom_000", "phantom_001")
    ]


def test_held_out_scans_in_other_folders_keep_what_is_not_annotated(cache: Path, tmp_path: Path) -> None:
    """As ``prepare --dataset`` was told, though the folders that --data names say nothing of it."""
    prepared = open_cache(cache)[:2]
    meta = json.loads((prepared[1].folder / "meta.json").read_text())
    (tmp_path / "meta.json").write_text(json.dumps({**meta, "not_annotated": ["spleen"]}))
    held_out = [prepared[0], replace(prepared[1], folder=tmp_path)]
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder, case in zip(folders, held_out, strict=True):
        for name in (f"images/{case.case_id}_0000.nii.gz", f"labels/{case.case_id}.nii.gz"):
            (folder / name).parent.mkdir(parents=True)
            (folder / name).touch()
    cases = cases_to_validate(held_out, folders)
    assert [case.image_path.parent.parent for case in cases] == folders
    assert [case.not_annotated for case in cases] == [(), ("spleen",)]
    gone = {**meta, "source": {"image": ["/gone.nii.gz", 0, 0], "label": ["/gone_too.nii.gz", 0, 0]}}
    (tmp_path / "meta.json").write_text(json.dumps(gone))
    with pytest.raises(UsageError, match=r"phantom_001: found /gone.nii.gz .* --data"):
        cases_to_validate(held_out, folders[:1])


def test_an_organ_that_is_not_annotated_has_no_score(cache: Path) -> None:
    """Though the label map shows all thirteen."""
    plan = make_plan("phantom-3d")
    case = cases_to_validate(open_cache(cache))[0]
    assert np.unique(np.asarray(nib.load(case.label_path).dataobj)).tolist() == list(range(14))
    found = Validation([replace(case, not_annotated=("liver",))], plan.app).score(new_network(plan, 0))
    scores = found["cases"]["phantom_000"]
    assert set(scores) == set(plan.app.labels) - {"liver"}
    assert found["mean_dsc"] == pytest.approx(np.mean([dsc for dsc, _ in scores.values()]))


def test_a_label_map_is_scored_as_its_header_scales_it(cache: Path, tmp_path: Path) -> None:
    """Twice the ids are stored, with a slope of 1/2, as prepare understands them too."""
    plan = make_plan("phantom-3d")
    case = cases_to_validate(open_cache(cache))[0]
    stored = nib.load(case.label_path)
    doubled = 2 * np.asarray(stored.dataobj).T
    scaled = write_scan(
        tmp_path / "a.nii.gz", doubled, affine=stored.affine, edit=lambda header: header.set_slope_inter(0.5, 0)
    )
    assert nib.load(scaled).dataobj.get_unscaled().max() == 26
    network = new_network(plan, 0)
    cases = [case, replace(case, label_path=scaled)]
    usual, found = (Validation([one], plan.app).score(network) for one in cases)
    assert found == usual


def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    with pytest.raises(FolderError, match=r"log.jsonl: cannot be written \(No space left on device\)"):
        append_line(tmp_path, {"step": 1})


def test_a_training_of_two_processes_is_not_resumed_by_one(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train_main(["fit", "--cache", str(cache), "--out", str(run), *TINY, "--stop-at-step", "1"]) == 0
    options = json.loads((run / "options.json").read_text())
    (run / "options.json").write_text(json.dumps({**options, "world_size": 2}))
    assert train_main(["resume", str(run)]) == 2
    assert "torchrun --nproc-per-node 2" in capsys.readouterr().err


@pytest.mark.long
def test_resume_goes_about_it_as_fit_did(cache: Path, tmp_path: Path) -> None:
    run, hold_out = tmp_path / "run", ["--hold-out", "phantom_001"]
    fit = ["fit", "--cache", str(cache), "--out", str(run), *TINY, *hold_out, "--validate-every", "1"]
    assert train_main([*fit, "--stop-at-step", "1"]) == 0
    assert train_main(["resume", str(run), "--stop-at-step", "2"]) == 0
    assert train_main(["resume", str(run), "--stop-at-step", "3", "--validate-every", "0"]) == 0
    assert [line["step"] for line in log_of(run) if line["kind"] == "validation"] == [1, 2]


def test_damaged_folders_are_named(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, file = tmp_path / "run", str(tmp_path / "packed.safetensors")
    assert train_main(["fit", "--cache", str(cache), "--out", str(run), *TINY, "--stop-at-step", "1"]) == 0
    options = run / "options.json"
    for text in ('{"trainer": {}}', "[]", "{", options.read_text().replace('"cpu"', '"tpu"')):
        options.write_text(text)
        for command in (["resume", str(run)], ["pack", str(run), file]):
            assert train_main(command) == 2
            assert "options.json: cannot be read" in capsys.readouterr().err
    for content in (b"", b"garbage", (run / "checkpoint.pt").read_bytes()[:5000]):
        (run / "checkpoint.pt").write_bytes(content)
        assert train_main(["export", str(run), str(tmp_path / "bundle")]) == 1
        assert "checkpoint.pt: cannot be read" in capsys.readouterr().err
    (run / "train_plan.json").unlink()
    assert train_main(["pack", str(run), file]) == 1
    assert train_main(["curves", str(tmp_path)]) == 1
    assert "begun after its first epoch" in capsys.readouterr().err


def test_the_readme_names_options_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    """In its table, where fit is not named, and in its commands."""
    text = (ROOT / "tools" / "train" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(.+?)` \|", text, re.MULTILINE)
    uses = [row if row.startswith("export ") else f"fit {row}" for row in rows]
    uses += re.findall(r"-m tools\.train (\w+ [^`\n]+)", text)
    known = {}
    for name in {use.split()[0] for use in uses}:
        with pytest.raises(SystemExit):
            train_main([name, "--help"])
        known[name] = re.findall(r"^ +(--[a-z-]+)", capsys.readouterr().out, re.MULTILINE)
    flags = [(use.split()[0], flag) for use in uses for flag in re.findall(r"--[a-z-]+", use)]
    assert len(flags) > 20
    assert [(name, flag) for name, flag in flags if flag not in known[name]] == []


def test_a_diverged_training_stops(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit = ["fit", "--cache", str(cache), "--out", str(tmp_path / "run"), *TINY, "--set", "learning_rate=1e30"]
    assert train_main([*fit, "--stop-at-step", "6"]) == 1
    assert "diverged" in capsys.readouterr().err


def test_a_torn_last_line_of_the_log_is_left_out(cache: Path, tmp_path: Path) -> None:
    """As a loss of power leaves it: cut, or with zeros that were never written."""
    run = tmp_path / "run"
    assert train_main(["fit", "--cache", str(cache), "--out", str(run), *TINY, "--stop-at-step", "2"]) == 0
    whole = (run / "log.jsonl").read_bytes()
    for torn in (b'{"step": 3, "wall_s": 1.', b"\0" * 60, b'{"step": 3, "name": "\xc3'):
        (run / "log.jsonl").write_bytes(whole + torn)
        assert [line["step"] for line in read_lines(run)] == [1, 2]
    assert train_main(["curves", str(run)]) == 0
    assert train_main(["resume", str(run), *ALONE, "--stop-at-step", "3"]) == 0
    assert [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()] == [1, 2, 3]


def test_a_log_is_cut_to_its_checkpoint(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text("".join(f'{{"step": {step}, "loss": 0.1}}\n' for step in (1, 2, 3)))
    drop_later_lines(tmp_path, 2)
    assert log.read_text() == '{"step": 1, "loss": 0.1}\n{"step": 2, "loss": 0.1}\n'
    drop_later_lines(tmp_path, 0)
    assert read_lines(tmp_path) == []
    log.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(AppError, match=r"log.jsonl: line 2 is damaged"):
        drop_later_lines(tmp_path, 2)
