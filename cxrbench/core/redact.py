"""Paths of a machine taken out of what leaves it, and with them home folders and user names."""

import re
from pathlib import Path
from typing import Any

HOME = re.compile(r"/(?:home|Users)/[^/\s]*|/root(?=/|\s|$)")
# An absolute path of some machine, but no address on the web: only its last part is published.
ABSOLUTE = re.compile(r"(?<![\w./:~])~?/(?:[^/\s\"',]+/)*([^/\s\"',]+)")


def redact(value: Any) -> Any:
    """A JSON value without absolute paths: of each only the last part is left."""
    if isinstance(value, dict):
        return {key: redact(item) for key, item in value.items()}
    if isinstance(value, list):
        return [redact(item) for item in value]
    if not isinstance(value, str):
        return value
    home = str(Path.home())
    plain = value.replace(home, "~") if len(home) > 1 else value
    return ABSOLUTE.sub(r".../\1", HOME.sub("~", plain))
