"""What can be told of an image without a scan: its configuration, and a look at predict.sh from within."""

import json
import re
from dataclasses import dataclass
from typing import Any

from app.errors import DeviceError
from tools.profile.container import ask_docker, inspect_image
from tools.submit.rules import Check, judged
from tools.submit.shell_lint import find_bashisms, sets_variable

_DOCKER_FAILED = 125
_VARIABLE = "CUDA_VISIBLE_DEVICES"
# Plain sh, and nothing that a small image may lack but cat, head and readlink.
_PROBE = r"""
/bin/bash -c true && echo bash=yes
echo "sh=$(readlink -f "$(command -v sh)")"
if [ -f predict.sh ] && content=$(cat predict.sh); then
    echo predict=yes
    message=$(sh -n predict.sh 2>&1) || echo "syntax=$(echo "$message" | head -n 1)."
    case $content in *"$(printf '\r')"*) echo crlf=yes ;; esac
    echo ---
    cat predict.sh
fi
"""


@dataclass(frozen=True)
class Image:
    """What ``docker image inspect`` tells.

    Attributes:
        name: with its tag.
        identity: digest.
        size_bytes: unpacked, which is about the size of ``docker image save``.
        platform: ``linux/amd64``.
        environment: ``NAME=value``.
    """

    name: str
    identity: str
    size_bytes: int
    platform: str
    entrypoint: list[str]
    workdir: str
    environment: list[str]


@dataclass(frozen=True)
class Probe:
    """What a look from within tells.

    Attributes:
        trouble: why nothing could be looked at; None if all could.
        bash: whether /bin/bash runs.
        shell: the file that ``sh`` is.
        script: predict.sh; None if there is none.
        syntax_error: what ``sh -n`` says.
        windows_lines: a line ends with CR LF.
    """

    trouble: str | None = None
    bash: bool = False
    shell: str = ""
    script: str | None = None
    syntax_error: str | None = None
    windows_lines: bool = False


def read_image(name: str) -> Image:
    """The configuration of an image.

    Raises:
        DeviceError: no Docker or no such image.
    """
    facts: dict[str, Any] = json.loads(inspect_image(name, "{{json .}}"))
    config = facts["Config"]  # engines differ in whether they leave out or name what is not set
    return Image(
        name=name,
        identity=facts["Id"],
        size_bytes=facts["Size"],
        platform=f"{facts['Os']}/{facts['Architecture']}",
        entrypoint=config.get("Entrypoint") or [],
        workdir=config.get("WorkingDir") or "",
        environment=config.get("Env") or [],
    )


def probe_image(name: str) -> Probe:
    """Starts a container that looks for bash and at predict.sh, and runs nothing of the image's own.

    Raises:
        DeviceError: Docker could not start a container at all.
    """
    words = ("container", "run", "--rm", "--network", "none", "--entrypoint", "sh", name, "-c", _PROBE)
    run = ask_docker(*words)
    said = (run.stderr.strip().splitlines() or [f"exit code {run.returncode}"])[-1]
    if run.returncode == _DOCKER_FAILED:
        raise DeviceError(f"{name}: Docker could not start a container: {said}")
    if "sh=" not in run.stdout:
        return Probe(trouble=f"no sh to look with: {said}")
    head, _, script = run.stdout.partition("---\n")
    answers = dict(line.partition("=")[::2] for line in head.splitlines())
    return Probe(
        bash="bash" in answers,
        shell=answers["sh"],
        script=script if "predict" in answers else None,
        syntax_error=answers.get("syntax"),
        windows_lines="crlf" in answers,
    )


def check_configuration(image: Image, probe: Probe) -> list[Check]:
    """What ``docker image inspect`` decides; the probe's part is a CUDA_VISIBLE_DEVICES in predict.sh."""
    setting = [f"image: {found}" for found in image.environment if found.partition("=")[0] == _VARIABLE]
    if probe.script is not None and sets_variable(probe.script, _VARIABLE):
        setting.append("predict.sh sets it")
    return [
        judged("tag", re.fullmatch(r"[a-z0-9]+:latest", image.name) is not None, image.name),
        judged("platform", image.platform == "linux/amd64", image.platform),
        judged("entrypoint", not image.entrypoint, " ".join(image.entrypoint) or "none"),
        judged("workdir", image.workdir not in ("", "/"), image.workdir or "not set"),
        judged("cuda_visible_devices", not setting, "; ".join(setting) or "not set"),
    ]


def check_probe(image: Image, probe: Probe) -> list[Check]:
    """bash, predict.sh and its syntax; with the first failure the image cannot run."""
    if probe.trouble:
        rest = (Check(rule, "not checked", probe.trouble) for rule in ("predict", "syntax"))
        return [judged("bash", False, probe.trouble), *rest]
    checks = [judged("bash", probe.bash, "runs" if probe.bash else "not there")]
    if probe.script is None:
        where = image.workdir or "/"
        missing = judged("predict", False, f"none in {where}, or not readable")
        return [*checks, missing, Check("syntax", "not checked", "no predict.sh")]
    faults = [f"{probe.shell} says: {probe.syntax_error}"] if probe.syntax_error else []
    faults += ["lines end with CR LF"] if probe.windows_lines else []
    checks.append(judged("predict", True, f"{image.workdir.rstrip('/')}/predict.sh"))
    return [*checks, judged("syntax", not faults, "; ".join(faults) or f"sh is {probe.shell}, which accepts it")]


def check_bashisms(probe: Probe, complaints: list[str]) -> Check:
    """What is for bash in predict.sh.

    Args:
        probe: of the image.
        complaints: what dash said while the script ran.
    """
    if probe.script is None:
        return Check("bashisms", "not checked", "no predict.sh")
    if probe.shell.endswith("/bash"):
        return judged("bashisms", True, f"sh is {probe.shell} in this image, which knows them")
    found = [*find_bashisms(probe.script), *dict.fromkeys(complaints)]
    return judged("bashisms", not found, "; ".join(found) or f"none; sh is {probe.shell}")
