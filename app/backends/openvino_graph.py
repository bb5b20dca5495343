"""What the rewriters of OpenVINO's graphs share."""

from typing import Any


def replace_result(node: Any, value: Any) -> None:
    """Makes all that read the only result of a node read another value."""
    for reader in node.output(0).get_target_inputs():
        reader.replace_source_output(value)
