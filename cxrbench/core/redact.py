"""Paths of a machine, and secrets, taken out of what leaves it."""

import os
import re
from pathlib import Path
from typing import Any

HOME = re.compile(r"/(?:home|Users)/[^/\s]*|/root(?=/|\s|$)")
# An absolute path of some machine, but no address on the web: only its last part is published.
ABSOLUTE = re.compile(r"(?<![\w./:~])~?/(?:[^/\s\"',]+/)*([^/\s\"',]+)")
# Variables of the environment whose values are secrets.
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD", re.IGNORECASE)
SHORTEST = 8  # letters of a secret: shorter ones are words


def masked(text: str) -> str:
    """The text without the values of variables that hold secrets: logs are kept and shown."""
    for name, value in os.environ.items():
        if SECRET.search(name) and len(value) >= SHORTEST:
            text = text.replace(value, f"${name}")
    return text


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
