"""tools.submit with a stand-in for Docker, and images that break rules with the real one."""

import gzip
import hashlib
import json
import os
import shutil
import struct
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from app.errors import FolderError
from tests.conftest import tissue, write_scan
from tests.fake_docker import calls, install_fake_docker
from tests.real_docker import build_image, skip_without_engine
from tools.profile.official import PROTOCOLS
from tools.submit.__main__ import main
from tools.submit.image_checks import Image, Probe, check_bashisms, check_configuration
from tools.submit.label_map_checks import check_label_maps
from tools.submit.rules import RULES
from tools.submit.shell_lint import find_bashisms, find_complaints, sets_variable, without_text
from tools.submit.trials import choose_scans

# The scans of these tests are label maps already.
PREDICT_SH = """\
set -eu
for scan in inputs/*_0000.nii.gz; do
    stat -c %a "$scan"
    cp "$scan" "outputs/$(basename "$scan" _0000.nii.gz).nii.gz"
done
"""


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the stand-in; pictures, which take a second each, are left out."""
    for name in ("draw_official", "draw_profile"):
        monkeypatch.setattr(f"tools.profile.plots.{name}", lambda *_: None)
    return install_fake_docker(tmp_path / "docker", PREDICT_SH, monkeypatch)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """a is the smallest, b the largest."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for name, slices in (("a", 4), ("b", 12), ("c", 8)):
        labels = np.random.default_rng(slices).integers(0, 14, (slices, 11, 12)).astype(np.uint8)
        write_scan(folder / f"{name}_0000.nii.gz", labels)
    return folder


def submit(tmp_path: Path, *options: str, image: str = "team:latest") -> int:
    words = ["--image", image, "--inputs", str(tmp_path / "scans"), "--out", str(tmp_path / "out"), "--baseline", "0"]
    return main([*words, *options])


def record(tmp_path: Path) -> Any:
    return json.loads((tmp_path / "out" / "submission.json").read_text())


def outcomes(tmp_path: Path, status: str) -> dict[str, str]:
    """What was found, of the rules with that outcome."""
    return {check["rule"]: check["found"] for check in record(tmp_path)["checks"] if check["status"] == status}


