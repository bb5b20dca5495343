"""The story: one scan in, one label map out."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from app.agreement import organ_agreement
from app.options import Options
from app.plan import Plan
from app.postprocessing import postprocess
from app.preprocessing import Record, preprocess
from app.progress import Progress
from app.region import Locator, find_region
from app.report import StageClock
from app.restoration import Restoration, restore
from app.running_sums import Slab
from app.sliding_window import AirSkipper, Predictor, count_windows, stream_logits
from app.volume import Float32Array, LabelArray, Volume


def segment(
    volume: Volume,
    predictor: Predictor,
    plan: Plan,
    options: Options,
    clock: StageClock | None = None,
    progress: Progress | None = None,
    locator: Locator | None = None,
    twin: Predictor | None = None,
    on_preprocessed: Callable[[], None] = lambda: None,
) -> tuple[LabelArray, Record, Restoration]:
    """(label map uint8 (z, y, x) on the grid of ``volume`` as stored, what preprocessing and restoration did).

    Find the organs; orient, crop, resample, normalise; sliding window; arg max on the scan's grid; components; orient
    back. What a step has used up is let go: the voxels, if the caller holds no other reference to ``volume``, and the
    network's grid. A ``twin`` then makes a label map of its own on that grid, to be compared; it changes nothing.
    ``on_preprocessed`` is called when the voxels are used up.
    """
    clock = clock or StageClock()
    image, record = _prepare(volume, plan, options, clock, locator)
    del volume
    on_preprocessed()
    networks = [predictor] if twin is None else [predictor, twin]
    if progress:
        progress.expect_windows(len(networks) * count_windows(record.grid.shape_zyx, plan.sliding_window))
    slabs, *slabs_of_twin = [_stream(image, network, plan, options, progress) for network in networks]
    del image  # now held by the streams alone, the last of which ends before its restored label map is made
    restoration = _restore(slabs, record, plan, options, clock)
    with clock.measure("postprocess"):
        label_map = _clean_up(restoration.label_map, record, plan)
        restoration = replace(restoration, label_map=label_map)  # that of the box is let go
    clock.log("postprocess", record.oriented.shape_zyx, record.oriented.spacing_zyx_mm)
    for coming in slabs_of_twin:
        with clock.measure("twin"):
            agreement = _compare(coming, label_map, record, plan, options)
        restoration = replace(restoration, agreement=agreement)
        clock.log("twin", record.grid.shape_zyx, record.grid.target_zyx_mm)
    return record.axis_map.undo(label_map), record, restoration


def _prepare(
    volume: Volume, plan: Plan, options: Options, clock: StageClock, locator: Locator | None
) -> tuple[Float32Array, Record]:
    """The network's image of the part of the scan that is segmented."""
    region = None
    if options.crop != "none":
        with clock.measure("locate"):
            region = find_region(volume, plan, options.crop, options.spacing, locator)
    with clock.measure("preprocess"):
        image, record = preprocess(volume, plan, options.spacing, region)
    if options.crop != "none":
        clock.log("locate", record.cropped_shape_zyx, record.oriented.spacing_zyx_mm)
    clock.log("preprocess", record.grid.shape_zyx, record.grid.target_zyx_mm)
    return image, record


def _stream(
    image: Float32Array, network: Predictor, plan: Plan, options: Options, progress: Progress | None
) -> Iterator[Slab]:
    return stream_logits(
        image,
        AirSkipper(network) if plan.shortcuts.skip_air else network,
        plan.classes,
        plan.sliding_window,
        plan.intensity.normalised(plan.sliding_window.pad_hu),
        options.mirror,
        progress.finish_window if progress else lambda: None,
    )


def _clean_up(label_map: LabelArray, record: Record, plan: Plan) -> LabelArray:
    """A label map of the box without the components that the plan drops, in the oriented scan."""
    voxel_ml = record.oriented.voxel_volume_ml
    return record.undo_crop(postprocess(label_map, plan.labels, plan.postprocessing, voxel_ml))


def _compare(
    slabs: Iterator[Slab], label_map: LabelArray, record: Record, plan: Plan, options: Options
) -> dict[str, float | None]:
    """How far a label map (oriented) agrees with the one that the twin's logits become in the same way."""
    shapes = record.grid.shape_zyx, record.cropped_shape_zyx
    precision = plan.interpolation.logits_precision
    restored = restore(slabs, *shapes, record.restoration_orders, options.mode, precision)
    return organ_agreement(label_map, _clean_up(restored.label_map, record, plan), plan.labels)


def _restore(slabs: Iterator[Slab], record: Record, plan: Plan, options: Options, clock: StageClock) -> Restoration:
    with clock.measure("restore"):
        restoration = restore(
            clock.measure_items("network", slabs),
            record.grid.shape_zyx,
            record.cropped_shape_zyx,
            record.restoration_orders,
            options.mode,
            plan.interpolation.logits_precision,
        )
    clock.log("network", record.grid.shape_zyx, record.grid.target_zyx_mm)
    clock.log("restore", record.oriented.shape_zyx, record.oriented.spacing_zyx_mm)
    return restoration
