"""The parity harness on small synthetic things; with real nnU-Net v1 in one long test."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from safetensors.numpy import load

from app.bundle import SAFETENSORS_FILE, load_bundle
from app.errors import AppError, CaseError, FolderError
from app.plan import Plan
from tests.conftest import ROOT, write_scan
from tools.parity import __main__ as parity
from tools.parity import environments
from tools.parity.compare import Comparison, compare_label_maps, failures, side_with, why_not_counted
from tools.parity.measure import run_measured
from tools.parity.peer_models import PeerModel, Weights, v1_plans, v1_weights, v2_plans, v2_weights, write_spec
from tools.parity.rows import Row, all_rows, peer_model, select_rows
from tools.parity.runs import Workshop
from tools.parity.scans import prepare_scan
from tools.parity.table import markdown, read_records, write_records

FASTEST = Row("v1-fastest", "v1", "default", "ct_006", "torch", mode="fastest", step=0.7)
ORGANS = ("liver", "spleen")


@pytest.fixture(scope="module")
def trained(default_bundle: Path) -> tuple[Plan, Weights]:
    bundle = load_bundle(default_bundle)
    return bundle.plan, load(bundle.read(SAFETENSORS_FILE))


def a_record(row: Row = FASTEST, **changes: Any) -> dict[str, Any]:
    """What a finished row leaves, with round numbers."""
    measurement = {"exit_code": 0, "wall_s": 75.4, "cpu_s": 60.0, "peak_rss_mib": 1721.3}
    return {
        "name": row.name,
        "row": {"peer": row.peer, "network": row.network, "scan": row.scan, "backend": row.backend}
        | {"mode": row.mode, "step": row.step, "mirror": row.mirror, "group": row.group},
        "network_sha256": "of other weights",
        "peer": measurement,
        "ours": {**measurement, "wall_s": 10.0, "peak_rss_mib": 500.0},
        "agreement": 0.99999,
        "different_voxels": 10,
        "float32_sums": None,
        "worst_organ": {"organ": "spleen", "dsc": 0.99951},
        "organs_found": 9,
        "not_counted": None,
        "failures": [],
        "machine": {"processor": "Abacus", "cores": 2, "host": "desk", "threads": None},
        **changes,
    }


def a_comparison(different: int = 0, dsc: float = 1.0, peer_ml: float = 5.0, organs: int = 6) -> Comparison:
    names = [f"organ {number}" for number in range(organs)]
    return Comparison(
        100_000, different, dict.fromkeys(names, dsc), dict.fromkeys(names, peer_ml), dict.fromkeys(names, 0.5)
    )


def test_v1_names(trained: tuple[Plan, Weights]) -> None:
    """Hand-worked from Generic_UNet: its bottleneck and decoder levels are two modules of one block each."""
    _, weights = trained
    named = v1_weights(weights)
    for ours, theirs in {
        "enc.0.0.0.weight": "conv_blocks_context.0.blocks.0.conv.weight",
        "enc.3.1.1.bias": "conv_blocks_context.3.blocks.1.instnorm.bias",
        "enc.4.0.0.bias": "conv_blocks_context.4.0.blocks.0.conv.bias",
        "enc.4.1.1.weight": "conv_blocks_context.4.1.blocks.0.instnorm.weight",
        "dec.0.1.0.weight": "conv_blocks_localization.0.1.blocks.0.conv.weight",
        "up.3.weight": "tu.3.weight",
        "seg.0.weight": "seg_outputs.0.weight",
    }.items():
        assert np.array_equal(named[theirs], weights[ours])
    assert len(named) == len(weights)
    assert {value.dtype for value in named.values()} == {np.dtype(np.float32)}


def test_v2_names_and_the_biases_that_we_do_not_have(trained: tuple[Plan, Weights]) -> None:
    _, weights = trained
    named = v2_weights(weights)
    for ours, theirs in {
        "enc.4.1.1.weight": "encoder.stages.4.0.convs.1.norm.weight",
        "dec.0.0.0.bias": "decoder.stages.0.convs.0.conv.bias",
        "up.0.weight": "decoder.transpconvs.0.weight",
        "seg.3.weight": "decoder.seg_layers.3.weight",
    }.items():
        assert np.array_equal(named[theirs], weights[ours])
    assert named["decoder.transpconvs.0.bias"].tolist() == [0.0] * 128
    assert named["decoder.seg_layers.0.bias"].tolist() == [0.0] * 14
    assert len(named) == len(weights) + 8


def test_v1_plans_of_the_default_network(trained: tuple[Plan, Weights]) -> None:
    plans = v1_plans(trained[0])
    stage = plans["plans_per_stage"]["0"]
    assert stage["patch_size"] == [80, 128, 192]
    assert stage["pool_op_kernel_sizes"] == [[2, 2, 2]] * 4
    assert stage["conv_kernel_sizes"] == [[3, 3, 3]] * 5
    assert stage["num_pool_per_axis"] == [4, 4, 4]
    assert (plans["base_num_features"], plans["num_classes"]) == (16, 13)
    statistics = plans["dataset_properties"]["intensityproperties"]["0"]
    assert [statistics[name] for name in ("percentile_00_5", "percentile_99_5", "mean", "sd")] == [-200, 300, 50, 110]


def test_v2_plans_of_a_flat_and_of_a_residual_network(trained: tuple[Plan, Weights]) -> None:
    flat = peer_model("v2", "random-2d", *trained)
    configuration = v2_plans(flat.plan, flat.architecture)["configurations"]["2d"]
    assert (configuration["patch_size"], configuration["spacing"]) == ([64, 96], [2.0, 2.0])
    assert configuration["architecture"]["arch_kwargs"]["conv_op"] == "torch.nn.modules.conv.Conv2d"
    residual = peer_model("v2", "random-residual", *trained)
    arguments = v2_plans(residual.plan, residual.architecture)["configurations"]["3d_fullres"]["architecture"]
    assert arguments["network_class_name"].endswith("ResidualEncoderUNet")
    assert arguments["arch_kwargs"]["n_blocks_per_stage"] == [1, 2, 2, 2]


def test_a_specification_can_be_read_without_this_repository(tmp_path: Path, trained: tuple[Plan, Weights]) -> None:
    spec = json.loads(write_spec(PeerModel("v2", *trained), tmp_path).read_text())
    assert spec["dataset"]["labels"]["left kidney"] == 13
    assert (spec["configuration"], spec["mirror_axes"]) == ("3d_fullres", [0, 1, 2])
    assert np.load(tmp_path / spec["weights"])["encoder.stages.0.0.convs.0.conv.weight"].shape == (16, 1, 3, 3, 3)
    assert json.loads(write_spec(peer_model("v1", "random-2d", *trained), tmp_path).read_text())["weights"] is None


def test_memory_of_grandchildren_counts(tmp_path: Path) -> None:
    """The grandchild holds 300 MiB for half a second; child and grandchild hold some 10 MiB each besides."""
    code = "import time; block = bytearray(300 * 2**20); print('full'); time.sleep(0.5)"
    command = [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"]
    found = run_measured(command, tmp_path / "logs" / "log.txt", tmp_path, {})
    assert found.exit_code == 0
    assert 300 < found.peak_rss_mib < 400
    assert found.wall_s > 0.5
    assert "full" in (tmp_path / "logs" / "log.txt").read_text()


def test_a_failing_command_gives_its_exit_code_and_environment(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import os, sys; sys.exit(int(os.environ['ANSWER']))"]
    assert run_measured(command, tmp_path / "log.txt", tmp_path, {"ANSWER": "42"}).exit_code == 42


def test_label_maps_are_compared_by_voxel_and_by_organ(tmp_path: Path) -> None:
    """Liver: 4 and 3 voxels, 3 in common: 6/7. Spleen: 1 and 2 voxels, 1 in common: 2/3. One of 24 voxels differs."""
    peer = np.zeros((2, 3, 4), np.uint8)
    peer[0, 0] = 1
    peer[1, 1, 1] = 2
    ours = peer.copy()
    ours[0, 0, 0] = 2
    found = compare_label_maps(
        write_scan(tmp_path / "peer.nii.gz", peer), write_scan(tmp_path / "ours.nii.gz", ours), ORGANS
    )
    assert (found.different, found.voxels) == (1, 24)
    assert found.agreement == pytest.approx(23 / 24)
    assert found.dsc == {"liver": pytest.approx(6 / 7), "spleen": pytest.approx(2 / 3)}
    assert found.peer_ml == {"liver": pytest.approx(0.024), "spleen": pytest.approx(0.006)}
    assert found.worst_organ() is None  # a voxel has 0.006 ml


def test_a_third_label_map_tells_who_is_right(tmp_path: Path) -> None:
    """Four voxels differ: the third one gives two as we have them, one as the peer has it and one as nobody."""
    peer, ours, judge = (
        write_scan(tmp_path / f"{row}.nii.gz", np.array([[list(map(int, row))]], np.uint8))
        for row in ("112201", "121102", "121200")
    )
    assert side_with(judge, peer, ours, 2) == {"ours": 2, "peer": 1, "neither": 1}


def test_label_maps_on_two_grids_are_not_compared(tmp_path: Path) -> None:
    voxels = np.zeros((2, 3, 4), np.uint8)
    first = write_scan(tmp_path / "first.nii.gz", voxels)
    second = write_scan(tmp_path / "second.nii.gz", voxels, spacing_zyx_mm=(3.0, 2.0, 1.1))
    with pytest.raises(CaseError, match="spacing_zyx_mm"):
        compare_label_maps(first, second, ORGANS)


def test_limits() -> None:
    """11 of 100,000 voxels are 99.989 %: too many for PyTorch against v1's fastest mode, few for all else."""
    openvino = Row("v1-fastest", "v1", "default", "ct_006", "openvino", mode="fastest", step=0.7)
    assert failures(FASTEST, a_comparison(different=10)) == []
    assert len(failures(FASTEST, a_comparison(different=11))) == 1
    assert failures(openvino, a_comparison(different=100)) == []
    assert len(failures(openvino, a_comparison(different=101))) == 1
    assert "0.9970" in failures(openvino, a_comparison(dsc=0.997))[0]
    assert failures(openvino, a_comparison(dsc=0.5, peer_ml=0.9)) == []


