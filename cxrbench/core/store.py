"""The store: artefacts that exist only when complete, work in progress, jobs and records.

    artefacts/<kind>-<name>-<digest16>/   stage.json (written last) and the stage's files
    partial/<digest16>/                   work in progress: out/ is what will be published
    records/<dataset>/<method>/*.json     one per finished run, never overwritten
    jobs/<digest16>.{json,log}            what was asked, what was printed
    pixels/ splits/ cache/ locks/         what can be made again

Build in `partial/`, flush, rename: a reader sees a whole artefact or none. Two processes may race;
the second rename loses and nothing is damaged.
"""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

from cxrbench.core.errors import CannotWriteError, CxrbenchError, DataError, system_error

HOME_VARIABLE = "CXRBENCH_HOME"


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(folder: Path) -> None:
    """Flush every file and folder below `folder` to the disk."""
    for path in sorted(folder.rglob("*"), reverse=True):
        _fsync(path)
    _fsync(folder)


FULL = (errno.ENOSPC, errno.EDQUOT)
UNWRITABLE = (*FULL, errno.EROFS)
ROOM = f"free some and run the same command again, or set {HOME_VARIABLE} to another disk"


def unwritable(error: BaseException) -> OSError | None:
    """The system's error behind one: a disk that is full, over its quota or read-only; None for any other.

    torch, for one, wraps it in an error that says "unexpected pos".
    """
    return system_error(error, UNWRITABLE)


def why_not(error: BaseException, folder: Path, need: int | None = None) -> str:
    """Why something could not be written in a folder; of a full disk, the bytes that are free."""
    cause = unwritable(error) or error
    said = str((cause.strerror if isinstance(cause, OSError) else None) or cause)
    if not isinstance(cause, OSError) or cause.errno not in FULL:
        return said
    wanted = f"{need:,} bytes are needed, " if need else ""
    return f"{said}: {wanted}{free_bytes(folder):,} bytes are free; {ROOM}"


def free_bytes(folder: Path) -> int:
    """Bytes that a user may still write where a folder lies, or will lie."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def require_room(folder: Path, need: int, what: str) -> None:
    """CannotWriteError now, not after hours, when a folder's disk has no room for what will be written."""
    if (free := free_bytes(folder)) < need:
        raise CannotWriteError(
            f"{folder}: {what} need {need:,} bytes, {free:,} bytes are free; {ROOM}"
        )


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            with temporary.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _fsync(path.parent)
    except OSError as error:
        why = why_not(error, path.parent, len(data))
        raise CannotWriteError(f"{path}: cannot write ({why})") from error


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; NaN is refused."""
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_atomic(path, (text + "\n").encode())


def read_json(path: Path) -> Any:
    """Read JSON; a torn or foreign file is an error that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error}); delete it to have it made again") from None


# What a program raises that takes a value for something it is not.
MISFITS = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)
T = TypeVar("T")


def read_json_as(path: Path, take: Callable[[Any], T], what: str) -> T:
    """What `take` makes of a JSON file that cxrbench wrote; DataError names one that was edited or torn."""
    value = read_json(path)
    try:
        return take(value)
    except CxrbenchError as error:
        if str(path) in str(error):
            raise
        why = str(error)
    except MISFITS as error:
        why = f"{type(error).__name__}: {error}"
    raise DataError(f"{path}: not {what} ({why}); delete it to have it made again")


def read_note(path: Path, take: Callable[[Any], T]) -> T | None:
    """The same of a note that work leaves beside itself; None where it is absent, being written, edited or old."""
    try:
        return read_json_as(path, take, "a note")
    except (OSError, CxrbenchError):
        return None


def a_number(value: Any) -> float:
    """What counts steps or seconds in such a file; ValueError for what no counting gives."""
    found = float(value)
    if not 0 <= found < 2**53:
        raise ValueError(f"{value!r:.40} counts nothing")
    return found


