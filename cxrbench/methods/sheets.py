"""Pictures of reports: contact sheets with captions, line plots, and the list that captions the files.

A picture is a Pillow image or an array: floats in [0, 1] or uint8, [S, S] grey or [S, S, 3] colour.
"""

import math
from collections.abc import Callable, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from cxrbench.core.gallery import GALLERY
from cxrbench.core.store import write_json

Picture = Image.Image | npt.NDArray[Any]
Cell = tuple[Picture, str] | None  # None leaves its place blank
Points = Sequence[tuple[float, float]]
TILE = 224  # pixels of a picture's side in a sheet
GAP = 6  # pixels between pictures
BAR = 20  # pixels for a caption
COLOURS = ("#1b6ca8", "#c8553d", "#3a8f5c", "#8661a5", "#777777", "#b8860b", "#2f4858", "#d16ba5")
BINS = 24  # of a histogram
LEAST_OF_A_MEAN = 20  # films, of which a mean shows none
TICKS = 5  # labelled places of an axis, about
DOTTED = 12  # lines of at most so many points show them


def as_image(picture: Picture) -> Image.Image:
    """A picture as a Pillow image; floats are cut to [0, 1]."""
    if isinstance(picture, Image.Image):
        return picture
    if picture.dtype != np.uint8:
        picture = (np.clip(picture, 0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(picture)


def tile(picture: Picture, side: int = TILE) -> Image.Image:
    """A picture at [side, side]: pixels are repeated when it grows and averaged when it shrinks."""
    image = as_image(picture)
    how = Image.Resampling.NEAREST if image.width < side else Image.Resampling.BOX
    return image if image.size == (side, side) else image.resize((side, side), how)


def contact_sheet(
    rows: Sequence[Sequence[Cell]], *, side: int = TILE, font_size: int = 12
) -> Image.Image:
    """Rows of pictures with a caption under each; grey unless one of them has colour."""
    font = ImageFont.load_default(font_size)
    cells = [
        (y, x, tile(cell[0], side), cell[1])
        for y, row in enumerate(rows)
        for x, cell in enumerate(row)
        if cell is not None
    ]
    mode = "RGB" if any(image.mode != "L" for _, _, image, _ in cells) else "L"
    width = max(len(row) for row in rows) * (side + GAP)
    sheet = Image.new(mode, (width, len(rows) * (side + BAR)), "white")
    pen = ImageDraw.Draw(sheet)
    for y, x, image, caption in cells:
        left, top = x * (side + GAP), y * (side + BAR)
        sheet.paste(image, (left, top))
        shown = _fitting(caption, side - 3, font.getlength)
        pen.text((left + 3, top + side + 2), shown, fill="black", font=font)
    return sheet


def _fitting(text: str, width: float, length: Callable[[str], float]) -> str:
    """The text, or as much of it as there is room for, with an ellipsis."""
    if length(text) <= width:
        return text
    while text and length(f"{text}…") > width:
        text = text[:-1]
    return f"{text.rstrip()}…"


def plot(
    lines: Mapping[str, Points], across: str, up: str, *, from_zero: bool = False
) -> Image.Image:
    """Lines with a legend beside them; the axes end where the data do, or the upright one begins at 0.

    Points whose height is not finite are left out; ValueError when none is left.
    """
    kept = {
        name: [p for p in points if np.isfinite(p[1])] for name, points in lines.items() if points
    }
    every = np.array([point for points in kept.values() for point in points])
    if not len(every):
        raise ValueError(f"{up} by {across}: no point to draw")
    low, high = every.min(axis=0), every.max(axis=0)
    if from_zero:
        low[1] = min(low[1], 0.0)
    span = np.where(high > low, high - low, 1.0)
    side, edge, font = 420, 70, ImageFont.load_default(14)
    legend = 34 + max(int(font.getlength(name)) for name in kept)
    picture = Image.new("RGB", (side + 2 * edge + legend, side + 2 * edge), "white")
    pen = ImageDraw.Draw(picture)

    def place(point: Sequence[float]) -> tuple[float, float]:
        x, y = (np.asarray(point) - low) / span
        return edge + float(x) * side, edge + (1 - float(y)) * side

    _axes(pen, low, span, side, edge)
    for n, (name, points) in enumerate(kept.items()):
        colour = COLOURS[n % len(COLOURS)]
        places = [place(point) for point in points]
        pen.line(places, fill=colour, width=2)
        for x, y in places if len(places) <= DOTTED else ():
            pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
        pen.text((edge + side + 20, edge + 12 + 20 * n), name, fill=colour, font=font)
    pen.text((edge, edge + side + 30), across, fill="black", font=font)
    pen.text((edge, edge - 26), up, fill="black", font=font)
    return picture


def _axes(
    pen: ImageDraw.ImageDraw, low: npt.NDArray[Any], span: npt.NDArray[Any], side: int, edge: int
) -> None:
    font = ImageFont.load_default(12)
    for value in ticks(low[0], low[0] + span[0]):
        x = edge + (value - low[0]) / span[0] * side
        pen.line((x, edge, x, edge + side), fill="#e6e6e6")
        pen.text((x, edge + side + 6), f"{value:.4g}", fill="black", font=font, anchor="ma")
    for value in ticks(low[1], low[1] + span[1]):
        y = edge + (1 - (value - low[1]) / span[1]) * side
        pen.line((edge, y, edge + side, y), fill="#e6e6e6")
        pen.text((edge - 6, y), f"{value:.4g}", fill="black", font=font, anchor="rm")
    pen.rectangle((edge, edge, edge + side, edge + side), outline="#999999")


def ticks(low: float, high: float) -> list[float]:
    """Round numbers from `low` to `high`, about five: 1, 2 or 5 times a power of ten apart."""
    power = 10.0 ** math.floor(math.log10((high - low) / TICKS))
    step = next(m * power for m in (1, 2, 5, 10) if (high - low) / (m * power) <= TICKS)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [n * step for n in range(first, last + 1)]


def histograms(
    panels: Mapping[str, Mapping[str, npt.ArrayLike]], across: str, *, columns: int = 4
) -> Image.Image:
    """A panel a name: the outlines of its samples, each in shares of its own, from the least value to the most."""
    width, height, edge, top = 200, 120, 14, 40
    wide, high = width + 2 * edge, height + top + 34
    shape = min(columns, len(panels)) * wide, math.ceil(len(panels) / columns) * high
    sheet = Image.new("RGB", shape, "white")
    for number, (name, samples) in enumerate(panels.items()):
        panel = Image.new("RGB", (wide, high), "white")
        pen, font = ImageDraw.Draw(panel), ImageFont.load_default(12)
        pen.text((edge, 4), _fitting(name, width, font.getlength), fill="black", font=font)
        _outlines(pen, {n: np.asarray(v) for n, v in samples.items()}, (edge, top, width, height))
        middle = (edge + width / 2, top + height + 4)
        pen.text(middle, across, fill="black", font=font, anchor="ma")
        sheet.paste(panel, (number % columns * wide, number // columns * high))
    return sheet


def _outlines(
    pen: ImageDraw.ImageDraw,
    samples: Mapping[str, npt.NDArray[Any]],
    frame: tuple[int, int, int, int],
) -> None:
    """Histograms of samples in a frame (left, top, width, height), with a legend above and the ends below."""
    left, top, width, height = frame
    font, place = ImageFont.load_default(12), left
    every = np.concatenate(list(samples.values()))
    ends = (float(every.min()), float(every.max()))
    shares = {n: np.histogram(v, BINS, ends)[0] / len(v) for n, v in samples.items()}
    most = max(float(values.max()) for values in shares.values())
    for (name, share), colour in zip(shares.items(), COLOURS, strict=False):
        edges = [left + n * width / BINS for n in range(BINS + 1)]
        tops = [top + height * (1 - value / most) for value in share]
        pen.line(
            [(x, y) for n, y in enumerate(tops) for x in edges[n : n + 2]], fill=colour, width=2
        )
        said = f"{name} ({len(samples[name])})"
        pen.text((place, top - 19), said, fill=colour, font=font)
        place += int(font.getlength(said)) + 12
    base = top + height
    pen.line((left, base, left + width, base), fill="#999999")
    pen.text((left, base + 4), f"{ends[0]:.3g}", fill="black", font=font)
    pen.text((left + width, base + 4), f"{ends[1]:.3g}", fill="black", font=font, anchor="ra")


def bars(rows: Mapping[str, Mapping[str, float]], across: str) -> Image.Image:
    """Bars from 0 to the right with their values: a group a name, in it a colour a series."""
    font, bar, length, gap = ImageFont.load_default(13), 16, 380, 10
    series = list(dict.fromkeys(name for row in rows.values() for name in row))
    colours = {name: COLOURS[k % len(COLOURS)] for k, name in enumerate(series)}
    most = max((value for row in rows.values() for value in row.values()), default=0.0) or 1.0
    left = 20 + max(int(font.getlength(name)) for name in rows)
    high = sum(bar * len(row) + gap for row in rows.values())
    legend = sum(int(font.getlength(name)) + 16 for name in series)
    sheet = Image.new("RGB", (left + max(length, legend) + 80, high + 64), "white")
    pen, place, y = ImageDraw.Draw(sheet), left, 34
    for name, colour in colours.items():
        pen.text((place, 8), name, fill=colour, font=font)
        place += int(font.getlength(name)) + 16
    for name, row in rows.items():
        middle = (left - 8, y + bar * len(row) / 2)
        pen.text(middle, name, fill="black", font=font, anchor="rm")
        for inner, value in row.items():
            end = left + round(length * value / most)
            pen.rectangle((left, y + 1, end, y + bar - 2), fill=colours[inner])
            said = f"{value:.3g}"
            pen.text((end + 6, y + bar / 2), said, fill="black", font=font, anchor="lm")
            y += bar
        y += gap
    pen.line((left, 30, left, y), fill="#999999")
    pen.text((left, y + 4), across, fill="black", font=font)
    return sheet


def beside(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures in a row."""
    width, height = sum(p.width for p in pictures), max(p.height for p in pictures)
    row = Image.new("RGB", (width, height), "white")
    left = 0
    for picture in pictures:
        row.paste(picture, (left, 0))
        left += picture.width
    return row


class Shown(NamedTuple):
    """A picture of a gallery."""

    picture: Image.Image
    caption: str
    films: bool  # single films can be seen in it, be it only one


def write_gallery(out: Path, pictures: Mapping[str, Shown]) -> None:
    """Save pictures under their file names, and list them in `gallery.json` with what they show."""
    for file, shown in pictures.items():
        shown.picture.save(out / file)
    listed = [
        {"file": file, "caption": shown.caption, "films": shown.films}
        for file, shown in pictures.items()
    ]
    write_json(out / GALLERY, listed)


def is_of_many(films: Sized) -> bool:
    """Whether in a mean of these no single film is seen any more."""
    return len(films) >= LEAST_OF_A_MEAN
