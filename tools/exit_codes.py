"""Exit codes: the one a tool ends with, and what that of the app, run as a child process, says."""

import sys
from collections.abc import Callable
from io import TextIOWrapper

from app.errors import AppError, BundleError, CaseError, FolderError, UsageError
from app.interruption import EXIT_INTERRUPTED

_KINDS: dict[int, type[AppError]] = {kind.exit_code: kind for kind in (UsageError, FolderError, BundleError)}


def exit_code_of(run: Callable[[], int], interrupted: str = "interrupted") -> int:
    """What ``run`` returns; where it ends early, the code that stands for why, after a line on stderr.

    An AppError is its message and its own code: UsageError("--count 0: expected 1 or more") prints
    ``error: --count 0: expected 1 or more`` and is 2. Ctrl-C prints ``interrupted`` and is 130. All else is raised.

    Args:
        run: a tool's work, after its arguments are parsed.
        interrupted: the whole line; says what is kept.
    """
    print_any_name()
    try:
        return run()
    except AppError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return EXIT_INTERRUPTED


def print_any_name() -> None:
    """Lets stdout take names that are not UTF-8, as stderr does: a byte of them is ``\\udce9``."""
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def error_kind(exit_code: int) -> type[AppError]:
    """The kind of error that ends a run with this code; CaseError for codes that are none of the app's."""
    return _KINDS.get(exit_code, CaseError)
