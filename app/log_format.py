"""Names of files on terminals and in logs: single lines without control codes."""

import logging


class OneLineFormatter(logging.Formatter):
    r"""Escapes what a terminal or a reader of logs would take for more than text.

    A file's name may hold line breaks and terminal codes: "a\n05:00:00 ERROR b" would look like two records.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The record's line."""
        return escaped(super().formatMessage(record))


def escaped(text: str) -> str:
    r"""The text with all that cannot be printed as an escape of Python's: a line break is ``\n``."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )
