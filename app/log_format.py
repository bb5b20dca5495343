"""Log records as single lines."""

import logging


class OneLineFormatter(logging.Formatter):
    r"""Escapes what a terminal or a reader of logs would take for more than text.

    A file's name may hold line breaks and terminal codes: "a\n05:00:00 ERROR b" would look like two records.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The record's line, everything that cannot be printed as an escape of Python's."""
        line = super().formatMessage(record)
        return "".join(
            character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
            for character in line
        )
