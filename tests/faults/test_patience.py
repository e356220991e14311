"""Reads that fail for a moment are done again; those that fail for good name the file and remember nothing."""

import builtins
import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cxrbench.core import patience
from cxrbench.core.digest import digest_file
from cxrbench.core.errors import CxrbenchError, ReadFailedError
from cxrbench.core.spec import Execution
from cxrbench.core.store import Store
from cxrbench.data.csvfile import read_names
from cxrbench.data.dicom_file import decode_dicom, read_header
from cxrbench.data.lung_pixels import JSRT_BYTES, _decode_gif, read_jsrt
from cxrbench.data.pixel_cache import open_pixels
from cxrbench.data.pixels import UnreadableImageError, decode
from cxrbench.runner.faults import explain

from jobs import planned, stage_of  # isort: skip


class Silent(io.BytesIO):
    """An open file whose disk has gone away."""

    def __init__(self, number: int) -> None:
        super().__init__(b"")
        self.number = number

    def read(self, *_: Any) -> bytes:
        raise OSError(self.number, os.strerror(self.number))


Break = Callable[..., list[str]]


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Break:
    """Breaks the first `times` openings, or first reads, of one file; gives the list of its openings."""
    monkeypatch.setattr(patience, "PAUSES", (0.01, 0.01))
    plain = builtins.open

    def break_file(path: Path, times: int, number: int, *, at_open: bool = True) -> list[str]:
        tries: list[str] = []

        def flaky(file: Any, *words: Any, **options: Any) -> Any:
            if not isinstance(file, int) and Path(os.fsdecode(file)) == path:
                tries.append(str(file))
                if len(tries) <= times:
                    if at_open:
                        raise OSError(number, os.strerror(number), str(path))
                    return Silent(number)
            return plain(file, *words, **options)

        monkeypatch.setattr(builtins, "open", flaky)
        monkeypatch.setattr(io, "open", flaky)
        return tries

    return break_file


READERS: dict[str, Callable[[Path], Any]] = {
    "x.png": decode, "x.jpg": decode, "x.gif": _decode_gif, "x.img": read_jsrt, "x.txt": read_names,
    "x.bin": digest_file,
}  # fmt: skip


def write(folder: Path, name: str) -> Path:
    path = folder / name
    if name == "x.img":
        path.write_bytes(bytes(JSRT_BYTES))
    elif name in ("x.txt", "x.bin"):
        path.write_text("a\nb\n")
    else:
        Image.fromarray(np.arange(900, dtype=np.uint8).reshape(30, 30)).save(path)
    return path


@pytest.mark.parametrize(
    ("name", "at_open"), [*((n, True) for n in READERS), ("x.png", False), ("x.img", False)]
)
def test_a_disk_that_comes_back_gives_the_same(
    tmp_path: Path, broken: Break, name: str, at_open: bool
) -> None:
    path = write(tmp_path, name)
    wanted = READERS[name](path)
    tries = broken(path, 2, errno.ESTALE, at_open=at_open)
    assert np.array_equal(READERS[name](path), wanted)
    assert len(tries) == 3


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
@pytest.mark.parametrize("read", [decode, decode_dicom, read_header, read_jsrt, digest_file])
def test_a_disk_that_stays_away_is_named(
    tmp_path: Path, broken: Break, read: Callable[[Path], Any], number: int
) -> None:
    path = write(tmp_path, "x.png")
    tries = broken(path, 99, number)
    with pytest.raises(ReadFailedError) as raised:
        read(path)
    assert str(path) in str(raised.value) and os.strerror(number) in str(raised.value)
    assert (len(tries), raised.value.exit_code) == (3, 74)


def test_other_errors_are_not_tried_again(tmp_path: Path, broken: Break) -> None:
    path = write(tmp_path, "x.png")
    tries = broken(path, 99, errno.EACCES)
    with pytest.raises(UnreadableImageError, match="Permission denied"):
        decode(path)
    assert len(tries) == 1


def test_a_silent_disk_is_not_remembered_as_a_bad_image(
    tmp_path: Path, store: Store, broken: Break
) -> None:
    good, bad = tmp_path / "good.png", write(tmp_path, "x.png")
    good.write_bytes(bad.read_bytes())
    paths = [good, bad]

    def cache() -> Any:
        return open_pixels(
            lambda row, sides: [decode(paths[row])[:16, :16]], ["a", "b"], {}, 16, store
        )

    broken(bad, 3, errno.EIO)
    with pytest.raises(ReadFailedError, match=r"x\.png"):
        cache()
    assert not list(store.root.glob("pixels/*/done.json"))
    assert cache().unreadable == {}  # the disk is back


def test_a_silent_disk_anywhere_else_has_its_exit_code(store: Store) -> None:
    stage = stage_of(planned(store)[0], "fit")
    error = OSError(errno.EIO, "Input/output error", "/data/x.npy")
    known = explain(error, stage, Execution(), store.root)
    assert (
        isinstance(known, CxrbenchError) and known.exit_code == 74 and "/data/x.npy" in str(known)
    )
