"""How a tool ends: what its exit code is, and what stands on stderr."""

import io
import sys
from typing import NoReturn

import pytest

from app.errors import AppError, BundleError, CaseError, DeviceError, FolderError, UsageError
from tools.exit_codes import exit_code_of


def _raise(error: BaseException) -> NoReturn:
    raise error


@pytest.mark.parametrize("code", [0, 1, 124])
def test_what_a_run_returns_is_its_code(code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(lambda: code) == code
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("kind", "code"),
    [(AppError, 1), (CaseError, 1), (UsageError, 2), (FolderError, 3), (BundleError, 4), (DeviceError, 4)],
)
def test_a_users_mistake_is_a_line_and_the_code_of_its_kind(
    kind: type[AppError], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code_of(lambda: _raise(kind("a.nii.gz: damaged"))) == code
    assert capsys.readouterr() == ("", "error: a.nii.gz: damaged\n")


@pytest.mark.parametrize("given", [(), ("interrupted; finished rows are kept",)])
def test_ctrl_c_is_a_line_and_130(given: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(lambda: _raise(KeyboardInterrupt()), *given) == 130
    assert capsys.readouterr() == ("", f"{given[0] if given else 'interrupted'}\n")


@pytest.mark.parametrize("error", [ValueError("a programmer's"), ModuleNotFoundError("torch"), SystemExit(2)])
def test_all_else_is_raised(error: BaseException, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(type(error)) as raised:
        exit_code_of(lambda: _raise(error))
    assert raised.value is error
    assert capsys.readouterr() == ("", "")


def test_names_that_are_not_utf8_can_be_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="utf-8"))
    assert exit_code_of(lambda: 0 * sys.stdout.write("caf\udce9")) == 0
    sys.stdout.flush()
    assert written.getvalue() == b"caf\\udce9"