def test_what_does_not_count() -> None:
    assert why_not_counted(FASTEST, a_comparison()) is None
    assert "5 organs" in str(why_not_counted(FASTEST, a_comparison(organs=5)))
    assert "0 organs" in str(why_not_counted(FASTEST, a_comparison(peer_ml=1.0)))
    assert why_not_counted(Row("shapes", "v1", "random-2d", "ct_002_small", "torch"), a_comparison()) is not None


def test_rows_have_names_of_their_own_and_can_be_chosen() -> None:
    rows = all_rows(full_size=True)
    assert len({row.name for row in rows}) == len(rows)
    chosen = select_rows(rows, ["v1-fastest", "v2"], ["ct_006"])
    assert [(row.group, row.backend) for row in chosen] == [
        ("v1-fastest", "torch"),
        ("v1-fastest", "openvino"),
        ("v2", "openvino"),
        ("v2", "torch"),
    ]
    assert {row.peer_name for row in chosen[:2]} == {"v1-default-fastest-0.7-ct_006"}
    with pytest.raises(ValueError, match="--scans ct_077"):
        select_rows(rows, [], ["ct_077"])


def test_the_awkward_scans(tmp_path: Path) -> None:
    """A turned scan has its columns reversed and the same patient; a framed one 7 voxels of 0 HU before, 9 after."""
    image = sitk.GetImageFromArray(np.arange(24, dtype=np.int16).reshape(2, 3, 4))
    for name in ("ct_002", "ct_003"):
        sitk.WriteImage(image, str(tmp_path / f"{name}_0000.nii.gz"))
    turned = sitk.ReadImage(str(next(prepare_scan("ct_003_turned", tmp_path, tmp_path / "made").iterdir())))
    assert sitk.GetArrayFromImage(turned)[0, 0].tolist() == [3, 2, 1, 0]
    assert turned.TransformIndexToPhysicalPoint((0, 0, 0)) == image.TransformIndexToPhysicalPoint((3, 0, 0))
    framed = sitk.GetArrayFromImage(
        sitk.ReadImage(str(next(prepare_scan("ct_002_framed", tmp_path, tmp_path / "made").iterdir())))
    )
    assert framed.shape == (2 + 16, 3 + 16, 4 + 16)
    assert framed[7:9, 7:10, 7:11].ravel().tolist() == list(range(24))
    with pytest.raises(FolderError, match="ct_006"):
        prepare_scan("ct_006_slab", tmp_path, tmp_path / "made")


