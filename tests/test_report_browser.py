"""The report in a real browser: no complaint, no request, and everything that moves does."""

import base64
import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.chromium import PROGRAM, Browser
from tests.small_report import SHAPE, app_report, organs, run, scan, write_cases, write_everything
from tools.figures.organ_colours import organ_colour_rgb
from tools.report.volumes import grey_levels

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(PROGRAM is None, reason="no chromium (Debian: apt-get install chromium)"),
]

_READY = "document.getElementById('view').dataset.case === '{}'"
_NAMED = ("slider", "radio", "checkbox", "button", "link", "combobox", "image")


@pytest.fixture(scope="module")
def whole_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_everything(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def the_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture
def page(the_browser: Browser, whole_page: Path) -> Iterator[Browser]:
    """The whole page, just opened, in the light; every test ends with a look at its console."""
    the_browser.complaints.clear()
    the_browser.requests.clear()
    the_browser.prefer("light")
    the_browser.open(whole_page)
    the_browser.wait_for(_READY.format("a"))
    yield the_browser
    assert the_browser.complaints == []
    assert the_browser.requests == [whole_page.as_uri()]


def plane(page: Browser, axis: int = 0) -> Any:
    """uint8 (rows, columns, 3): pixels of a plane's canvas."""
    data = page.value(f"document.querySelectorAll('.plane canvas')[{axis}].toDataURL()")
    with Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2]))) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def position(page: Browser, axis: int = 0) -> str:
    return str(page.value(f"document.querySelectorAll('.plane .position')[{axis}].textContent"))


def slide(page: Browser, value: int, axis: int = 0) -> None:
    """As a hand on the slider does."""
    page.value(
        f"(() => {{ const it = document.querySelectorAll('.plane input')[{axis}]; it.value = {value};"
        " it.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )


def in_the_organ(pixels: Any) -> Any:
    """Mean colour within the square that both label maps draw, away from its outline and from the cross."""
    rows, columns, _ = pixels.shape
    part = pixels[
        round(17.3 * rows / 40) : round(19 * rows / 40), round(22.3 * columns / 50) : round(24 * columns / 50)
    ]
    return part.mean(axis=(0, 1))


def order(page: Browser) -> list[str]:
    rows = page.value("[...document.querySelectorAll('#case-table tbody th')].map((cell) => cell.textContent.trim())")
    return list(rows)


def brightness(page: Browser) -> float:
    """Of the ground at the edge of the window."""
    with Image.open(io.BytesIO(page.picture())) as image:
        return float(np.asarray(image.convert("L"))[300:500, 2:10].mean())


def test_voxels_are_those_that_were_packed(page: Browser) -> None:
    expected = {"scan": grey_levels(scan().astype(np.float32)), "prediction": organs(2, 6), "reference": organs(2, 5)}
    for name, voxels in expected.items():
        digest = page.value(f"unpack('voxels-0-{name}', {list(SHAPE)}).then((voxels) => Array.from(voxels).join())")
        assert (
            hashlib.sha256(digest.encode()).digest()
            == hashlib.sha256(",".join(map(str, voxels.ravel())).encode()).digest()
        )


def test_sliders_move_through_the_scan(page: Browser) -> None:
    slide(page, 4)
    with_organ = plane(page)
    assert position(page) == "5 / 12"
    assert in_the_organ(with_organ) == pytest.approx(over_grey(organ_colour_rgb(1), 60, 0.75 * 165 / 255), abs=4)
    slide(page, 9)
    assert position(page) == "10 / 12"
    above = in_the_organ(plane(page))
    assert above == pytest.approx([(85 - 40 + 200) * 255 / 400] * 3, abs=2)  # 40 + 5 * 9 HU, no organ
    coronal = plane(page, 1)
    slide(page, 2, axis=1)  # in the air in front of the body
    assert coronal.mean() > 30
    assert plane(page, 1).mean() < 15


def over_grey(colour: tuple[int, int, int], hu: float, opacity: float) -> list[float]:
    grey = (hu - 40 + 200) * 255 / 400
    return [opacity * part + (1 - opacity) * grey for part in colour]


def test_keys_and_clicks_move_the_planes(page: Browser) -> None:
    slide(page, 4)
    page.value("document.querySelector('.plane input').focus()")
    page.press("ArrowRight")
    assert position(page) == "6 / 12"
    page.value("document.querySelector('.plane canvas').focus()")
    page.press("ArrowDown")
    assert position(page) == "5 / 12"
    page.click(".plane[data-axis='0'] canvas")  # its middle
    assert [position(page, axis) for axis in range(3)] == ["5 / 12", "21 / 40", "26 / 50"]
    assert "about 60 HU" in page.value("document.getElementById('voxel').textContent")
    assert "prediction: liver" in page.value("document.getElementById('voxel').textContent")


def test_what_lies_over_the_scan(page: Browser) -> None:
    slide(page, 6)  # only the prediction has the liver here
    page.click("#overlay [value=scan]")
    bare = in_the_organ(plane(page))
    assert bare == pytest.approx([(70 + 160) * 255 / 400] * 3, abs=2)
    page.click("#overlay [value=reference]")
    assert in_the_organ(plane(page)) == pytest.approx(bare, abs=1)
    page.click("#overlay [value=difference]")
    assert in_the_organ(plane(page)) == pytest.approx(over_grey((240, 134, 5), 70, 0.75), abs=3)  # added
    page.value(
        "(() => { const it = document.getElementById('opacity'); it.value = 0;"
        " it.dispatchEvent(new Event('input')); })()"
    )
    assert in_the_organ(plane(page)) == pytest.approx(bare, abs=1)


def test_an_organ_can_be_hidden(page: Browser) -> None:
    slide(page, 4)
    page.click("#organs input")
    assert in_the_organ(plane(page)) == pytest.approx([(60 + 160) * 255 / 400] * 3, abs=2)


def test_the_table_sorts_and_chooses(page: Browser) -> None:
    titles = page.value("[...document.querySelectorAll('#case-table thead th')].map((head) => head.textContent.trim())")
    column = titles.index("memory, MiB") + 1  # 400 and 500 MiB
    head = f"#case-table thead th:nth-child({column})"
    assert order(page) == ["a", "b"]
    page.click(f"{head} button")
    assert (order(page), page.value(f"document.querySelector('{head}').ariaSort")) == (["a", "b"], "ascending")
    page.click(f"{head} button")
    assert (order(page), page.value(f"document.querySelector('{head}').ariaSort")) == (["b", "a"], "descending")
    page.value("document.querySelector('#case-table tbody button').focus()")
    page.press("Enter")
    page.wait_for(_READY.format("b"))
    assert page.value("document.getElementById('time').dataset.run") == "b_0000"
    assert page.value("document.querySelector('#case-table [aria-current]').dataset.case") == "1"
    page.click("#overlay [value=difference]")
    slide(page, 4)
    assert in_the_organ(plane(page)) == pytest.approx(over_grey((214, 84, 196), 60, 0.75), abs=3)  # another organ


def test_curves_tell_their_values(page: Browser) -> None:
    """At 2.5 s half of 400 MiB, one core, 1500 MiB of the GPU; the app reads."""
    x, y, width = page.value(
        "(() => { const it = document.querySelector('svg.chart'); it.scrollIntoView({block: 'center'});"
        " const box = it.getBoundingClientRect(); return [box.x, box.y + 60, box.width]; })()"
    )
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x + 56 + (width - 68) * 0.25, y=y)
    page.wait_for("!document.querySelector('.tip').hidden")
    told = page.value("document.querySelector('.tip').textContent")
    assert told.startswith("2.5") and "read" in told
    for part in ("container, cores 1.00", "container 200 MiB", "host 4000 MiB", "device 1500 MiB"):
        assert part in told
    page.value("document.querySelector('svg.chart').focus()")
    page.press("ArrowRight")
    assert "2.60 s" in page.value("document.getElementById('curve-values').textContent")


