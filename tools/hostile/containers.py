"""The app in a container, with this checkout's code and without a network."""

from collections.abc import Iterable
from uuid import uuid4

from tools.hostile.machine import ROOT
from tools.hostile.processes import Done, finish, start_command
from tools.profile.container import ask_docker


def run_container(image: str, mounts: Iterable[str], options: Iterable[object], *flags: str) -> Done:
    """Runs ``predict.sh`` to its end; a container that hangs is killed as a process would be.

    Args:
        image: a container image of the app, which is on this machine.
        mounts: ``SOURCE:TARGET`` or ``SOURCE:TARGET:ro``, as ``-v`` takes them.
        options: of ``predict.sh``.
        flags: more of ``docker run``.

    Raises:
        DeviceError: no Docker, or an engine that does not answer.
    """
    name = f"hostile-{uuid4().hex}"
    command = ["docker", "run", "--rm", "--name", name, "--network", "none", *flags]
    for mount in (*mounts, f"{ROOT / 'app'}:/workspace/app:ro"):
        command += ["-v", mount]
    command += [image, "sh", "predict.sh", *map(str, options)]
    try:
        with start_command(command) as client:
            return finish(client)
    finally:
        ask_docker("container", "rm", "--force", name)  # the client's end is not the container's
