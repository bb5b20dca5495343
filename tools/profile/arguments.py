"""Values of options, checked while the command line is read."""

import argparse
from math import isfinite


def seconds(text: str) -> float:
    """Seconds, 0 or more.

    Raises:
        ArgumentTypeError: the text is something else.
    """
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not isfinite(value) or value < 0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected seconds, 0 or more")
    return value


def device_index(text: str) -> int:
    """A GPU's number, from 0.

    Raises:
        ArgumentTypeError: the text is something else.
    """
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 0")
    return int(text)
