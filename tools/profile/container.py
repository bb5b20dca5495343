"""Docker: the organisers' command for one case, and how a container is stopped."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from app.errors import DeviceError
from tools.profile.measuring import REPORT_FILE
from tools.profile.official import Protocol

_ANSWER_S = 120.0


@dataclass(frozen=True)
class Container:
    """How every case's container is started.

    Attributes:
        image: with its tag.
        team: name of the container and of the files.
        protocol: the challenge's.
        limits: options for ``docker container run`` in place of or besides the protocol's.
        stages: gives predict.sh ``--report``, for an image of this app.
        flags: more words for ``docker container run``; they win over the limits.
    """

    image: str
    team: str
    protocol: Protocol
    limits: dict[str, str]
    stages: bool = False
    flags: tuple[str, ...] = ()

    def command(self, inputs: Path, outputs: Path, id_file: Path, report: Path, gpu_index: int | None) -> list[str]:
        """The organisers' command, with ``--cidfile`` so that the container's counters can be found."""
        command = ["docker", "container", "run"]
        command += [f"--gpus=device={gpu_index}"] if gpu_index is not None else []
        command += [part for option in self.all_limits().items() for part in option]
        command += self.flags
        command += ["--name", self.team, "--rm", "--cidfile", str(id_file)]
        command += ["-v", f"{inputs}/:/workspace/inputs/", "-v", f"{outputs}/:/workspace/outputs/"]
        command += ["-v", f"{report}/:/report/"] if self.stages else []
        predict = f"sh predict.sh --report /report/{REPORT_FILE}" if self.stages else "sh predict.sh"
        return [*command, self.image, "/bin/bash", "-c", predict]

    def all_limits(self) -> dict[str, str]:
        """The protocol's, where no others were given."""
        protocol = {"--shm-size": self.protocol.shm_size, "-m": self.protocol.memory}
        return {name: value for name, value in protocol.items() if value is not None} | self.limits

    def image_id(self) -> str:
        """The image's digest; a missing image would be looked for in a registry, within the measured time.

        Raises:
            DeviceError: no Docker, no engine or no such image.
        """
        return inspect_image(self.image, "{{.Id}}")


def inspect_image(image: str, template: str) -> str:
    """What ``docker image inspect`` tells by a Go template such as ``{{.Id}}`` or ``{{json .}}``.

    Raises:
        DeviceError: no Docker, no engine or no such image.
    """
    found = ask_docker("image", "inspect", "--format", template, image)
    if found.returncode:
        lines = found.stderr.strip().splitlines() or ["docker image inspect failed"]
        raise DeviceError(f"{image}: {lines[-1]}; expected an image that `docker image ls` lists")
    return found.stdout.strip()


def team_of(image: str) -> str:
    """``team`` of ``registry:5000/some/team:latest``."""
    return image.rpartition("/")[2].partition("@")[0].partition(":")[0]


class ContainerStop:
    """Ends a container. Docker's client does not end one whose first process ignores signals, as a shell does.

    It goes by the id that Docker wrote: another container may have the name, and without an id there is none of ours.
    """

    def __init__(self, id_file: Path) -> None:
        """``id_file`` is what ``docker run --cidfile`` writes."""
        self._id_file, self._asked = id_file, False
        self._kill: subprocess.Popen[bytes] | None = None

    def __call__(self, _signal: int) -> None:
        """Starts ``docker container kill`` and does not wait: the sampler goes on."""
        self._asked = True
        if container := self._id():
            command = ["docker", "container", "kill", container]
            self._kill = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def finish(self, ended: bool) -> None:
        """Makes sure that nothing is left of a container that was stopped, or whose run was not seen to end.

        Raises:
            DeviceError: the engine does not answer.
        """
        if ended and not self._asked:
            return
        if container := self._id():
            ask_docker("container", "rm", "--force", container)
        if self._kill:
            self._kill.wait()

    def _id(self) -> str:
        """Empty before Docker has made the container."""
        return self._id_file.read_text().strip() if self._id_file.exists() else ""


def ask_docker(*arguments: str) -> subprocess.CompletedProcess[str]:
    """How a short ``docker`` command ended, and what it said.

    Raises:
        DeviceError: no Docker, or no answer within two minutes.
    """
    command = ["docker", *arguments]
    try:
        return subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=_ANSWER_S, check=False
        )
    except FileNotFoundError as error:
        raise DeviceError("docker: not installed; expected Docker's command line and an engine") from error
    except subprocess.TimeoutExpired as error:
        raise DeviceError(f"docker {arguments[0]} {arguments[1]}: no answer for {_ANSWER_S:.0f} s") from error
