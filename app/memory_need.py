"""What a case will need at its peak, stage by stage, from the header alone: pure arithmetic.

Each term is bytes of an array that the code of that stage holds, so a change there is a change here;
``python -m tools.memory_check`` compares the sum with what runs really take.
"""

from itertools import pairwise
from math import ceil, prod

from app.components import RUN_BYTES
from app.memory_terms import Need, ProcessMemory, ScanHeader
from app.options import Options
from app.plan import Crop, Plan, SpacingKind
from app.plausibility import overview_shape
from app.preprocessing import grid_of_box, network_axes
from app.region import body_steps
from app.resampling import PICKED_PART, SLAB_BYTES
from app.running_sums import block_planes, slab_planes
from app.sliding_window import streaming_axis
from app.spacing import NetworkGrid
from app.volume import Geometry, Shape

_CHUNKS_BYTES = 3 * 2**20  # a chunk of the file, its copy and the decompressor's window
_FLOAT = 4
_SUM_BYTES = {"float32": 4, "float16": 2}
_RUNS_PER_ROW = 4  # of which components are made: 0.3 to 0.7 on real label maps; noise has more
_EXAMINED_BYTES = 8  # a voxel of the overview when its label map is examined: masks of organs, lungs, body
_BODY_BYTES = 5  # a voxel of the search for the body: the mask, while it is opened three more, and the largest part
_OPEN_SHARE = 0.1  # voxels of a plane that lie on organ borders: 2 to 8 % on the ten scans
_ROWS_AT_ONCE = 8  # arrays (voxels, classes) that interpolate them


def predict_need(
    scan: ScanHeader,
    plan: Plan,
    options: Options,
    process: ProcessMemory,
    locator: Plan | None = None,
    twin: bool = False,
) -> Need:
    """The peak of each stage of a case in a process that holds ``process`` besides.

    A twin runs after the network, on the same image: until then that is kept, and from then on the label map.
    A crop is not counted on: what it leaves is not known yet. What the search for it takes is counted.
    """
    oriented, grid = planned_grid(scan.geometry, plan, options.spacing)
    scan_voxels, grid_voxels = prod(oriented), prod(grid.shape_zyx)
    stored = scan_voxels * scan.voxel_bytes
    image = _FLOAT * grid_voxels
    labels = scan_voxels  # uint8
    whole = labels if plan.crop_to_nonzero or options.crop != "none" else 0  # beside the box that is put back into it
    cleaned = _runs_bytes(oriented) if _cleans_up(plan) else 0
    network, restore = _network_and_restore_bytes(oriented, grid.shape_zyx, plan, options)
    network += labels if twin else 0
    kept = max(image, labels) if twin else 0
    overview, examined = _overview_bytes(scan), _examining_bytes(scan)
    search = _search_bytes(scan, options.crop, locator)
    return Need(
        {
            "read": process.loaded_bytes + reading_bytes(scan),
            "locate": process.located_bytes + overview + stored + search,
            "preprocess": process.located_bytes
            + overview
            + stored
            + image
            + _resampling_bytes(oriented, grid.shape_zyx, plan, scan.voxel_bytes),
            "network": process.running_bytes + overview + image + network,
            "restore": process.running_bytes + overview + restore + kept,
            "postprocess": process.running_bytes + overview + labels + max(cleaned, whole, examined) + kept,
            "write": process.running_bytes + overview + labels,  # plane by plane
        }
    )


def reading_bytes(scan: ScanHeader) -> int:
    """What reading a scan takes: its voxels, an overview of them, and buffers."""
    return prod(scan.geometry.shape_zyx) * scan.reading_bytes + _overview_bytes(scan) + _CHUNKS_BYTES


def _overview_bytes(scan: ScanHeader) -> int:
    return _FLOAT * prod(overview_shape(scan.geometry))


