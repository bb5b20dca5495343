"""The option of every command line that makes scans worse."""

import argparse


def add_seed(parser: argparse.ArgumentParser) -> None:
    """Adds ``--seed``, a whole number from 0: numpy's generators take no other."""
    parser.add_argument("--seed", type=_whole_number, default=0, metavar="N", help="of the noise (default: 0)")


def _whole_number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 0")
    return int(text)