def test_scores_follow_the_rules_chosen(page: Browser) -> None:
    def gallbladder() -> str:
        return str(page.value("document.querySelectorAll('#score-table tbody tr')[8].cells[2].textContent"))

    assert gallbladder() == "1.000"  # official: in neither label map
    page.click("#rules [value=corrected]")
    assert gallbladder() == "–"
    page.click("#metric [value=nsd]")
    assert "2 mm" in page.value("document.querySelectorAll('#score-table tbody tr')[8].cells[0].textContent")


def test_light_and_dark(page: Browser) -> None:
    assert brightness(page) > 200
    page.prefer("dark")
    assert brightness(page) < 60
    page.click("#theme [value=light]")
    assert brightness(page) > 200
    page.prefer("light")
    page.click("#theme [value=dark]")
    assert brightness(page) < 60


def test_everything_that_can_be_used_has_a_name(page: Browser) -> None:
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    found = [node for node in nodes if not node["ignored"] and node["role"]["value"] in _NAMED]
    assert {"slider", "radio", "checkbox", "button", "link", "combobox"} <= {node["role"]["value"] for node in found}
    assert [node for node in found if not node.get("name", {}).get("value")] == []


def test_a_narrow_window_needs_no_sideways_scrolling(page: Browser) -> None:
    page.call("Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=2, mobile=False)
    page.wait_for("document.documentElement.scrollWidth <= 390")  # curves are drawn anew in the next frame
    page.call("Emulation.clearDeviceMetricsOverride")


def test_paper_gets_no_controls(page: Browser) -> None:
    page.call("Emulation.setEmulatedMedia", media="print")
    shown = page.value("[...document.querySelectorAll('.top, .tools')].map((it) => getComputedStyle(it).display)")
    assert set(shown) == {"none"}
    assert base64.b64decode(page.call("Page.printToPDF")["data"]).startswith(b"%PDF")
    page.call("Emulation.setEmulatedMedia", media="")


def test_a_page_with_little_works_too(the_browser: Browser, tmp_path: Path) -> None:
    write_cases(tmp_path)
    (tmp_path / "predictions" / "a.nii.gz").unlink()
    assert run(tmp_path) == 1
    the_browser.complaints.clear()
    the_browser.open(tmp_path / "report.html")
    the_browser.wait_for(_READY.format("b"))
    assert the_browser.value("document.querySelector('#overlay [value=difference]').disabled")
    the_browser.click("#case-table tbody button")  # of a, which has no label map
    the_browser.wait_for("!document.getElementById('no-view').hidden")
    assert "no label map of this name" in the_browser.value("document.getElementById('no-view').textContent")
    assert the_browser.complaints == []


def test_a_case_without_stages_has_an_empty_chart(the_browser: Browser, tmp_path: Path) -> None:
    """It failed before its first stage: no time, no curves."""
    write_cases(tmp_path)
    report = app_report("a")
    report["cases"][0] |= {"status": "failed", "spans": [], "seconds": {}}
    (tmp_path / "app.json").write_text(json.dumps(report))
    assert run(tmp_path, "--app-report", "app.json") == 0
    the_browser.complaints.clear()
    the_browser.open(tmp_path / "report.html")
    the_browser.wait_for(_READY.format("a"))
    assert the_browser.value("document.querySelector('svg.chart line').getAttribute('x1')") == "56"
    the_browser.value("document.querySelector('svg.chart').focus()")
    the_browser.press("ArrowRight")
    assert "NaN" not in the_browser.value("document.getElementById('time').innerHTML")
    assert the_browser.complaints == []