class Lock:
    """An advisory lock on a file that the kernel frees when its holders die.

    The descriptor may be handed to child processes, which then hold the lock too: work that outlives a
    killed parent keeps others out.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream: IO[bytes] | None = None

    @property
    def descriptor(self) -> int:
        """The open descriptor; only while held."""
        assert self._stream is not None
        return self._stream.fileno()

    def acquire(self, *, wait: bool) -> bool:
        """Take the lock; without `wait`, False when another process holds it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        stream = self.path.open("ab")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            stream.close()
            return False
        self._stream = stream
        return True

    def held(self) -> bool:
        """Whether any process holds the lock now."""
        try:
            with self.path.open("rb") as stream:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def release(self) -> None:
        """Give the lock back."""
        if self._stream:
            self._stream.close()
            self._stream = None


class Store:
    """A folder that holds everything cxrbench makes."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().resolve()

    @classmethod
    def default(cls) -> "Store":
        """`$CXRBENCH_HOME`, else `./runs`."""
        return cls(Path(os.environ.get(HOME_VARIABLE) or "runs"))

    def folder(self, *parts: str) -> Path:
        """A folder of the store, made when missing."""
        path = self.root.joinpath(*parts)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CannotWriteError(
                f"{path}: cannot create ({error.strerror}); set {HOME_VARIABLE} to a writable folder"
            ) from error
        return path

    def check_writable(self) -> None:
        """Fail now, not after an hour of training, when the store cannot be written."""
        probe = self.folder() / f".probe-{uuid.uuid4().hex[:8]}"
        write_atomic(probe, b"cxrbench")
        probe.unlink()

    def artefact(self, key: str) -> Path:
        """Where the artefact with this key lies, or will lie."""
        return self.root / "artefacts" / key

    def has(self, key: str) -> bool:
        """Whether the artefact is complete."""
        return (self.artefact(key) / "stage.json").is_file()

    def meta(self, key: str) -> dict[str, Any]:
        """The `stage.json` of a complete artefact."""
        value = read_json(self.artefact(key) / "stage.json")
        if not isinstance(value, dict):
            raise DataError(f"{self.artefact(key)}/stage.json: not an object; delete the folder")
        return value

    def partial(self, key: str) -> Path:
        """The folder of a stage's unfinished work; survives a crash for the next try."""
        return self.folder("partial", key)

    def lock(self, key: str) -> Lock:
        """The lock that the one builder of an artefact holds."""
        return Lock(self.folder("locks") / f"{key}.lock")

    @contextlib.contextmanager
    def building(self, key: str) -> Iterator[Path]:
        """An empty folder to build an artefact in; published when the block ends without error.

        The block must leave `stage.json` to `publish`; what it raises leaves no artefact behind.
        """
        out = self.partial(key) / f"out-{uuid.uuid4().hex[:8]}"
        out.mkdir()
        try:
            yield out
        finally:
            shutil.rmtree(out, ignore_errors=True)

    def publish(self, key: str, out: Path, meta: dict[str, Any]) -> bool:
        """Make a finished folder the artefact; False when another process was first."""
        write_json(out / "stage.json", meta)
        target = self.artefact(key)
        try:
            fsync_tree(out)
            target.parent.mkdir(parents=True, exist_ok=True)
            out.rename(target)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST) and self.has(key):
                return False
            raise CannotWriteError(f"{target}: cannot publish ({why_not(error, out)})") from error
        _fsync(target.parent)
        return True

    def discard(self, key: str) -> None:
        """Remove an artefact so that it is built again; readers never see half of it."""
        target = self.artefact(key)
        if target.exists():
            doomed = self.folder("partial") / f"discarded-{uuid.uuid4().hex[:8]}"
            target.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)

    def clear_partial(self, key: str) -> None:
        """Forget a stage's unfinished work."""
        shutil.rmtree(self.root / "partial" / key, ignore_errors=True)
