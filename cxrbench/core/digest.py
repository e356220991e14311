"""Identity: canonical JSON and SHA-256."""

import hashlib
import inspect
import json
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from cxrbench.core.patience import patient

PACKAGE = Path(__file__).resolve().parents[1]


# `json.dumps` would make an encoder for each of thousands of short values.
_ENCODER = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
)


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no blanks, no NaN."""
    return _ENCODER.encode(value)


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, hexadecimal."""
    return digest_text(canonical_json(value))


def digest_text(text: str) -> str:
    """SHA-256 of a text that is canonical JSON already."""
    return hashlib.sha256(text.encode()).hexdigest()


def canonical_object(value: Mapping[str, Any], texts: Mapping[str, str]) -> str:
    """The canonical JSON of {**value, **texts}, where those of `texts` are canonical JSON already."""
    members: list[str] = []
    between: dict[str, Any] = {}  # encoded together, as a call of the encoder costs much
    for key in sorted([*value, *texts]):
        if key not in texts:
            between[key] = value[key]
            continue
        if between:
            members.append(canonical_json(between)[1:-1])
            between = {}
        members.append(f"{canonical_json(key)}:{texts[key]}")
    if between:
        members.append(canonical_json(between)[1:-1])
    return "{" + ",".join(members) + "}"


def digest_lines(lines: Iterable[str]) -> str:
    """SHA-256 of lines of text, without building one large string."""
    sha = hashlib.sha256()
    for line in lines:
        sha.update(line.encode("utf-8", "surrogateescape"))  # file names need not be UTF-8
        sha.update(b"\n")
    return sha.hexdigest()


@patient
def digest_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@lru_cache(maxsize=1)
def package_digest() -> str:
    """SHA-256 over every source file of this package; changes with any edit."""
    files = sorted(PACKAGE.rglob("*.py"))
    return digest_lines(f"{path.relative_to(PACKAGE)} {digest_file(path)}" for path in files)


def source_digest(cls: type) -> str:
    """SHA-256 of a class's text; at an equal `version` it should be equal too."""
    # `inspect` counts comments after the last statement to the class; the parser does not.
    text = re.sub(r"(?:\n[ \t]*#[^\n]*|\n[ \t]*)+\Z", "", inspect.getsource(cls))
    return hashlib.sha256(f"{text}\n".encode()).hexdigest()
