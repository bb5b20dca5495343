"""Plans: what is read, and that every mistake is refused by the name of its key."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.errors import BundleError
from app.plan import Plan, parse_plan
from tests.conftest import tiny_plan

Edit = Callable[[dict[str, Any]], object]


def parse(plan: object) -> Plan:
    return parse_plan(json.dumps(plan), "weights/x/plan.json")


def test_the_default_plan_is_what_the_networks_readme_says(default_bundle: Path) -> None:
    plan = parse_plan((default_bundle / "plan.json").read_text(), "plan.json")
    assert plan.classes == 14
    assert plan.labels[0] == "liver"
    assert plan.labels[12] == "left kidney"
    assert plan.orientation == "LPS"
    assert plan.spacing.enforce == "resample"
    assert plan.intensity.normalised(0) == pytest.approx(-50 / 110)
    assert plan.intensity.normalised(-5000) == pytest.approx(-250 / 110)
    assert plan.intensity.normalised(5000) == pytest.approx(250 / 110)


def test_integers_may_stand_for_floats_and_optional_keys_may_be_left_out() -> None:
    plan = parse(tiny_plan())
    assert plan.spacing.target_zyx_mm == (3.0, 2.0, 1.0)
    assert all(isinstance(length, float) for length in plan.spacing.target_zyx_mm)
    assert plan.interpolation.separate_z_above is None
    assert not plan.network.residual
    assert plan.postprocessing.largest_component == ()


def test_optional_keys_are_read() -> None:
    data = tiny_plan()
    data["interpolation"]["separate_z_above"] = 3
    data["network"]["residual"] = True
    data["postprocessing"] = {"largest_component": ["first"], "minimum_volume_ml": {"second": 2}}
    plan = parse(data)
    assert plan.interpolation.separate_z_above == 3.0
    assert plan.network.residual
    assert plan.postprocessing.largest_component == ("first",)
    assert plan.postprocessing.minimum_volume_ml == {"second": 2.0}


def test_a_two_dimensional_plan_is_read() -> None:
    data = tiny_plan()
    data["network"] = {"features_per_stage": [2, 4], "strides": [[1, 1], [2, 2]], "kernel_sizes": [[3, 3], [3, 3]]}
    data["sliding_window"]["patch_size"] = [1, 16, 16]
    assert parse(data).network.dimensions == 2


MISTAKES: dict[str, tuple[Edit, str]] = {
    "unknown key": (lambda p: p.update(patches=1), "plan: unknown key patches; known are"),
    "unknown inner key": (lambda p: p["spacing"]["header"].update(slices=1), "plan.spacing.header: unknown key slices"),
    "missing key": (lambda p: p.pop("labels"), "plan: missing key labels"),
    "two missing keys": (lambda p: (p.pop("mode"), p.pop("labels")), "plan: missing key labels, mode"),
    "missing inner key": (lambda p: p["sliding_window"].pop("pad_hu"), "plan.sliding_window: missing key pad_hu"),
    "missing beside optional": (lambda p: p["network"].pop("strides"), "plan.network: missing key strides"),
    "other schema": (lambda p: p.update(schema_version=2), "schema_version is 2; this version reads 1"),
    "number for text": (lambda p: p.update(name=3), "plan.name: found 3, expected str"),
    "text for number": (lambda p: p["intensity"].update(divide_hu="110"), "plan.intensity.divide_hu: found '110'"),
    "float for integer": (lambda p: p["sliding_window"].update(patch_size=[16, 16, 16.5]), "patch_size[2]: found 16.5"),
    "bool for number": (lambda p: p["intensity"].update(subtract_hu=True), "plan.intensity.subtract_hu: found True"),
    "number for bool": (lambda p: p["network"].update(residual=1), "plan.network.residual: found 1, expected bool"),
    "null": (lambda p: p.update(sliding_window=None), "plan.sliding_window: found None, expected an object"),
    "list for object": (lambda p: p.update(spacing=[1]), "plan.spacing: found [1], expected an object"),
    "number for list": (lambda p: p.update(labels=13), "plan.labels: found 13, expected a list"),
    "list for mapping": (
        lambda p: p["postprocessing"].update(minimum_volume_ml=[]),
        "plan.postprocessing.minimum_volume_ml: found [], expected an object",
    ),
    "too few entries": (lambda p: p["spacing"].update(target_zyx_mm=[1, 2]), "target_zyx_mm: found 2 entries, expect"),
    "NaN": (lambda p: p["intensity"].update(subtract_hu=float("nan")), "plan.intensity.subtract_hu: found nan"),
    "infinity": (lambda p: p["sliding_window"].update(pad_hu=float("inf")), "plan.sliding_window.pad_hu: found inf"),
    "unknown choice": (lambda p: p.update(mode="slow"), "plan.mode: found 'slow', expected one of 'fastest', 'normal'"),
    "float for choice": (lambda p: p["interpolation"].update(image_order=1.0), "plan.interpolation.image_order: found"),
    "bool for choice": (lambda p: p["interpolation"].update(image_order=True), "plan.interpolation.image_order: found"),
    "list for choice": (lambda p: p.update(orientation=["LPS"]), "plan.orientation: found ['LPS'], expected one of"),
    "order 2": (lambda p: p["interpolation"].update(image_order=2), "found 2, expected one of 0, 1, 3"),
    "clip upside down": (
        lambda p: p["intensity"].update(clip_hu=[3, 2]),
        "plan.intensity: clip_hu must be [low, high]",
    ),
    "zero divisor": (lambda p: p["intensity"].update(divide_hu=0), "plan.intensity: divide_hu must be positive"),
    "negative spacing": (lambda p: p["spacing"].update(target_zyx_mm=[1, -1, 1]), "plan.spacing: target_zyx_mm and"),
    "empty grid": (lambda p: p["spacing"].update(largest_grid_zyx=[0, 1, 1]), "largest_grid_zyx must be positive"),
    "rule upside down": (
        lambda p: p["spacing"]["header"].update(few_slices=601),
        "few_slices must be positive and not",
    ),
    "rule's factor": (lambda p: p["spacing"]["header"].update(smallest_factor=1.5), "smallest_factor in (0, 1]"),
    "empty patch": (lambda p: p["sliding_window"].update(patch_size=[16, 0, 16]), "patch_size must be positive"),
    "odd patch": (
        lambda p: p["sliding_window"].update(patch_size=[16, 15, 16]),
        "15 is not a multiple of the total st",
    ),
    "2-D patch": (lambda p: p["network"].update(strides=[[1, 1], [2, 2]]), "strides and kernel_sizes must all have 2"),
    "step of 0": (lambda p: p["sliding_window"].update(tile_step_size=0), "tile_step_size must be in (0, 1]"),
    "sigma of 0": (
        lambda p: p["sliding_window"].update(gaussian_sigma_scale=0),
        "gaussian_sigma_scale must be positive",
    ),
    "axis 3": (
        lambda p: p["sliding_window"].update(mirror_axes=[3]),
        "mirror_axes[0]: found 3, expected one of 0, 1, 2",
    ),
    "axis twice": (lambda p: p["sliding_window"].update(mirror_axes=[0, 0]), "mirror_axes must not repeat an axis"),
    "no labels": (lambda p: p.update(labels=[]), "labels must be 1 to 254 different names"),
    "a label twice": (lambda p: p.update(labels=["liver", "liver"]), "labels must be 1 to 254 different names"),
    "too many labels": (lambda p: p.update(labels=[str(i) for i in range(255)]), "labels must be 1 to 254"),
    "unknown organ": (lambda p: p["postprocessing"].update(largest_component=["tail"]), "not in labels: tail"),
    "one stage": (
        lambda p: p["network"].update(features_per_stage=[2]),
        "plan.network: features_per_stage, strides and",
    ),
    "stride first": (lambda p: p["network"].update(strides=[[2, 2, 2], [1, 1, 1]]), "first stage works at full res"),
    "no features": (lambda p: p["network"].update(features_per_stage=[2, 0]), "features and strides must be positive"),
    "even kernel": (lambda p: p["network"].update(kernel_sizes=[[3, 3, 2]] * 2), "kernel sizes must be odd"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_refused_by_the_name_of_its_key(mistake: str) -> None:
    edit, message = MISTAKES[mistake]
    plan = tiny_plan()
    edit(plan)
    with pytest.raises(BundleError) as caught:
        parse(plan)
    assert str(caught.value).startswith("weights/x/plan.json: ")
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[1, 2", '{"name": }', "\ufeff{}", "\ufffd"])
def test_what_is_not_json_is_refused(text: str) -> None:
    with pytest.raises(BundleError, match=r"^p\.json: not JSON \(.+\); expected the plan of a bundle$"):
        parse_plan(text, "p.json")


@pytest.mark.parametrize("text", ["[]", "1", "null", '"plan"'])
def test_json_that_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(BundleError, match=r"^p\.json: plan: found .+, expected an object$"):
        parse_plan(text, "p.json")