def test_the_table() -> None:
    shapes = Row("shapes", "v2", "random-2d", "ct_002_small", "torch")
    text = markdown(
        [
            a_record(),
            a_record(failures=["agreement 0.9, limit 0.999"]),
            a_record(
                shapes, worst_organ=None, not_counted="seeded random network", float32_sums={"ours": 7, "peer": 3}
            ),
        ]
    )
    assert (
        "| v1: fastest, step 0.7 | default | ct_006 | torch | 99.9990 % | 10 |  | spleen: 0.9995 | 9 | 75, 10 "
        "| 1721, 500 | passes |" in text
    )
    assert "| fails: agreement 0.9, limit 0.999 |" in text
    assert "| v2: step 0.5 | random-2d | ct_002_small | torch | 99.9990 % | 10 | 3, 7 | none |" in text
    assert "2 of 3 rows count, 1 of them fail" in text
    assert text.count("Abacus, 2 cores (desk)") == 1


def test_the_recorded_table_is_complete() -> None:
    """As the tool writes it: all rows of all groups, those that count pass."""
    results = Path(parity.__file__).parent / "results"
    records = read_records(results / "parity.json")
    text = (results / "parity.md").read_text(encoding="utf-8")
    assert markdown(list(records.values())) == text
    assert list(records) == [row.name for row in all_rows()]
    assert not [name for name, record in records.items() if record["failures"] and record["not_counted"] is None]


