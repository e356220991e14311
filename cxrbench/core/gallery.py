"""The list of an analysis's pictures: `gallery.json` in its artefact, with a caption for each file."""

from pathlib import Path
from typing import NamedTuple

from cxrbench.core.errors import DataError
from cxrbench.core.store import read_json

GALLERY = "gallery.json"


class Listed(NamedTuple):
    """A picture of an artefact."""

    file: str
    caption: str
    films: bool  # shows single films, which the licence of a data set may keep from being handed on


def read_gallery(artefact: Path) -> list[Listed]:
    """The pictures of an artefact, none where it has no list; DataError for a list that is none.

    A picture of which the list does not say what it shows is taken to show films.
    """
    path = artefact / GALLERY
    if not path.is_file():
        return []
    value = read_json(path)
    if not isinstance(value, list):
        raise DataError(f"{GALLERY}: not a list")
    found = []
    for entry in value:
        if not isinstance(entry, dict) or not isinstance(entry.get("file"), str):
            raise DataError(f"{GALLERY}: an entry names no file")
        films = entry.get("films") is not False
        found.append(Listed(entry["file"], str(entry.get("caption", "")), films))
    return found