def test_good_image_is_measured_and_packed(
    docker: Path, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """FLARE's command on the first scan and the largest, then the first hardened; an archive that a shell can check."""
    (scans / "a_0000.nii.gz").chmod(0o600)  # any user of a container must be able to read its copy
    assert submit(tmp_path) == 0
    out = tmp_path / "out"
    assert list(outcomes(tmp_path, "passed")) == list(RULES)
    runs = [words for words in calls(docker) if words[:2] == ["container", "run"] and "--cidfile" in words]
    assert ["--read-only" in words for words in runs] == [False, False, True]
    assert not any("--network" in words for words in runs[:2])
    restrictions = "--network none --shm-size 64m --user 1000:1000 --read-only --tmpfs /tmp --cap-drop ALL"
    assert restrictions in " ".join(runs[2])
    measured = record(tmp_path)["measured"]
    assert [case["stem"] for case in measured["cases"]] == ["a_0000", "b_0000"]
    table = (out / "runs" / "flare" / "team" / "team_Efficiency.csv").read_text().splitlines()
    assert f"a_0000.nii.gz,{measured['cases'][0]['row']['Time']}," in table[1]
    details = out / "runs" / "flare" / "team" / "details"
    assert (details / "a_0000" / "log.txt").read_text() == "777\n"
    assert gzip.decompress((out / "team.tar.gz").read_bytes()) == b"saved team:latest"
    assert subprocess.run(["sha256sum", "-c", "team.tar.gz.sha256"], cwd=out, check=False).returncode == 0
    digest = hashlib.sha256((out / "team.tar.gz").read_bytes()).hexdigest()
    assert record(tmp_path)["archive"]["sha256"] == digest
    page = (out / "submission.md").read_text()
    assert page.startswith("# team:latest: ready to be sent in\n\nteam:latest: 21 passed.")
    assert digest in page
    command = (
        'docker container run --gpus="device=1" --shm-size 28gb -m 28G --name team --rm -v $PWD/inputs/:/workspace/'
    )
    assert f"    {command}inputs/ " in page
    assert f"{len(RULES)} passed" in capsys.readouterr().out


def test_failed_checks_mean_no_archive_unless_forced(
    docker: Path, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rests in both folders, a word of bash that dash stumbles over, a network that is needed: each has its name."""
    for name in "bc":
        (scans / f"{name}_0000.nii.gz").unlink()
    (docker / "predict.sh").write_text(
        f"[[ -d inputs ]] && true\ntouch inputs/cache outputs/log.txt\n{PREDICT_SH}"
        "case $DOCKER_OPTIONS in *--network*) exit 3 ;; esac\n"
    )
    assert submit(tmp_path, "--force") == 1
    failed = outcomes(tmp_path, "failed")
    assert list(failed) == ["bashisms", "inputs", "outputs", "together", "network"]
    assert "predict.sh: 1: [[: not found" in failed["bashisms"]
    assert "inputs/cache" in failed["inputs"]
    assert failed["outputs"] == "log.txt"
    assert "exit code 3" in failed["network"]
    assert (tmp_path / "out" / "team.tar.gz").exists()
    assert "to do: put weights and everything else into the image" in capsys.readouterr().out
    page = (tmp_path / "out" / "submission.md").read_text()
    assert "* **no network** (stricter than FLARE): found a_0000: failed; exit code 3" in page
    assert "Written by `--force`: a check failed." in page


def test_image_that_cannot_run_is_not_run(docker: Path, scans: Path, tmp_path: Path) -> None:
    (docker / "predict.sh").write_bytes(b"words=(a b)\r\n")
    assert submit(tmp_path) == 1
    failed = outcomes(tmp_path, "failed")
    assert list(failed) == ["syntax"]
    assert "predict.sh: 1: Syntax error" in failed["syntax"]
    assert "CR LF" in failed["syntax"]
    assert set(outcomes(tmp_path, "not checked")) == {
        *("run", "inputs", "outputs", "grid", "labels", "type"),
        *("together", "network", "shm", "user", "read_only", "capabilities"),
    }
    assert not any("--cidfile" in words for words in calls(docker))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["submission.json", "submission.md"]
    assert "Nothing: the image cannot run" in (tmp_path / "out" / "submission.md").read_text()


def test_image_without_predict_sh(docker: Path, scans: Path, tmp_path: Path) -> None:
    (docker / "predict.sh").unlink()
    assert submit(tmp_path) == 1
    assert outcomes(tmp_path, "failed") == {"predict": "none in /workspace, or not readable"}


def test_failing_command_is_not_hardened(docker: Path, scans: Path, tmp_path: Path) -> None:
    (docker / "predict.sh").write_text("echo no weights >&2\nexit 5\n")
    assert submit(tmp_path) == 1
    failed, skipped = outcomes(tmp_path, "failed"), outcomes(tmp_path, "not checked")
    assert list(failed) == ["run"]
    assert failed["run"].startswith("a_0000: failed; exit code 5")
    assert (skipped["grid"], skipped["user"]) == ("no label map was made", "FLARE's command already fails")
    assert record(tmp_path)["measured"]["means"]["Time"] == 3600.0


@pytest.mark.parametrize("place", ["outputs/b.nii.gz", "outputs/a.nii.gz"])
def test_label_map_that_is_a_link_fails_the_run(place: str, docker: Path, scans: Path, tmp_path: Path) -> None:
    """Of the case itself, which then has none; of the case before, whose was there when it ended."""
    swap = f'[ ! -e inputs/b_0000.nii.gz ] || {{ rm -f {place}; ln -s "$PWD/inputs/b_0000.nii.gz" {place}; }}\n'
    (docker / "predict.sh").write_text(PREDICT_SH + swap)
    assert submit(tmp_path) == 1
    assert f"{place}: " in outcomes(tmp_path, "failed")["run"]
    assert "a link or folder, no file" in outcomes(tmp_path, "failed")["run"]


def test_all_scans_and_a_name_without_tag(docker: Path, scans: Path, tmp_path: Path) -> None:
    assert submit(tmp_path, "--all", image="team") == 0
    assert [case["stem"] for case in record(tmp_path)["measured"]["cases"]] == ["a_0000", "b_0000", "c_0000"]
    assert calls(docker)[-2] == ["image", "save", "team:latest"]


def test_failed_save_leaves_the_findings_and_no_archive(docker: Path, scans: Path, tmp_path: Path) -> None:
    (docker / "unsaved").touch()
    assert submit(tmp_path) == 4
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["runs", "submission.json", "submission.md"]
    assert record(tmp_path)["archive"] is None


def test_image_that_is_built_anew_meanwhile_is_not_packed(
    docker: Path, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = docker / "image.json"
    (docker / "predict.sh").write_text(f"{PREDICT_SH}sed -i s/sha256:1234/sha256:5678/ {image}\n")
    assert submit(tmp_path) == 4
    assert "was built anew" in capsys.readouterr().err
    assert not (tmp_path / "out" / "team.tar.gz").exists()


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (FolderError("disk full"), 3)])
def test_archive_without_its_digest_does_not_stay(
    error: BaseException, code: int, docker: Path, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped just after the archive got its name: the page says that there is none."""

    def stop_at_the_digest(path: Path, text: str) -> None:
        assert path.name == "team.tar.gz.sha256"
        assert gzip.decompress((tmp_path / "out" / "team.tar.gz").read_bytes()) == b"saved team:latest"
        raise error

    monkeypatch.setattr("tools.submit.archive.write_text", stop_at_the_digest)
    assert submit(tmp_path) == code
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["runs", "submission.json", "submission.md"]
    assert "`team.tar.gz` is not written" in (tmp_path / "out" / "submission.md").read_text()


def test_exit_codes_of_folders_images_and_usage(docker: Path, scans: Path, tmp_path: Path) -> None:
    assert submit(tmp_path, image="missing") == 4
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "team.tar.gz").touch()
    assert submit(tmp_path) == 3
    assert main(["--image", "team:latest", "--inputs", str(tmp_path / "none"), "--out", str(tmp_path / "o")]) == 3
    with pytest.raises(SystemExit) as ended:
        main(["--image", "team:latest"])
    assert ended.value.code == 2


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"name": "my-team:latest"}, "tag"),
        ({"name": "team:v1"}, "tag"),
        ({"name": "group/team:latest"}, "tag"),
        ({"platform": "linux/arm64"}, "platform"),
        ({"entrypoint": ["/opt/nvidia/nvidia_entrypoint.sh"]}, "entrypoint"),
        ({"workdir": ""}, "workdir"),
        ({"environment": ["CUDA_VISIBLE_DEVICES="]}, "cuda_visible_devices"),
    ],
)
def test_configuration_that_breaks_one_rule(change: dict[str, Any], rule: str) -> None:
    good = Image("team:latest", "sha256:1", 1, "linux/amd64", [], "/workspace", ["NVIDIA_VISIBLE_DEVICES=all"])
    probe = Probe(bash=True, shell="/usr/bin/dash", script=PREDICT_SH)
    assert {check.status for check in check_configuration(good, probe)} == {"passed"}
    checks = check_configuration(replace(good, **change), probe)
    assert [check.rule for check in checks if check.status == "failed"] == [rule]


