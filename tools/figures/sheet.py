"""A dark sheet addressed in pixels from its upper left corner: pictures, letters, lines and a legend on it."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import hypot
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.transforms import IdentityTransform
from PIL import Image

from app.atomic_files import atomic_file
from tools.figures.organ_colours import organ_colour
from tools.figures.slices import RgbArray, palette_of_slices

DPI = 150
LEGEND_WIDTH_PX = 480

_BACKGROUND, _TEXT, _DIM, _FAINT, _FRAME = "#0b0d10", "#f2f4f7", "#a3abb5", "#626b75", "#2a3037"
_LEGEND_ROW_PX, _KEY_ENTRY_PX = 36, 275
_TICK_PX = 12
_MARK_INSET_PX, _MARK_ROOM_PX = 22, 36


@dataclass(frozen=True)
class Panel:
    """One plane and its place.

    Attributes:
        name: what the caption says.
        position: and what it says at the right.
        image: uint8 (rows, columns, 3).
        left_px, top_px: of its upper left pixel.
        marks: letters at the left, right, top and bottom edge, or none.
        crossings: where the other two planes cut this one, as parts of its width and height; None: no ticks.
        tags: (label, column, row) of the numbers on organs.
        corner: text in the upper left corner.
    """

    name: str
    position: str
    image: RgbArray
    left_px: int
    top_px: int
    marks: tuple[str, str, str, str] | None = None
    crossings: tuple[float, float] | None = None
    tags: tuple[tuple[int, int, int], ...] = ()
    corner: str = ""

    @property
    def width_px(self) -> int:
        """Columns."""
        return int(self.image.shape[1])

    @property
    def height_px(self) -> int:
        """Rows."""
        return int(self.image.shape[0])


def legend_height_px(organs: int) -> int:
    """Height of the legend: a heading, one row an organ, a remark."""
    return (organs + 2) * _LEGEND_ROW_PX


def key_height_px(organs: int, width_px: int) -> int:
    """Height of the key of a wide sheet: its rows and a remark. 13 organs on 1100 pixels take four rows and one."""
    return (-(-organs // _key_columns(width_px)) + 1) * _LEGEND_ROW_PX


def write_picture(image: Image.Image, out_png: Path, palette: bool) -> None:
    """Writes the pixels of a sheet; ``palette`` for 256 colours and a smaller file.

    Raises:
        FolderError: it cannot be written.
    """
    if palette:  # an adaptive one would give up the colours of small organs for greys
        colours = Image.new("P", (1, 1))
        colours.putpalette(palette_of_slices())
        image = image.quantize(palette=colours, dither=Image.Dither.NONE)
    with atomic_file(out_png) as stream:
        image.save(stream, format="PNG", dpi=(DPI, DPI), optimize=palette)


class Sheet:
    """What is drawn lands on exact pixels, so images are not interpolated again."""

    def __init__(self, width_px: int, height_px: int) -> None:
        self._height = height_px
        self._figure = Figure(figsize=(width_px / DPI, height_px / DPI), dpi=DPI, facecolor=_BACKGROUND)
        self._canvas = FigureCanvasAgg(self._figure)

    def pixels(self) -> Image.Image:
        """The sheet as RGB."""
        self._canvas.draw()  # type: ignore[no-untyped-call]
        rgba = np.asarray(self._canvas.buffer_rgba())  # type: ignore[no-untyped-call]
        return Image.fromarray(rgba[..., :3].copy())

    def header(self, left: int, right: int, title: str, details: str, credit: str) -> None:
        """The headline, a line of details under it, and a remark at the right."""
        self._text(left, 52, title, size=13.5, weight="bold", baseline="baseline")
        self._text(left, 80, details, size=8, colour=_DIM, baseline="baseline")
        self._text(right, 80, credit, size=8, colour=_DIM, anchor="right", baseline="baseline")

    def panel(self, panel: Panel) -> None:
        """A plane with its caption, frame, edge marks, numbers, and ticks where the other planes cut."""
        left, top = panel.left_px, panel.top_px
        right, bottom = left + panel.width_px, top + panel.height_px
        self._figure.figimage(panel.image, left, self._height - bottom, origin="upper")
        self._line([left, right, right, left, left], [top, top, bottom, bottom, top], _FRAME)
        self._text(left, top - 10, panel.name, size=9, weight="bold", baseline="baseline")
        self._text(right, top - 10, panel.position, size=8, colour=_DIM, anchor="right", baseline="baseline")
        self._marks(panel)
        if panel.crossings:
            column, row = left + panel.crossings[0] * panel.width_px, top + panel.crossings[1] * panel.height_px
            for start, end in ((left, left + _TICK_PX), (right - _TICK_PX, right)):
                self._line([start, end], [row, row], _TEXT)
            for start, end in ((top, top + _TICK_PX), (bottom - _TICK_PX, bottom)):
                self._line([column, column], [start, end], _TEXT)
        for label, tag_column, tag_row in panel.tags:
            column, row = left + tag_column, top + tag_row
            if all(hypot(column - other[0], row - other[1]) > _MARK_ROOM_PX for other in _mark_places(panel)):
                self._text(column, row, str(label), size=6.5, weight="bold", anchor="center", stroke=1.6)
        if panel.corner:
            self._text(left + 12, top + 30, panel.corner, size=11, weight="bold", baseline="baseline", stroke=2.2)

    def scale_bar(self, panel: Panel, length_px: float, text: str) -> None:
        """A bar of known length at the lower left of a panel."""
        left, bottom = panel.left_px + 22, panel.top_px + panel.height_px - 22
        self._line([left, left + length_px], [bottom, bottom], _TEXT, width=2.0)
        self._text(left + length_px / 2, bottom - 9, text, size=7.5, anchor="center", baseline="baseline", stroke=1.6)

    def legend(self, left: int, top: int, volumes_ml: Mapping[str, float], remark: str) -> None:
        """Colour, number, name and volume of every organ; label 1 first."""
        right = left + LEGEND_WIDTH_PX
        row = top + _LEGEND_ROW_PX / 2
        self._text(left, row, "Organ", size=8, colour=_DIM)
        self._text(right, row, "Volume (ml)", size=8, colour=_DIM, anchor="right")
        self._line([left, right], [top + _LEGEND_ROW_PX, top + _LEGEND_ROW_PX], _FRAME)
        for label, (organ, volume) in enumerate(volumes_ml.items(), start=1):
            row += _LEGEND_ROW_PX
            found = volume > 0
            self._swatch(left, row, organ_colour(label), found)
            self._text(left + 60, row, str(label), size=9.5, colour=_DIM if found else _FAINT, anchor="right")
            self._text(left + 78, row, organ, size=9.5, colour=_TEXT if found else _FAINT)
            text = f"{volume:,.1f}" if found else "not found"
            self._text(right, row, text, size=9.5, colour=_TEXT if found else _FAINT, anchor="right")
        self._text(left, row + _LEGEND_ROW_PX + 10, remark, size=7.5, colour=_FAINT)

    def key(self, left: int, top: int, right: int, organs: Mapping[str, bool], remark: str) -> None:
        """Colour, number and name of every organ, label 1 first, in rows; faint if it is not shown anywhere."""
        columns = _key_columns(right - left)
        for index, (organ, shown) in enumerate(organs.items()):
            column = left + index % columns * ((right - left) / columns)
            row = top + (index // columns + 0.5) * _LEGEND_ROW_PX
            self._swatch(column, row, organ_colour(index + 1), shown)
            colour = _TEXT if shown else _FAINT
            self._text(column + 50, row, str(index + 1), size=8.5, colour=colour, anchor="right")
            self._text(column + 60, row, organ, size=8.5, colour=colour)
        bottom = top + key_height_px(len(organs), right - left)
        self._text(left, bottom - _LEGEND_ROW_PX / 2, remark, size=7.5, colour=_DIM)

    def _marks(self, panel: Panel) -> None:
        for mark, (column, row) in zip(panel.marks or "", _mark_places(panel), strict=False):
            self._text(column, row, mark, size=10, weight="bold", anchor="center", stroke=2.2)

    def _swatch(self, left: float, row: float, colour: str, found: bool) -> None:
        patch = Rectangle(
            (left, self._height - row - 8),
            20,
            16,
            facecolor=colour if found else "none",
            edgecolor=colour if found else _FAINT,
            linewidth=0.8,
            transform=IdentityTransform(),
        )
        self._figure.add_artist(patch)

    def _line(self, columns: list[float], rows: list[float], colour: str, width: float = 0.6) -> None:
        flipped = [self._height - row for row in rows]
        line = Line2D(columns, flipped, color=colour, linewidth=width, transform=IdentityTransform())
        self._figure.add_artist(line)

    def _text(
        self,
        column: float,
        row: float,
        text: str,
        size: float,
        colour: str = _TEXT,
        weight: str = "normal",
        anchor: str = "left",
        baseline: str = "center_baseline",
        stroke: float = 0.0,
    ) -> None:
        artist = self._figure.text(
            column,
            self._height - row,
            text.encode(errors="backslashreplace").decode(),  # a file's name may not be UTF-8
            fontsize=size,
            color=colour,
            fontweight=weight,
            fontfamily="DejaVu Sans",
            horizontalalignment=anchor,
            verticalalignment=baseline,
            parse_math=False,
            transform=IdentityTransform(),
        )
        if stroke:
            artist.set_path_effects([withStroke(linewidth=stroke, foreground="black", alpha=0.75)])


def _key_columns(width_px: int) -> int:
    return max(1, width_px // _KEY_ENTRY_PX)


def _mark_places(panel: Panel) -> tuple[tuple[float, float], ...]:
    """(column, row) of the letters at the left, right, top and bottom edge."""
    across, down = panel.left_px + panel.width_px / 2, panel.top_px + panel.height_px / 2
    right, bottom = panel.left_px + panel.width_px, panel.top_px + panel.height_px
    return (
        (panel.left_px + _MARK_INSET_PX, down),
        (right - _MARK_INSET_PX, down),
        (across, panel.top_px + _MARK_INSET_PX),
        (across, bottom - _MARK_INSET_PX),
    )
