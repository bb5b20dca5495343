"""Nobody's code is run: what a strange pickle names is refused, what nnU-Net writes is read."""

import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.nnunet_v1_folder import v1_network, v1_plans, write_v1
from tests.nnunet_v2_folder import write_v2
from tests.test_convert_nnunet_refusals import refused
from tools.convert.model_folder import ModelError
from tools.convert.safe_pickle import load_checkpoint, load_plain_pickle


class Evil:
    """Unpickled, it would make a file."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self._marker}",)


def test_v1_pickles_run_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    marker = tmp_path / "ran"
    plans = {**v1_plans(), "dataset_properties": Evil(marker)}
    message = refused(["nnunet-v1", str(write_v1(tmp_path / "plans", plans))], tmp_path / "out", capsys)
    assert "posix.system" in message
    state = {**v1_network().state_dict(), "extra": Evil(marker)}
    message = refused(["nnunet-v1", str(write_v1(tmp_path / "weights", state=state))], tmp_path / "out", capsys)
    assert "posix.system" in message
    assert not marker.exists()


def test_v2_pickles_run_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    marker = tmp_path / "ran"
    model = write_v2(tmp_path / "model", logging=Evil(marker))
    assert "posix.system" in refused(["nnunet-v2", str(model)], tmp_path / "out", capsys)
    assert not marker.exists()


def test_classes_are_named(tmp_path: Path) -> None:
    (tmp_path / "p.pkl").write_bytes(pickle.dumps({"path": Path("x")}))
    with pytest.raises(ModelError, match=r"names pathlib\.[\w.]*PosixPath.*nothing was run"):
        load_plain_pickle(tmp_path / "p.pkl")
    torch.save({"path": Path("x")}, tmp_path / "c.pth")
    with pytest.raises(ModelError, match=r"names pathlib\.[\w.]*PosixPath"):
        load_checkpoint(tmp_path / "c.pth")


@pytest.mark.parametrize("content", [b"", b"not a pickle", b"\x80\x04}"])
def test_rubbish_is_said_to_be(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    for read in (load_plain_pickle, load_checkpoint):
        with pytest.raises(ModelError, match="not a "):
            read(tmp_path / "x")


def test_a_list_is_no_checkpoint(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "x")
    with pytest.raises(ModelError, match="holds a list"):
        load_checkpoint(tmp_path / "x")


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_containers_are_read(protocol: int, tmp_path: Path) -> None:
    content = OrderedDict(
        array=np.arange(6, dtype=np.int16).reshape(2, 3),
        fortran=np.asfortranarray(np.ones((2, 3))),
        scalar=np.float32(1.5),
        types={1, 2},
        frozen=frozenset({"a"}),
        data=b"bytes",
        nested=[(1, None, True), {"k": np.bool_(True)}],
    )
    (tmp_path / "p.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    found = load_plain_pickle(tmp_path / "p.pkl")
    np.testing.assert_equal(dict(found), dict(content))
    assert type(found) is OrderedDict


def test_pickles_of_numpy_1_are_read(tmp_path: Path) -> None:
    """Protocol 2 writes names as lines, so that numpy 2's can be made numpy 1's."""
    content = pickle.dumps([np.arange(3), np.float64(2.5)], protocol=2)
    old = content.replace(b"numpy._core.", b"numpy.core.")
    assert old != content
    (tmp_path / "p.pkl").write_bytes(old)
    array, scalar = load_plain_pickle(tmp_path / "p.pkl")
    assert array.tolist() == [0, 1, 2]
    assert scalar == 2.5
