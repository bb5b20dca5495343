"""The errors that a user can meet, each with the exit code that it ends a run with.

A message says which file, what was found, what was expected and what to do about it.
"""

from typing import ClassVar

EXIT_OK = 0
EXIT_CASE_FAILED = 1
EXIT_USAGE = 2


class AppError(Exception):
    """A user's mistake or a fault of the machine, worded for the user."""

    exit_code: ClassVar[int] = EXIT_CASE_FAILED


class CaseError(AppError):
    """One scan cannot be segmented; the other cases go on."""


class UsageError(AppError):
    """The command line asks for something that does not exist or cannot be combined."""

    exit_code = EXIT_USAGE


class FolderError(AppError):
    """There is no input to read, or the output cannot be written: the whole run stops."""

    exit_code = 3


class BundleError(AppError):
    """The bundle is incomplete, altered, or not one that this version understands."""

    exit_code = 4


class DeviceError(AppError):
    """The backend, device or precision that was asked for cannot be had on this machine."""

    exit_code = 4
