"""GPU memory through a stand-in for NVIDIA's library, built here, whose every answer is known."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

# One device of 16 GiB. Each question for its memory takes the next number (MiB in use) of the file that
# NVML_ANSWERS names, and the last one again and again; -1 is a device that does not answer.
STUB = r"""
extern char *getenv(const char *);
extern void *fopen(const char *, const char *);
extern int fscanf(void *, const char *, ...);
extern char *strncpy(char *, const char *, unsigned long);
struct memory { unsigned long long total, free, used; };

int nvmlInit_v2(void) { return 0; }
int nvmlInitWithFlags(unsigned flags) { return 0; }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { return code == 2 ? "Invalid Argument" : "GPU is lost"; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    *device = (void *)1;
    return index == 0 ? 0 : 2;
}

int nvmlDeviceGetName(void *device, char *name, unsigned length) {
    strncpy(name, "Stand-in", length);
    return 0;
}

int nvmlDeviceGetMemoryInfo(void *device, struct memory *found) {
    static void *answers = 0;
    static int mib = 0;
    if (!answers) answers = fopen(getenv("NVML_ANSWERS"), "r");
    fscanf(answers, "%d", &mib);
    if (mib < 0) return 15;
    found->total = 16384ULL << 20;
    found->free = found->total - ((unsigned long long)mib << 20);
    found->used = 1;  /* what nobody here reads: newer drivers leave their own share out of it */
    return 0;
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the stand-in."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    folder = tmp_path_factory.mktemp("nvml")
    (folder / "stub.c").write_text(STUB)
    build = ["gcc", "-shared", "-fPIC", "-nostdlib", "-w", "-o", "libnvidia-ml.so.1", "stub.c"]
    subprocess.run(build, cwd=folder, check=True)
    return folder


def run_profiler(library: Path, answers: str, *words: str) -> subprocess.CompletedProcess[str]:
    (library / "answers").write_text(answers)
    environment = os.environ | {"LD_LIBRARY_PATH": str(library), "NVML_ANSWERS": str(library / "answers")}
    command = [sys.executable, "-m", "tools.profile", *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def profile_samples(library: Path, out: Path, answers: str, lines: int) -> dict[str, Any]:
    """The profile of a command that ends as soon as so many lines of samples are there."""
    wait = f"while [ $(wc -l < {out}/samples.jsonl) -lt {lines} ]; do sleep 0.01; done"
    words = ["--out", str(out), "--baseline", "0", "--interval", "0.01", "--", "sh", "-c", wait]
    done = run_profiler(library, answers, *words)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((out / "profile.json").read_text())
    return found


def test_areas_of_a_gpu_are_exact(library: Path, tmp_path: Path) -> None:
    """3000 MiB all the time but for two samples of 9000: 952 and 6952 above the tolerance of 2048."""
    # The first answer is for the device's size, the second for the sample before the start.
    found = profile_samples(library, tmp_path / "out", "0 500 3000 9000 3000 9000 3000", 110)
    gpu, count = found["gpu"], found["sampler"]["samples"]
    assert count >= 101
    assert found["recording"]["gpu"] == {"index": 0, "name": "Stand-in", "total_mib": 16384}
    assert gpu["peak_mib"] == 9000
    assert gpu["area_sum"] == pytest.approx((3000 * (count - 2) + 18000) * 0.01)
    assert gpu["area_sum_above_2048"] == pytest.approx((952 * (count - 2) + 2 * 6952) * 0.01)
    # Two of more than a hundred are less than 2 %: FLARE22 does not see them, FLARE23 does.
    assert gpu["stable_peak_mib"] == 3000
    official = found["official"]
    assert (official["flare22"]["GPU_Mem"], official["flare23"]["MaxGPU_Mem"]) == (3000, 9000)
    assert official["flare22"]["AUC_GPU_Time"] == round((3000 * (count - 2) + 18000) * 0.01)


def test_a_device_that_is_lost_has_gaps_and_no_zeros(library: Path, tmp_path: Path) -> None:
    found = profile_samples(library, tmp_path / "out", "0 500 3000 -1 -1 3000", 15)
    lines = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    values = [line["gpu_mib"] for line in lines if line["record"] == "sample"]
    assert values[:5] == [500, 3000, None, None, 3000]
    assert set(values[5:]) == {3000}
    assert found["gpu"]["area_sum"] == pytest.approx(3000 * (found["sampler"]["samples"] - 2) * 0.01)


@pytest.mark.long
def test_a_device_that_never_answers_has_no_curve(library: Path, tmp_path: Path) -> None:
    found = profile_samples(library, tmp_path / "out", "0 -1", 6)
    assert found["gpu"] is None
    assert found["official"]["flare22"]["AUC_GPU_Time"] is None


def test_a_device_that_is_not_there(library: Path, tmp_path: Path) -> None:
    done = run_profiler(library, "0", "--out", str(tmp_path / "out"), "--gpu-index", "1", "--", "true")
    assert done.returncode == 4
    assert "error: GPU 1: NVML says: Invalid Argument" in done.stderr
    assert not (tmp_path / "out" / "samples.jsonl").exists()
