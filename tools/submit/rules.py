"""The rules that an image is checked against: one table, with what to do about each."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["passed", "failed", "not checked"]


@dataclass(frozen=True)
class Rule:
    """One thing that is checked.

    Attributes:
        title: for people.
        expected: what a good image has.
        advice: what to do about one that has not.
        from_flare: the challenge fails an image over it; else it is stricter, so that the image runs elsewhere too.
    """

    title: str
    expected: str
    advice: str
    from_flare: bool = True


@dataclass(frozen=True)
class Check:
    """What became of one rule.

    Attributes:
        rule: key of ``RULES``.
        found: in words; of a rule that was not checked, why not.
    """

    rule: str
    status: Status
    found: str


RULES = {
    "tag": Rule(
        "image tag",
        "TEAM:latest, TEAM of lower-case letters and digits only",
        "docker tag IMAGE TEAM:latest, and check that one",
    ),
    "platform": Rule(
        "platform", "linux/amd64", "build with `--platform linux/amd64`; the organisers' machines are x86-64"
    ),
    "entrypoint": Rule(
        "ENTRYPOINT",
        "none",
        "end the Dockerfile with `ENTRYPOINT []`: an entry point gets FLARE's command as arguments",
    ),
    "workdir": Rule("WORKDIR", "the folder of predict.sh, such as /workspace", "add `WORKDIR /workspace`"),
    "cuda_visible_devices": Rule(
        "CUDA_VISIBLE_DEVICES",
        "set neither by the image nor by predict.sh",
        "remove it: the organisers choose the GPU, and the container sees it as number 0",
    ),
    "bash": Rule("/bin/bash", "/bin/bash runs", "install bash: FLARE's command is `/bin/bash -c ...`"),
    "predict": Rule("predict.sh", "a file predict.sh in WORKDIR", "`COPY predict.sh .` after WORKDIR"),
    "syntax": Rule(
        "predict.sh: syntax",
        "`sh -n predict.sh` accepts it; lines end with LF",
        "write it for POSIX sh (dash), not for bash; `sed -i 's/\\r$//' predict.sh` repairs Windows' line ends",
    ),
    "bashisms": Rule(
        "predict.sh: bash only",
        "nothing that dash does not know, or takes for something else",
        "write it for POSIX sh, or let predict.sh be `exec bash run.sh`",
    ),
    "run": Rule(
        "FLARE's command", "exit code 0 and a label map for every scan", "read log.txt in the case's folder below runs/"
    ),
    "inputs": Rule("inputs", "nothing is left there", "write intermediate files to /tmp"),
    "outputs": Rule("outputs", "nothing but label maps", "write intermediate files to /tmp and logs to stderr"),
    "grid": Rule(
        "label maps: grid",
        "shape and geometry of the scan",
        "resample back and copy the scan's header; the scorer compares the arrays as they are",
    ),
    "labels": Rule(
        "label maps: labels",
        "whole numbers from 0 to 13; to 14 in flare23",
        "map the network's classes to FLARE's organs",
    ),
    "type": Rule("label maps: type", "uint8, not scaled", "convert before writing, e.g. `labels.astype(numpy.uint8)`"),
    "together": Rule(
        "hardened run",
        "the five rules below at once do no harm",
        "see those that fail; if none does alone, see log.txt below runs/hardened",
        from_flare=False,
    ),
    "network": Rule(
        "no network",
        "runs with `--network none`",
        "put weights and everything else into the image; switch off downloads and telemetry",
        from_flare=False,
    ),
    "shm": Rule(
        "64 MB of /dev/shm",
        "runs with `--shm-size 64m`, Docker's own",
        "no worker processes that pass arrays (PyTorch: num_workers=0), or threads",
    ),
    "user": Rule(
        "any user",
        "runs with `--user 1000:1000`",
        "`RUN chmod -R go=rX /workspace`; write to /tmp only, and set HOME=/tmp for libraries that want one",
        from_flare=False,
    ),
    "read_only": Rule(
        "read-only root",
        "runs with `--read-only --tmpfs /tmp`",
        "write to /tmp and outputs only; set caches (MPLCONFIGDIR, TORCH_HOME, ...) to folders below /tmp",
        from_flare=False,
    ),
    "capabilities": Rule(
        "no capabilities",
        "runs with `--cap-drop ALL --security-opt no-new-privileges`",
        "no sudo, chown or mount in predict.sh; give files their owner when building",
        from_flare=False,
    ),
}


def judged(rule: str, good: bool, found: str) -> Check:
    """A check that was made."""
    return Check(rule, "passed" if good else "failed", found)
