"""What a running sweep leaves in the store for `cxrbench status`: true while its lock is held."""

import os
import time
import uuid
from collections.abc import Callable
from typing import Any

from cxrbench.core.errors import CannotWriteError
from cxrbench.core.store import Lock, Store, read_note, write_json
from cxrbench.runner.progress import Status, from_json, to_json

EVERY = 5.0  # seconds between two notices
FOLDER = "sweeps"


class Notice:
    """The notice of one sweep, there while the sweep is."""

    def __init__(self, store: Store, name: str, tell: Callable[[str], None]) -> None:
        self.name, self.tell = name, tell
        folder = store.folder(FOLDER)
        _forget_dead(store)
        self.path = folder / f"{os.getpid()}-{uuid.uuid4().hex[:8]}.json"
        self.lock = Lock(self.path.with_suffix(".lock"))
        self.lock.acquire(wait=True)
        self._last = float("-inf")
        self._broken = False

    def show(self, status: Status) -> None:
        """Write the status if the last one is old; a full disk costs the notice, not the sweep."""
        now = time.monotonic()
        if self._broken or (now - self._last < EVERY and not status.stopping):
            return
        self._last = now
        try:
            write_json(self.path, {"name": self.name, "status": to_json(status)})
        except CannotWriteError as error:
            self._broken = True
            self.tell(f"`cxrbench status` will not see this sweep: {error}")

    def __enter__(self) -> "Notice":
        return self

    def __exit__(self, *raised: object) -> None:
        self.path.unlink(missing_ok=True)
        self.lock.path.unlink(missing_ok=True)
        self.lock.release()


def _forget_dead(store: Store) -> None:
    """Remove what sweeps that were killed have left."""
    for path in store.root.glob(f"{FOLDER}/*.lock"):
        lock = Lock(path)
        if lock.acquire(wait=False):
            path.with_suffix(".json").unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            lock.release()


def running_sweeps(store: Store) -> list[dict[str, Any]]:
    """(name, status) of each sweep of this store that runs now."""
    found = []
    for path in sorted(store.root.glob(f"{FOLDER}/*.json")):
        if not Lock(path.with_suffix(".lock")).held():
            continue
        sweep = read_note(
            path, lambda value: {"name": str(value["name"]), "status": from_json(value["status"])}
        )
        if sweep:  # else it ends just now
            found.append(sweep)
    return found
