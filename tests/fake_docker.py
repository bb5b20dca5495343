"""A stand-in for Docker that runs on the host: a container is a folder with links to what -v names, and a process."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

# Understands what the tools say. An image is image.json and predict.sh beside it, whatever its name but missing:latest.
# predict.sh gets the options as DOCKER_OPTIONS, since nothing here restricts it.
FAKE_DOCKER = """\
import json, os, pathlib, signal, subprocess, sys, time
home = pathlib.Path(__file__).parent
words = sys.argv[1:]
with (home / "calls").open("a") as stream:
    stream.write(json.dumps(words) + "\\n")
if words[:2] == ["image", "inspect"]:
    if words[-1] == "missing:latest":
        sys.exit("Error: No such image: missing:latest")
    facts = json.loads((home / "image.json").read_text())
    print(json.dumps(facts) if words[3] == "{{json .}}" else facts["Id"])
elif words[:2] == ["image", "save"]:
    if (home / "unsaved").exists():
        sys.exit("Error response from daemon: no space left on device")
    sys.stdout.write("saved " + words[2])
elif words[:2] == ["container", "run"] and "--entrypoint" in words:
    workspace = home / "probe"
    workspace.mkdir(exist_ok=True)
    if (home / "predict.sh").exists():
        (workspace / "predict.sh").write_bytes((home / "predict.sh").read_bytes())
    sys.exit(subprocess.run(["sh", *words[-2:]], cwd=workspace, check=False).returncode)
elif words[:2] == ["container", "kill"]:
    os.kill(int((home / words[2]).read_text()), signal.SIGKILL)
elif words[:2] == ["container", "run"]:
    if (home / "broken").exists():
        print("docker: Error response from daemon: Conflict.", file=sys.stderr)
        sys.exit(125)
    options = words[2:words.index("/bin/bash")]
    value = lambda name: options[options.index(name) + 1]
    pathlib.Path(value("--cidfile")).write_text("f00d" * 16)
    workspace = home / str(os.getpid())
    workspace.mkdir()
    for word in options:
        source, _, target = word.partition(":")
        if target.startswith("/workspace/"):
            (workspace / target.split("/")[2]).symlink_to(source.rstrip("/"))
        elif target == "/report/":
            (workspace / "report").symlink_to(source.rstrip("/"))
    (workspace / "predict.sh").write_bytes((home / "predict.sh").read_bytes())
    command = words[-1].replace("/report/", "report/")
    environment = {**os.environ, "DOCKER_OPTIONS": " ".join(options)}
    process = subprocess.Popen(
        ["sh", "-c", "exec " + command], cwd=workspace, env=environment, start_new_session=True
    )
    (home / value("--name")).write_text(str(process.pid))
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    code = process.wait()
    sys.exit(code if code >= 0 else 128 - code)
"""
GOOD_IMAGE: dict[str, Any] = {
    "Id": "sha256:1234",
    "Size": 1000,
    "Os": "linux",
    "Architecture": "amd64",
    "Config": {"WorkingDir": "/workspace", "Env": ["PATH=/bin"]},
}


def install_fake_docker(folder: Path, predict_sh: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the stand-in, which is what ``docker`` now means."""
    folder.mkdir()
    (folder / "docker").write_text(f"#!{sys.executable} -SE\n{FAKE_DOCKER}")
    (folder / "docker").chmod(0o755)
    (folder / "predict.sh").write_text(predict_sh)
    (folder / "image.json").write_text(json.dumps(GOOD_IMAGE))
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def calls(docker: Path) -> list[list[str]]:
    """The words of each call so far."""
    return [json.loads(line) for line in (docker / "calls").read_text().splitlines()]