def _examining_bytes(scan: ScanHeader) -> int:
    """What examining the label map on the overview takes: masks, and runs of components."""
    seen = overview_shape(scan.geometry)
    return _EXAMINED_BYTES * prod(seen) + _runs_bytes(seen)


def planned_grid(geometry: Geometry, plan: Plan, spacing: SpacingKind) -> tuple[Shape, NetworkGrid]:
    """(shape of the oriented scan, the network grid) as ``preprocess`` will make them, the crop not counted."""
    oriented = network_axes(geometry, plan).apply_to_geometry(geometry)
    return oriented.shape_zyx, grid_of_box(oriented.shape_zyx, oriented, plan, spacing)


def _network_and_restore_bytes(oriented: Shape, grid_zyx: Shape, plan: Plan, options: Options) -> tuple[int, int]:
    """(what the windows and the growing label map take, what restoration takes after the last window)."""
    labels = prod(oriented)
    windows = _sliding_window_bytes(grid_zyx, plan, options.mirror)
    if options.mode == "fastest":
        return prod(grid_zyx) + windows, _nearest_neighbour_bytes(grid_zyx, oriented)
    last_slab = plan.classes * _slab_voxels(grid_zyx, plan) * _FLOAT  # what restoration still holds of it
    return labels + _interpolation_bytes(grid_zyx, oriented, plan) + windows, labels + last_slab


def _search_bytes(scan: ScanHeader, crop: Crop, locator: Plan | None) -> int:
    """What the search for the part to be segmented holds besides the scan."""
    if crop == "body":
        return _body_bytes(scan.geometry)
    if crop == "none" or locator is None:
        return 0
    oriented, grid = planned_grid(scan.geometry, locator, "resample")
    voxels = prod(grid.shape_zyx)
    windows = _sliding_window_bytes(grid.shape_zyx, locator, mirror=False)
    found = voxels + max(windows, _runs_bytes(grid.shape_zyx))
    return _FLOAT * voxels + max(_resampling_bytes(oriented, grid.shape_zyx, locator, scan.voxel_bytes), found)


def _body_bytes(geometry: Geometry) -> int:
    """The voxels that the search for the body looks at."""
    steps = body_steps(geometry.spacing_zyx_mm)
    z, y, x = (ceil(n / step) for n, step in zip(geometry.shape_zyx, steps, strict=True))
    return _BODY_BYTES * z * y * x + _runs_bytes((z, y, x))


def _runs_bytes(shape_zyx: Shape) -> int:
    """What finding components takes."""
    return RUN_BYTES * _RUNS_PER_ROW * shape_zyx[0] * shape_zyx[1]


