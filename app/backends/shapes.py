"""What the network's input and output have to look like, whatever runs it."""

from collections.abc import Sequence

from app.errors import BundleError
from app.plan import Plan


def network_shapes(plan: Plan) -> tuple[list[int], list[int]]:
    """(input, output) of one tile: [1, 1, (z,) y, x] and [1, classes, (z,) y, x]."""
    spatial = list(plan.sliding_window.patch_size[3 - plan.network.dimensions :])
    return [1, 1, *spatial], [1, plan.classes, *spatial]


def check_network_shapes(
    plan: Plan, found_input: Sequence[object], found_output: Sequence[object], source: str
) -> None:
    """Raises BundleError unless the network in a file has the plan's shapes."""
    expected_input, expected_output = network_shapes(plan)
    if list(found_input) != expected_input or list(found_output) != expected_output:
        raise BundleError(
            f"{source}: network maps {list(found_input)} to {list(found_output)}; "
            f"the plan expects {expected_input} to {expected_output}"
        )
