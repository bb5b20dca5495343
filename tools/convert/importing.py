"""From nnU-Net's results folder to a bundle: reads, checks that the weights fit, writes, says what was done."""

from collections.abc import Callable
from pathlib import Path

import torch

from app.network import build_network
from app.plan import Plan
from tools.convert.architectures import restore
from tools.convert.bundles import check_is_for_a_bundle, loses_nothing_as_half, write_bundle
from tools.convert.inference_facts import Imported
from tools.convert.model_folder import ModelError, Request


def import_model(reader: Callable[[Request], Imported], request: Request, out: Path, half: bool) -> Imported:
    """The imported model, after its bundle has been written to ``out``.

    Args:
        reader: of v1 or v2.
        half: store weights as float16 even if that rounds them; if it does not, they are stored so anyway.

    Raises:
        ModelError: the model is incomplete, refused or contradicts itself.
        FolderError: ``out`` holds something else.
    """
    check_is_for_a_bundle(out)
    found = reader(request)
    _check_weights(found, str(request.model))
    half = half or loses_nothing_as_half(found.weights)
    write_bundle(out, found.plan, found.weights, _model_card(found, request, half), half, found.architecture)
    return found


def summary(found: Imported) -> str:
    """What the user is told: the network, the grid, and every note."""
    plan = found.plan
    window = plan.sliding_window
    patch = " x ".join(map(str, window.patch_size))
    spacing = " x ".join(f"{value:g}" for value in plan.spacing.target_zyx_mm)
    spacing += " mm, the first axis as it is" if plan.spacing.keep_first_axis else " mm"
    lines = [
        f"{found.version.title}, {plan.network.dimensions}-D, {_parameters(found):,} parameters, "
        f"{len(plan.labels)} labels: {', '.join(plan.labels)}",
        f"patch {patch} voxels at {spacing}, step {window.tile_step_size:g}, mirroring axes {list(window.mirror_axes)}",
        *found.notes,
    ]
    if found.architecture is not None:
        kind = found.architecture.class_name
        lines.append(f"a {kind} that app/network.py cannot build: OpenVINO and ONNX Runtime run it, PyTorch does not")
    return "\n".join(lines)


def _check_weights(found: Imported, source: str) -> None:
    """Raises ModelError unless the network of the plan takes exactly these weights."""
    try:
        if found.architecture is not None:
            restore(found.architecture.to_json(), found.plan.classes, found.weights)
            return
        network = build_network(found.plan.network, found.plan.classes)
        network.load_state_dict({name: torch.from_numpy(value) for name, value in found.weights.items()})
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"{source}: the weights are not those of the network in the plans ({error})") from error


def _parameters(found: Imported) -> int:
    return sum(value.size for value in found.weights.values())


def _model_card(found: Imported, request: Request, half: bool) -> str:
    plan = found.plan
    notes = "\n".join(f"* {line}" for line in summary(found).splitlines())
    return f"""# {plan.name}

Imported from {found.version.title} by `python -m tools.convert`: fold {request.fold}, {request.checkpoint}.

{notes}
* weights in {"float16" if half else "float32"}
* {_postprocessing_line(plan)}

Preprocessing, sliding window and restoration follow {found.version.title}: no turning to LPS, crop to the voxels other
than 0 HU, cubic splines (order 0 along a separate z), {found.version.average} averaged in {found.version.accumulator}.
Who may use these weights, and for what, is for those to say who trained them; this import adds no right.
"""


def _postprocessing_line(plan: Plan) -> str:
    kept = ", ".join(plan.postprocessing.largest_component)
    return f"post-processing: the largest component of {kept}" if kept else "no post-processing"