def _resampling_bytes(shape_zyx: Shape, grid_zyx: Shape, plan: Plan, voxel_bytes: int) -> int:
    """What ``resample`` holds besides scan and result: the slab as float, shrunk in x, in y too, and its product.

    A spline gives every plane of the grid a weight; linearly, only the two voxels beside each of the grid's own are
    used, and a slab reaches the planes beside it.
    """
    matrices = max(8 * n * (n + m) for n, m in zip(shape_zyx, grid_zyx, strict=True))  # float64, while one is made
    is_spline, picked = plan.interpolation.image_order == 3, 0
    depth, height, width = shape_zyx
    if not is_spline and not plan.interpolation.clip_overshoot:
        z, y, x = (min(n, 2 * m) for n, m in zip(shape_zyx, grid_zyx, strict=True))
        depth = z
        if z * y * x * PICKED_PART <= prod(shape_zyx):
            height, width, picked = y, x, z * y * x * voxel_bytes
    thickness = min(depth, max(1, SLAB_BYTES // (_FLOAT * height * width)))
    slab = _FLOAT * thickness * height * width
    narrow = _FLOAT * thickness * height * grid_zyx[2]
    shrunk = _FLOAT * thickness * grid_zyx[1] * grid_zyx[2]
    reached = grid_zyx[0] if is_spline else min(grid_zyx[0], thickness * grid_zyx[0] // depth + 2)
    plane = _FLOAT * grid_zyx[1] * grid_zyx[2]
    product = plane * min(reached, max(1, SLAB_BYTES // plane))
    return picked + max(slab + narrow, narrow + shrunk, shrunk + product) + matrices


def _live_voxels(grid_zyx: Shape, plan: Plan) -> int:
    """Voxels of a class for which sums are kept: a patch's thickness of the padded grid."""
    padded, axis = _streaming(grid_zyx, plan)
    return prod(padded) // padded[axis] * plan.sliding_window.patch_size[axis]


def _slab_voxels(grid_zyx: Shape, plan: Plan) -> int:
    """Voxels of the largest slab that is handed out."""
    padded, axis = _streaming(grid_zyx, plan)
    planes = slab_planes(plan.sliding_window.patch_size[axis], plan.sliding_window.accumulator)
    return prod(padded) // padded[axis] * planes


def _streaming(grid_zyx: Shape, plan: Plan) -> tuple[Shape, int]:
    """(the grid enlarged to at least a patch, the streaming axis), as ``stream_logits`` has them."""
    patch = plan.sliding_window.patch_size
    z, y, x = (max(length, side) for length, side in zip(grid_zyx, patch, strict=True))
    return (z, y, x), streaming_axis((z, y, x), plan.sliding_window)


def _sliding_window_bytes(grid_zyx: Shape, plan: Plan, mirror: bool) -> int:
    """Sums, weights, blocks, three tiles, air's logits, and the larger of a window's and a slab's arrays.

    Three: a new tile is cut out while the last one has its name, and that, or its scaled copy, is held by the runtime.
    """
    window = plan.sliding_window
    live, slab, tile = _live_voxels(grid_zyx, plan), _slab_voxels(grid_zyx, plan), prod(window.patch_size)
    sums = (plan.classes + 1) * live * _SUM_BYTES[window.accumulator]
    of_air = plan.classes * tile * _FLOAT if plan.shortcuts.skip_air else 0
    block = block_planes(window.patch_size) * prod(window.patch_size[1:]) * _FLOAT
    mirrors, softmax = bool(mirror and window.mirror_axes), window.average == "probabilities"
    blocks = block * (1 + plan.classes * (softmax and not mirrors))  # weighted, and probabilities
    kept = sums + blocks + 3 * tile * _FLOAT + of_air
    flipped = mirrors * ((1 + softmax) * plan.classes + 1) * tile * _FLOAT  # the mean, a flip's probabilities, a flip
    # Half-precision sums are handed out as float32, and the next slab is made while the last is still held.
    wide = 2 * plan.classes * slab * _FLOAT if window.accumulator == "float16" else 0
    arg_max = slab * (_FLOAT + 2)  # running maximum, labels and a mask
    return kept + max(flipped, wide + arg_max)


def _nearest_neighbour_bytes(grid_zyx: Shape, shape_zyx: Shape) -> int:
    """The label map enlarged axis by axis: the largest sum of one step's input and output."""
    (z, y, x), (depth, height, width) = grid_zyx, shape_zyx
    steps = (z * y * x, depth * y * x, depth * height * x, depth * height * width)
    return max(before + after for before, after in pairwise(steps))


def _interpolation_bytes(grid_zyx: Shape, shape_zyx: Shape, plan: Plan) -> int:
    """``normal``: a few planes of logits, and rows of logits for the voxels on organ borders."""
    _, axis = _streaming(grid_zyx, plan)
    plane, restored = prod(grid_zyx) // grid_zyx[axis], prod(shape_zyx) // shape_zyx[axis]
    return plan.classes * _FLOAT * int(4 * plane + _ROWS_AT_ONCE * _OPEN_SHARE * restored)


def _cleans_up(plan: Plan) -> bool:
    return bool(plan.postprocessing.largest_component or plan.postprocessing.minimum_volume_ml)
