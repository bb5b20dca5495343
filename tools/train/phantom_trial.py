"""CPS against the supervised baseline on phantoms: ``python -m tools.train.phantom_trial --work DIR --out JSON``.

For each seed: 4 labelled and 12 unlabelled phantoms, and 6 that neither training sees, of which all organs are
scored through the app's pipeline. Both trainings get the same CPU time on one thread, augmentation included, and
start from the same weights. The baseline, which has one network and no unlabelled batches, does more iterations in it;
it is scored after as many as CPS did, too.
"""

import argparse
import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from app.cases import prepare_output_folder
from app.errors import EXIT_CASE_FAILED, EXIT_OK
from app.network import UNet
from tools.exit_codes import exit_code_of
from tools.phantom import write_phantoms
from tools.train.cases import find_training_cases
from tools.train.checkpoint import CHECKPOINT_FILE, load_checkpoint
from tools.train.fit import tune_process
from tools.train.planning import PLAN_FILE, read_train_plan
from tools.train.validation import Validation

SCHEMA_VERSION = 1
LABELLED, UNLABELLED, HELD_OUT = 4, 12, 6
_SEEDS_APART = 1000  # phantoms of one trial never appear in another


def run_trial(work: Path, seed: int, cpu_minutes: float) -> dict[str, Any]:
    """Both trainings of a seed: ``{"cps": scores, "supervised": scores, "supervised_equal_iterations": scores}``."""
    data, held_out = _write_data(work / f"data_{seed}", seed)
    cache = work / f"cache_{seed}"
    _train("prepare", "--data", str(data), "--preset", "phantom-3d", "--out", str(cache))
    limit = ["--stop-after-cpu-minutes", str(cpu_minutes)]
    fit = ["--cache", str(cache), "--seed", str(seed), "--hold-out", *held_out]
    cps, supervised = work / f"cps_{seed}", work / f"supervised_{seed}"
    _fit(cps, fit, limit)
    result = {"cps": _score(cps, data, held_out)}
    _fit(supervised, [*fit, "--supervised"], ["--stop-at-step", str(result["cps"]["iterations"])])
    result["supervised_equal_iterations"] = _score(supervised, data, held_out)
    _fit(supervised, [], limit)
    result["supervised"] = _score(supervised, data, held_out)
    return result


def table(trials: dict[str, dict[str, Any]]) -> str:
    """The trials in Markdown: mean DSC and NSD over held-out phantoms and organs."""
    lines = [
        "| seed | training | iterations | CPU minutes | DSC | NSD |",
        "|---|---|---|---|---|---|",
    ]
    names = {"cps": "CPS", "supervised": "baseline", "supervised_equal_iterations": "baseline, as many iterations"}
    for seed, result in trials.items():
        for key, name in names.items():
            one = result[key]
            numbers = f"{one['iterations']} | {one['cpu_minutes']:.1f} | {one['mean_dsc']:.3f} | {one['mean_nsd']:.3f}"
            lines.append(f"| {seed} | {name} | {numbers} |")
    for key, name in names.items():
        dsc, nsd = ([result[key][metric] for result in trials.values()] for metric in ("mean_dsc", "mean_nsd"))
        spread = [f"{np.mean(values):.3f} ± {np.std(values):.3f}" for values in (dsc, nsd)]
        lines.append(f"| all | {name} | | | {spread[0]} | {spread[1]} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Runs the trials that ``--out`` does not hold yet, from where they stand; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.train.phantom_trial",
        description="Trains CPS and the supervised baseline on phantoms with equal CPU time and scores them.",
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for data and trainings")
    parser.add_argument("--out", type=Path, required=True, help="JSON; finished seeds in it are kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cpu-minutes", type=float, default=10.0, help="of each training (default: 10)")
    arguments = parser.parse_args(argv)
    tune_process(threads=1)
    command = argv or sys.argv[1:]
    try:
        return exit_code_of(lambda: _run(arguments, command), "interrupted; finished seeds are kept")
    except subprocess.CalledProcessError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_CASE_FAILED


def _run(arguments: argparse.Namespace, command: list[str]) -> int:
    trials = json.loads(arguments.out.read_text())["trials"] if arguments.out.exists() else {}
    for seed in arguments.seeds:
        if str(seed) not in trials:
            trials[str(seed)] = run_trial(arguments.work, seed, arguments.cpu_minutes)
            _write(arguments.out, trials, command)
    print(table(trials), end="")
    return EXIT_OK


def _write(out: Path, trials: dict[str, dict[str, Any]], arguments: list[str]) -> None:
    record = {
        "schema_version": SCHEMA_VERSION,
        "command": " ".join(["python -m tools.train.phantom_trial", *arguments]),
        "machine": platform.processor() or platform.machine(),
        "trials": trials,
    }
    out.write_text(json.dumps(record, indent=1) + "\n")


def _write_data(folder: Path, seed: int) -> tuple[Path, list[str]]:
    """(data folder, ids of the held-out phantoms); a folder left by an earlier attempt is made anew."""
    if folder.exists():
        shutil.rmtree(folder)
    prepare_output_folder(folder)
    count = LABELLED + UNLABELLED + HELD_OUT
    images = list(write_phantoms(folder, count, _SEEDS_APART * (seed + 1), None, labels=True))
    ids = [path.name.removesuffix("_0000.nii.gz") for path in images]
    for case_id in ids[LABELLED : LABELLED + UNLABELLED]:
        (folder / "labels" / f"{case_id}.nii.gz").unlink()
    return folder, ids[LABELLED + UNLABELLED :]


def _fit(run: Path, fit: list[str], until: list[str]) -> None:
    """Starts a training or goes on with it, on one thread and without workers, so that all CPU time is counted."""
    start = ["resume", str(run)] if (run / CHECKPOINT_FILE).exists() else ["fit", "--out", str(run), *fit]
    _train(*start, "--workers", "0", "--threads", "1", *until)


def _train(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "tools.train", *arguments], check=True)


def _score(run: Path, data: Path, held_out: list[str]) -> dict[str, Any]:
    """Network 1 of a training on the held-out phantoms."""
    plan, state = read_train_plan(run / PLAN_FILE), load_checkpoint(run)
    network = UNet(plan.app.network, plan.app.classes)
    network.load_state_dict(state["trainer"]["networks"][0])
    cases = [case for case in find_training_cases(data) if case.case_id in held_out]
    progress = state["progress"]
    scores = Validation(cases, plan.app).score(network)
    return {"iterations": progress["step"], "cpu_minutes": progress["cpu_s"] / 60, **scores}


if __name__ == "__main__":
    sys.exit(main())