def test_text_is_no_code() -> None:
    assert without_text("echo \"a && b\" # c\nx='\n#'\ny") == "echo '' \nx=''\n\ny"
    assert without_text('x="a\n$(ls "b"\n) c" \'\n\' # "') == "x=''\n$(ls ''\n) ''\n "
    assert without_text("cat <<EOF >x\n[[ 'it\nEOF\nls").splitlines() == ["cat  >x", "", "", "ls"]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("run &> log", "&>"),
        ("IFS=$'\\n'", "$'...'"),
        ("for i in {1..3}; do", "{a..b}"),
        ("mkdir -p {in,out}puts", "{a..b}"),
        ("echo -e 'a\\tb'", "echo -e"),
        ("run > log 2>&1 &", None),
        ('echo -n $((1+2)) ${x%,*} "${a:-{1..2}}"', None),
        ("python3 -c 'a = {1,2}; print(a) # &>'", None),
        ("f() { run a,b; }", None),
        ("# echo -e &> {1..3}", None),
        ('x="$(run &>/dev/null)"', "&>"),
        ('x="a `run &> log` b"', "&>"),
        ('x="$(run "a b" "$(more \'c\' &> log)")"', "&>"),
        ('x="$(echo ")")"; run &> log', "&>"),
        ('x="\\$(run &> log)"', None),
        ("echo -n -e x", "echo -e"),
        ("x=$(echo -e)", "echo -e"),
        ("/bin/echo -e x", None),
        ("python my-echo -e x; echo --edit -n", None),
        ("x+=1", "name+=value"),
        ("if true; then x+=1; fi", "name+=value"),
        ("python run.py x+=1 $((x+=1))", None),
        ("((i++))", "((...))"),
        ("x=$(( (a + b) * 2 )); ((cd a) && (cd b))", None),
        ("run --opt={a,b}", "{a..b}"),
        ("x={a,b}; y=${x:-{1,2}}", None),
        ('python run.py --opt {\\"a\\":1,\\"b\\":2}', None),
    ],
)
def test_words_that_dash_takes_for_something_else(line: str, found: str | None) -> None:
    lines = find_bashisms(f"#!/bin/sh\n{line}\n")
    assert [text.startswith(f"line 2: {found}") for text in lines] == ([True] if found else [])