def test_the_later_table_of_some_rows_is_as_the_tool_writes_it() -> None:
    results = Path(parity.__file__).parent / "results"
    records = read_records(results / "parity-part.json")
    assert markdown(list(records.values())) == (results / "parity-part.md").read_text(encoding="utf-8")
    assert set(records) < {row.name for row in all_rows()}
    assert not [name for name, record in records.items() if record["failures"] and record["not_counted"] is None]
    assert max(record["different_voxels"] for record in records.values()) == 1  # which README says


def test_records_are_kept_and_strangers_refused(tmp_path: Path) -> None:
    path = tmp_path / "parity.json"
    assert read_records(path) == {}
    write_records(path, {FASTEST.name: a_record()})
    assert read_records(path) == {FASTEST.name: a_record()}
    path.write_text('{"schema_version": 9, "rows": []}')
    with pytest.raises(FolderError, match="schema_version 9"):
        read_records(path)


def test_finished_rows_are_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = []

    def run(workshop: Workshop, row: Row) -> dict[str, Any]:
        if row.backend == "openvino":
            raise CaseError("no luck")
        ran.append(row.name)
        return a_record(row, failures=["agreement 0.9, limit 0.9999"], network_sha256=workshop.network_sha256)

    monkeypatch.setattr(Workshop, "run", run)
    arguments = ["--work", str(tmp_path), "--data", str(tmp_path), "--rows", "v1-fastest", "--scans", "ct_006"]
    assert parity.main(arguments) == 1
    assert parity.main(arguments) == 1
    assert ran == [FASTEST.name]
    assert parity.main([*arguments, "--again"]) == 1
    assert ran == [FASTEST.name] * 2
    write_records(tmp_path / "parity.json", {FASTEST.name: a_record()})
    assert parity.main(arguments) == 1
    assert ran == [FASTEST.name] * 3
    assert "no luck" in capsys.readouterr().err
    assert parity.main(["--work", str(tmp_path), "--table"]) == 1
    assert "fails: agreement 0.9" in (tmp_path / "parity.md").read_text()
    write_records(tmp_path / "parity.json", {FASTEST.name: a_record()})
    assert parity.main(["--work", str(tmp_path), "--table"]) == 0  # of whatever network
    assert "1 of 1 rows count" in (tmp_path / "parity.md").read_text()
    (tmp_path / "parity.json").unlink()
    assert parity.main(["--work", str(tmp_path), "--table"]) == 3
    assert "no rows in it" in capsys.readouterr().err


def test_an_environment_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(environments, "_run", commands.append)
    (tmp_path / "venv-v1").mkdir()
    python = environments.ensure_environment("v1", tmp_path, "--extra-index-url 'https://a b'")
    assert python == tmp_path / "venv-v1" / "bin" / "python"
    requirements = str(ROOT / "tools" / "parity" / "requirements-v1.txt")
    assert [command[-2:] for command in commands] == [["venv", str(tmp_path / "venv-v1")], ["-r", requirements]]
    assert commands[1][:3] == [str(python), "-m", "pip"]
    assert "https://a b" in commands[1]
    environments.ensure_environment("v1", tmp_path)
    assert len(commands) == 2
    (tmp_path / "venv-v1" / "installed.txt").write_text("nnunet==1.7.0\n")
    environments.ensure_environment("v1", tmp_path)
    assert len(commands) == 4


def test_pip_that_fails_is_an_error_with_its_command() -> None:
    with pytest.raises(AppError, match="exit code 3"):
        environments._run([sys.executable, "-c", "raise SystemExit(3)"])


def test_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert parity.main(["--work", str(tmp_path), "--rows", "v3"]) == 2
    assert "--rows v3" in capsys.readouterr().err
    assert parity.main(["--work", str(tmp_path), "--data", str(tmp_path / "nowhere")]) == 3
    assert "nowhere: no such folder" in capsys.readouterr().err


@pytest.mark.long
def test_real_nnunet_v1_agrees_on_a_piece_of_a_real_scan(tmp_path: Path, shared_data: Path) -> None:
    """Its environment is made under build/parity, where ``make parity`` keeps it too."""
    workshop = Workshop(tmp_path, shared_data / "images", ROOT / "build" / "parity")
    record = workshop.run(Row("v1-fastest", "v1", "default", "ct_006_slab", "torch", mode="fastest", step=0.7))
    assert record["not_counted"] is None
    assert record["failures"] == []
