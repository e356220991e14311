"""Reads from disks that fail for a moment, as network file systems do: tried again, then given up by name."""

import errno
import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from cxrbench.core.errors import ReadFailedError, system_error

PASSING = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT)
PAUSES = (0.5, 2.0)  # seconds before the second and the third try
Result = TypeVar("Result")


def passing(error: BaseException | None) -> OSError | None:
    """The system's error behind one, if the same read may succeed a moment later."""
    return system_error(error, PASSING)


def patient(read: Callable[..., Result]) -> Callable[..., Result]:
    """A reader of a file, its first argument, that tries three times; then ReadFailedError names the file.

    So that a disk's moment of silence is never remembered as a bad image.
    """

    @functools.wraps(read)
    def again(path: Path, *words: Any, **options: Any) -> Result:
        why: OSError | None = None
        for pause in (0.0, *PAUSES):
            if pause:
                time.sleep(pause)
            try:
                return read(path, *words, **options)
            except Exception as error:
                why = passing(error)
                if why is None:
                    raise
        raise given_up(path, why)

    return again


def given_up(path: Path | str, why: OSError | None) -> ReadFailedError:
    """The error for a read that failed every time."""
    said = os.strerror(why.errno) if why and why.errno else "no answer"
    return ReadFailedError(
        f"{path}: cannot be read ({said}, {1 + len(PAUSES)} tries); is the disk or the network mount well? Then "
        f"run the same command again"
    )