# What Debian's dash 0.5.12 says of each.
COMPLAINTS = """\
predict.sh: 1: [[: not found
predict.sh: 2: source: not found
predict.sh: 3: Bad substitution
predict.sh: 4: [: a: unexpected operator
predict.sh: 5: set: Illegal option -o pipefail
"""


def test_complaints_of_dash() -> None:
    harmless = "predict.sh: 6: nvidia-smi: not found\nloading predict.sh: 7 windows\n"
    assert find_complaints(harmless + COMPLAINTS) == COMPLAINTS.splitlines()


@pytest.mark.skipif(shutil.which("dash") is None, reason="dash is not installed")
def test_complaints_are_what_dash_really_says(tmp_path: Path) -> None:
    for line in ("[[ -d / ]]", "source x", "a=b; echo ${a//b/c}", "[ a == b ]", "set -o pipefail"):
        (tmp_path / "predict.sh").write_text(line)
        run = subprocess.run(["dash", "predict.sh"], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert len(find_complaints(run.stderr)) == 1, run.stderr


def test_bash_as_sh_knows_bashisms() -> None:
    script = "[[ -d / ]] &> log\n"
    assert check_bashisms(Probe(shell="/usr/bin/bash", script=script), []).status == "passed"
    assert check_bashisms(Probe(shell="/usr/bin/dash", script=script), []).status == "failed"


@pytest.mark.parametrize(
    ("script", "sets"),
    [
        ("export CUDA_VISIBLE_DEVICES=0", True),
        ("unset CUDA_VISIBLE_DEVICES", True),
        ("CUDA_VISIBLE_DEVICES='' python3 x.py", True),
        ('echo "CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES"', False),
        ("# CUDA_VISIBLE_DEVICES=0", False),
        ("MY_CUDA_VISIBLE_DEVICES=0", False),
        ('export "CUDA_VISIBLE_DEVICES=0"', True),
        ('bash -c "CUDA_VISIBLE_DEVICES=0 python x"', True),
        ('export "CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0}"', True),
        ('echo "$(CUDA_VISIBLE_DEVICES=0 python x)"', True),
        ('log "CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES}"', False),
        ('echo "set CUDA_VISIBLE_DEVICES=0"; run # "CUDA_VISIBLE_DEVICES=0"', False),
        ("unset x; echo CUDA_VISIBLE_DEVICES", False),
    ],
)
def test_script_that_sets_a_variable(script: str, sets: bool) -> None:
    assert sets_variable(script, "CUDA_VISIBLE_DEVICES") is sets


def test_brackets_and_quotes_that_are_not_closed_cost_no_time() -> None:
    start = time.monotonic()
    for part in ("$(a ", "$(a) ", '"$(a)', "((a)", "`", "$((a"):
        find_bashisms(f'"{part * 2000}')
        sets_variable(f'echo "{part * 2000}', "x")
    assert time.monotonic() - start < 20


def test_label_maps_that_break_rules(tmp_path: Path) -> None:
    """Transposed, shifted by a slice, of another type, scaled, with a fourteenth organ, cut off."""
    scan = write_scan(tmp_path / "scan.nii.gz", tissue())
    affine = nib.load(scan).affine
    higher = affine.copy()
    higher[2, 3] += 3
    labels = (np.arange(12 * 11 * 10).reshape(12, 11, 10) % 14).astype(np.uint8)  # (x, y, z)

    def outcome(voxels: Any, grid: Any, slope: float | None = None, largest: int = 13) -> tuple[list[str], str]:
        image = nib.Nifti1Image(voxels, grid)
        image.header.set_slope_inter(slope)
        nib.save(image, tmp_path / "x.nii.gz")
        failed = [
            check for check in check_label_maps([(tmp_path / "x.nii.gz", scan)], largest) if check.status == "failed"
        ]
        return [check.rule for check in failed], " ".join(check.found for check in failed)

    assert outcome(labels, affine) == ([], "")
    assert outcome(labels.T, affine) == (["grid"], "x.nii.gz: shape 12x11x10 instead of 10x11x12 (z, y, x)")
    assert outcome(labels, higher)[0] == ["grid"]
    assert "the first voxel lies 3 mm away" in outcome(labels, higher)[1]
    assert outcome(labels.astype(np.int16), affine) == (["type"], "x.nii.gz: int16")
    with_tumour = np.where(labels == 13, 14, labels).astype(np.uint8)
    assert outcome(with_tumour, affine)[0] == ["labels"]
    assert outcome(with_tumour, affine, largest=PROTOCOLS["flare23"].largest_label) == ([], "")
    (tmp_path / "x.nii.gz").write_bytes(scan.read_bytes()[:40])
    checks = check_label_maps([(tmp_path / "x.nii.gz", scan)], 13)
    assert [check.status for check in checks] == ["failed"] * 3
    assert [check.status for check in check_label_maps([], 13)] == ["not checked"] * 3


# Offset, format and values of what is wrong in the header of a label map.
DAMAGES: dict[str, tuple[int, str, tuple[float, ...]]] = {
    "unknown type": (70, "<h", (77,)),
    "slope 1, intercept NaN": (112, "<2f", (1, float("nan"))),
    "start of voxels NaN": (108, "<f", (float("nan"),)),
    "start of voxels infinite": (108, "<f", (float("inf"),)),
    "quaternion above 1": (252, "<2h3f", (1, 0, 5, 0, 0)),
}


@pytest.mark.parametrize("damage", [*DAMAGES, "gzip stream"])
def test_damaged_label_map_is_said_to_be_damaged(damage: str, tmp_path: Path) -> None:
    """nibabel has an error of its own for each."""
    scan = write_scan(tmp_path / "scan.nii.gz", tissue((4, 5, 6)))
    content = bytearray(gzip.decompress(scan.read_bytes()))
    if damage in DAMAGES:
        offset, layout, values = DAMAGES[damage]
        struct.pack_into(layout, content, offset, *values)
    packed = bytearray(gzip.compress(content))
    if damage not in DAMAGES:
        packed[10] = 0xFF  # the first block's kind is none
    (tmp_path / "x.nii.gz").write_bytes(packed)
    found = {check.rule: check for check in check_label_maps([(tmp_path / "x.nii.gz", scan)], 13)}
    assert found["type"].status == "failed"
    assert found["type"].found.startswith("x.nii.gz: cannot be read (")


@pytest.mark.parametrize(
    ("sizes", "expected"), [([3, 1, 2], [0, 2]), ([1, 2, 3], [0, 2]), ([5], [0]), ([1, 1], [0, 1])]
)
def test_the_first_scan_and_the_largest(sizes: list[int], expected: list[int], tmp_path: Path) -> None:
    scans = [tmp_path / str(number) for number in range(len(sizes))]
    for scan, size in zip(scans, sizes, strict=True):
        scan.write_bytes(bytes(size))
    assert choose_scans(scans) == [scans[number] for number in expected]


UNRUNNABLE_LINES = """\
RUN rm -f /bin/bash /usr/bin/bash
ENV CUDA_VISIBLE_DEVICES=0
ENTRYPOINT ["true"]
"""
# Every restriction takes something away that this needs; the exit code tells which. The network need not lead anywhere.
DEMANDING_SH = """\
[ -d /sys/class/net/eth0 ] || exit 11
[ "$(df -m /dev/shm | awk 'END {print $2}')" -gt 64 ] || exit 12
[ "$(id -u)" = 0 ] || exit 13
touch /workspace/cache || exit 14
touch /tmp/file && chown 1 /tmp/file || exit 15
touch inputs/cache outputs/log.txt
echo -e done
"""


@pytest.mark.long
def test_real_images_that_break_rules(tmp_path: Path) -> None:
    """The scan is a bad label map: int16, and with a label 14."""
    skip_without_engine()
    (tmp_path / "scans").mkdir()
    write_scan(tmp_path / "scans" / "a_0000.nii.gz", np.full((4, 5, 6), 14, np.int16))
    image = f"submittest{os.getpid()}"
    try:
        build_image(tmp_path / "unrunnable", f"{image}:v1", PREDICT_SH, UNRUNNABLE_LINES)
        assert submit(tmp_path, image=f"{image}:v1") == 1
        static = outcomes(tmp_path, "failed")
        shutil.rmtree(tmp_path / "out")
        build_image(tmp_path / "empty", f"{image}empty:latest", PREDICT_SH, base="scratch")
        assert submit(tmp_path, image=f"{image}empty") == 1
        empty = outcomes(tmp_path, "failed")
        shutil.rmtree(tmp_path / "out")
        build_image(tmp_path / "demanding", f"{image}:latest", DEMANDING_SH + PREDICT_SH)
        assert submit(tmp_path, image=image) == 1
        dynamic = outcomes(tmp_path, "failed")
    finally:
        for tag in (":v1", "empty:latest", ":latest"):
            subprocess.run(["docker", "image", "rm", "--force", f"{image}{tag}"], capture_output=True, check=False)
    assert list(static) == ["tag", "entrypoint", "cuda_visible_devices", "bash"]
    assert list(empty) == ["bash"]
    assert empty["bash"].startswith("no sh to look with")
    assert not (tmp_path / "out" / f"{image}.tar.gz").exists()
    codes = {"network": 11, "shm": 12, "user": 13, "read_only": 14, "capabilities": 15}
    assert list(dynamic) == ["bashisms", "inputs", "outputs", "labels", "type", "together", *codes]
    assert all(f"exit code {code}," in dynamic[rule] for rule, code in codes.items())
    assert dynamic["bashisms"] == "line 7: echo -e (dash prints the -e)"
