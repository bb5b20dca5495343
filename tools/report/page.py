"""The page as HTML: one file with its style, script and data in it, which asks no network for anything."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from app.atomic_files import atomic_file
from tools.report.content import Page

_HERE = Path(__file__).parent
_NOT_UTF8 = re.compile("[\ud800-\udfff]")
_SCRIPTS = ("voxels.js", "viewer.js", "charts.js", "scores.js", "report.js")


def write_page(page: Page, out: Path) -> None:
    """Writes the page, all at once or not at all.

    Raises:
        FolderError: it cannot be written.
    """
    with atomic_file(out) as stream:
        for part in render(page):
            stream.write(part.encode(errors="backslashreplace"))  # what is not UTF-8 in a file's name


def render(page: Page) -> Iterator[str]:
    """The parts of the page, one after another."""
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("template.html").generate(
        page=page,
        style=Markup(_text("report.css")),
        script=Markup("\n".join(map(_text, _SCRIPTS))),
        data=Markup(as_script_data(page.data)),
    )


def as_script_data(data: Mapping[str, Any]) -> str:
    """JSON that no name or message in it can break out of: ``</script>`` becomes ``\\u003c/script>``.

    A name that is not UTF-8 is the same text as in the page's tables, so that the script finds it there.
    """
    text = json.dumps(data, allow_nan=False, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return _NOT_UTF8.sub(lambda found: f"\\\\u{ord(found[0]):x}", text)


def _text(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")
