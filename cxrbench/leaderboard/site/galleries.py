"""Pictures of analyses, made small: a thumbnail on the page, a larger one on a click.

A picture is read from an artefact and written anew, so nothing but pixels gets into the site.
"""

import io
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from cxrbench.core.errors import DataError
from cxrbench.core.gallery import Listed, read_gallery
from cxrbench.core.store import Store
from cxrbench.leaderboard.predictions import is_key

THUMB, FULL = 480, 1600  # widest side in pixels
BUDGET = 10_000_000  # bytes of all galleries; a site of 200 runs stays under 20 MB with it
FOR_LARGE = 0.6  # of it at most, so that each run has its thumbnails
MOST_PIXELS = 60_000_000
QUALITY = 80


@dataclass(frozen=True)
class Picture:
    """A picture of a page; `full` is empty where the budget had no room for it."""

    caption: str
    thumb: str
    full: str
    size: tuple[int, int]  # of the thumbnail


@dataclass(frozen=True)
class Gallery:
    """The pictures of an analysis, and what is wrong with those that are not here."""

    pictures: list[Picture]
    missing: list[str]


@dataclass
class Galleries:
    """All pictures of a site; an artefact that several runs share is copied once."""

    folder: Path
    store: Store
    films: bool = True  # pictures that show single films, too
    budget: int = BUDGET
    used: int = 0
    without_full: int = 0
    without_thumb: int = 0
    _made: dict[str, Gallery] = field(default_factory=dict)

    def of(self, key: str) -> Gallery:
        """The pictures of an artefact; paths are below the site."""
        if key not in self._made:
            self._made[key] = self._make(key)
        return self._made[key]

    def _make(self, key: str) -> Gallery:
        if not is_key(key):
            return Gallery([], ["the record names no artefact"])
        source = self.store.artefact(key)
        if not self.store.has(key):
            return Gallery([], ["the artefact is not in the store"])
        try:
            listed = read_gallery(source)
        except DataError as error:
            return Gallery([], [str(error)])
        pictures, missing = [], []
        for number, shown in enumerate(listed):
            if shown.films and not self.films:
                missing.append(f"{shown.file}: left out, it shows single films")
                continue
            try:
                pictures.append(self._picture(source, shown, f"{key}-{number}"))
            except DataError as error:
                missing.append(str(error))
        return Gallery(pictures, missing)

    def _picture(self, source: Path, shown: Listed, name: str) -> Picture:
        image = _read(source, shown.file)
        small, size = _encode(image, THUMB)
        if self.used + len(small) > self.budget:
            self.without_thumb += 1
            raise DataError(
                f"{shown.file}: left out, the site's pictures have {self.budget:,} bytes"
            )
        thumb = self._write(f"{name}.webp", small)
        full = ""
        if max(image.size) > THUMB:
            large, _ = _encode(image, FULL)
            if self.used + len(large) <= FOR_LARGE * self.budget:
                full = self._write(f"{name}-full.webp", large)
            else:
                self.without_full += 1
        return Picture(shown.caption, thumb, full, size)

    def _write(self, name: str, data: bytes) -> str:
        self.used += len(data)
        self.folder.mkdir(exist_ok=True)
        (self.folder / name).write_bytes(data)
        return f"{self.folder.name}/{name}"


def _read(source: Path, file: str) -> Image.Image:
    """The picture in RGB; DataError for what is no picture of this artefact."""
    path = source / file
    if Path(file).name != file or path.is_symlink() or not path.is_file():
        raise DataError(f"{file}: no file of the artefact")
    try:
        with Image.open(path, formats=["PNG", "JPEG"]) as image:
            if image.width * image.height > MOST_PIXELS:
                raise DataError(f"{file}: {image.width} x {image.height} pixels are too many")
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{file}: no readable picture ({type(error).__name__})") from None


def _encode(image: Image.Image, widest: int) -> tuple[bytes, tuple[int, int]]:
    copy = image.copy()
    copy.thumbnail((widest, widest), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    copy.save(stream, format="WEBP", quality=QUALITY, method=2)
    return stream.getvalue(), copy.size
