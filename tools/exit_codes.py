"""What the exit code of the app, run as a child process, says."""

from app.errors import AppError, BundleError, CaseError, FolderError, UsageError

_KINDS: dict[int, type[AppError]] = {kind.exit_code: kind for kind in (UsageError, FolderError, BundleError)}


def error_kind(exit_code: int) -> type[AppError]:
    """The kind of error that ends a run with this code; CaseError for codes that are none of the app's."""
    return _KINDS.get(exit_code, CaseError)
