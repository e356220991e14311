"""Files to grey pixels: every kind of image is converted right or refused by name; the cache is safe."""

import errno
import json
import signal
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageFile

from cxrbench.core.digest import digest_file
from cxrbench.core.errors import CannotWriteError, DataError
from cxrbench.core.store import Store
from cxrbench.data import pixel_cache
from cxrbench.data.pixel_cache import open_pixels
from cxrbench.data.pixels import UnreadableImageError, decode, resize

Grey = npt.NDArray[np.uint8]


@pytest.fixture
def film() -> Grey:
    """A smooth picture [40, 30] that is neither symmetric nor square."""
    down, right = np.mgrid[0:40, 0:30]
    return np.asarray(np.rint(20 + 4 * down + 2 * right), np.uint8)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def write_png(path: Path, width: int, height: int, depth: int, colour: int, rows: bytes) -> Path:
    """A PNG by hand: `rows` are the filtered bytes, or their compressed form."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = chunk(b"IDAT", rows)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + body + chunk(b"IEND", b""))
    return path


def refuses(path: Path, *says: str) -> None:
    with pytest.raises(UnreadableImageError) as error:
        decode(path)
    text = str(error.value)
    assert str(path) in text
    for word in says:
        assert word in text


# --- what is converted


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA"])
def test_grey_in_any_eight_bit_mode_comes_back_as_it_was(
    tmp_path: Path, film: Grey, mode: str
) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(film).convert(mode).save(path)
    found = decode(path)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, film)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_dropped_and_not_blended(tmp_path: Path, film: Grey, mode: str) -> None:
    image = Image.fromarray(film).convert(mode)
    image.putalpha(Image.fromarray(np.where(film > 100, 0, 77).astype(np.uint8)))
    image.save(tmp_path / "x.png")
    np.testing.assert_array_equal(decode(tmp_path / "x.png"), film)


def test_colour_is_turned_to_luminance(tmp_path: Path) -> None:
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [10, 20, 30]], np.uint8)
    Image.fromarray(np.repeat(colours[:, None], 20, axis=1).repeat(5, axis=0)).save(
        tmp_path / "x.png"
    )
    expected = np.rint(colours @ [0.299, 0.587, 0.114])
    np.testing.assert_allclose(decode(tmp_path / "x.png")[::5, 0], expected, atol=1)


def test_a_palette_is_looked_up(tmp_path: Path, film: Grey) -> None:
    order = np.random.default_rng(0).permutation(256).astype(np.uint8)
    image = Image.fromarray(np.argsort(order).astype(np.uint8)[film], mode="P")
    image.putpalette(np.repeat(order, 3).tobytes())
    image.save(tmp_path / "x.png")
    assert Image.open(tmp_path / "x.png").mode == "P"
    np.testing.assert_array_equal(decode(tmp_path / "x.png"), film)
    image.save(tmp_path / "transparent.png", transparency=5)
    np.testing.assert_array_equal(decode(tmp_path / "transparent.png"), film)


def test_one_bit_is_black_and_white(tmp_path: Path, film: Grey) -> None:
    Image.fromarray(film > 100).save(tmp_path / "x.png")
    assert Image.open(tmp_path / "x.png").mode == "1"
    np.testing.assert_array_equal(decode(tmp_path / "x.png"), np.where(film > 100, 255, 0))


def test_cmyk_jpeg(tmp_path: Path, film: Grey) -> None:
    inks = np.zeros((*film.shape, 4), np.uint8)
    inks[..., 3] = 255 - film  # black ink alone
    Image.fromarray(inks, mode="CMYK").save(tmp_path / "x.jpg", quality=100)
    assert Image.open(tmp_path / "x.jpg").mode == "CMYK"
    np.testing.assert_allclose(decode(tmp_path / "x.jpg").astype(int), film, atol=3)


def test_a_jpeg_is_read_to_within_its_loss(tmp_path: Path, film: Grey) -> None:
    Image.fromarray(film).save(tmp_path / "x.JPG", quality=95)
    np.testing.assert_allclose(decode(tmp_path / "x.JPG").astype(int), film, atol=4)


@pytest.mark.parametrize("top", [4095, 65535])
def test_deep_images_keep_their_range(tmp_path: Path, top: int) -> None:
    values = np.linspace(0, top, 64 * 50).reshape(64, 50).round().astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "x.png")
    assert Image.open(tmp_path / "x.png").mode.startswith("I")
    found = decode(tmp_path / "x.png")
    np.testing.assert_array_equal(found, np.rint(values * (255 / top)))
    assert np.mean(found == 255) < 0.05
    assert np.mean(found == 0) < 0.05
    assert len(np.unique(found)) == 256


def test_a_dark_deep_image_is_not_stretched(tmp_path: Path) -> None:
    values = np.full((32, 32), 5000, np.uint16)
    Image.fromarray(values).save(tmp_path / "x.png")
    assert set(np.unique(decode(tmp_path / "x.png"))) == {round(5000 * 255 / 65535)}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["jpg", "png", "deep png"])
def test_exif_rotation_is_applied(tmp_path: Path, film: Grey, orientation: int, form: str) -> None:
    """The upright film is stored turned, with the tag that says how to turn it back."""
    undo = {
        1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
        5: lambda a: a.T, 6: lambda a: np.rot90(a), 7: lambda a: a[::-1, ::-1].T,
        8: lambda a: np.rot90(a, -1),
    }  # fmt: skip
    stored = np.ascontiguousarray(undo[orientation](film))
    if form == "deep png":
        stored = stored.astype(np.uint16) * 257
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"x.{form[-3:]}"
    Image.fromarray(stored).save(path, exif=exif, **({"quality": 100} if form == "jpg" else {}))
    found = decode(path)
    assert found.shape == film.shape
    np.testing.assert_allclose(found.astype(int), film, atol=3 if form == "jpg" else 0)


def test_real_samples_are_read(samples: Path) -> None:
    paths = [
        next(
            p
            for p in sorted((samples / folder).rglob("*"))
            if p.suffix in (".png", ".jpeg", ".jpg")
        )
        for folder in ("nih_images_sub", "kermany_sub", "covid_cxr")
    ]
    for path in paths:
        image = decode(path)
        assert min(image.shape) >= 200
        assert 10 < image.std() < 120


# --- what is refused


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "an empty file"),
        (b"<!DOCTYPE html><html>404</html>", "an HTML page (a failed download)"),
        (b"\n <HTML><body>Quota exceeded", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a git-lfs pointer"),
        (b"DICM" * 100, "an unknown format"),
    ],
)
def test_what_is_no_image_is_called_by_its_name(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(content)
    refuses(path, says, "not a PNG or JPEG image")


def test_absent_files_and_folders(tmp_path: Path) -> None:
    refuses(tmp_path / "absent.png", "No such file")
    (tmp_path / "folder.png").mkdir()
    refuses(tmp_path / "folder.png", "Is a directory")


@pytest.mark.parametrize("form", ["GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_other_formats_are_refused_whatever_they_are_called(
    tmp_path: Path, film: Grey, form: str
) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(film).save(path, form)
    refuses(path, "not a PNG or JPEG image")


@pytest.mark.parametrize("form", ["png", "jpeg"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("switched_on", [False, True])
def test_truncated_images_are_refused_even_if_another_library_allows_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, share: float, switched_on: bool
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", switched_on)
    noise = np.random.default_rng(0).integers(0, 256, (200, 200), dtype=np.uint8)
    path = tmp_path / f"x.{form}"
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    refuses(path)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_several_frames_are_refused(tmp_path: Path, film: Grey) -> None:
    frames = [Image.fromarray(np.roll(film, n, axis=0)) for n in range(3)]
    frames[0].save(tmp_path / "x.png", save_all=True, append_images=frames[1:])
    refuses(tmp_path / "x.png", "3 frames; expected one")


@pytest.mark.parametrize("shape", [(8, 8), (1, 1), (15, 400), (400, 15)])
def test_tiny_images_are_refused(tmp_path: Path, shape: tuple[int, int]) -> None:
    Image.fromarray(np.full(shape, 9, np.uint8)).save(tmp_path / "x.png")
    refuses(tmp_path / "x.png", "smaller than 16 px")
    Image.fromarray(np.full((16, 16), 9, np.uint8)).save(tmp_path / "y.png")
    assert decode(tmp_path / "y.png").shape == (16, 16)


@pytest.mark.filterwarnings("ignore:Image size")  # pytest undoes the filter of pixels.py
@pytest.mark.parametrize("side", [8001, 11_000, 60_000])
def test_bombs_are_refused_before_they_are_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: int
) -> None:
    packer = zlib.compressobj(9)
    row = b"\0" * (1 + (side + 7) // 8)
    packed = b"".join(packer.compress(row) for _ in range(200)) + packer.flush()
    path = write_png(tmp_path / "x.png", side, side, 1, 0, packed)
    assert path.stat().st_size < 200_000

    def unpack(*args: Any, **options: Any) -> None:
        raise AssertionError("the pixels were unpacked")

    monkeypatch.setattr(ImageFile.ImageFile, "load", unpack)
    refuses(path, "64,000,000 pixels")


def test_a_large_film_under_the_limit_is_read(tmp_path: Path) -> None:
    path = write_png(
        tmp_path / "x.png", 4000, 3000, 1, 0, zlib.compress((b"\0" + b"\xaa" * 500) * 3000)
    )
    image = decode(path)
    assert image.shape == (3000, 4000)
    assert image[0, :4].tolist() == [255, 0, 255, 0]


def test_an_odd_exif_tag_does_not_stop_the_rotation(tmp_path: Path, film: Grey) -> None:
    """As scanners write them: a text under a tag whose type is a number."""
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a film"
    path = tmp_path / "x.jpg"
    Image.fromarray(film).save(path, exif=exif, quality=100)
    content = path.read_bytes()
    at = content.index(b"\x01\x0e\x00\x02")
    path.write_bytes(content[:at] + b"\x01\x02" + content[at + 2 :])
    np.testing.assert_allclose(decode(path).astype(int), np.rot90(film, -1), atol=3)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["png", "jpeg"])
def test_damaged_bytes_are_refused_or_read_but_never_crash(
    tmp_path: Path, film: Grey, form: str
) -> None:
    path = tmp_path / f"x.{form}"
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a film"
    Image.fromarray(film).save(path, exif=exif)
    whole, rng, read = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(400):
        spoiled = bytearray(whole)
        for at in rng.integers(0, len(whole), rng.integers(1, 8)):
            spoiled[at] = rng.integers(0, 256)
        path.write_bytes(spoiled)
        try:
            found = decode(path)
        except UnreadableImageError:
            continue
        read += 1
        assert found.dtype == np.uint8
        assert found.ndim == 2
    assert read < 400


# --- resize


def test_resize_averages_when_shrinking_and_interpolates_when_growing() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (64, 64), dtype=np.uint8)
    blocks = image.reshape(16, 4, 16, 4).mean(axis=(1, 3))
    np.testing.assert_allclose(resize(image, 16), blocks, atol=1)
    assert resize(image, 64) is image
    grown = resize(image, 128)
    assert grown.shape == (128, 128)
    np.testing.assert_array_equal(
        grown, cv2.resize(image, (128, 128), interpolation=cv2.INTER_LINEAR)
    )


def test_resize_squeezes_to_a_square(film: Grey) -> None:
    found = resize(film, 20)
    assert found.shape == (20, 20)
    assert found.dtype == np.uint8
    assert found[0, 0] < found[0, -1] < found[-1, -1]


# --- the cache


class Reader:
    """Reads files, and counts how often."""

    def __init__(self, paths: list[Path], size: int) -> None:
        self.paths, self.size, self.calls = paths, size, 0
        self.sides: set[int] = set()
        self.asked: dict[int, set[int]] = {}

    def __call__(self, row: int, sizes: Sequence[int]) -> list[Grey]:
        self.calls += 1
        self.sides |= set(sizes)
        self.asked[row] = set(sizes)
        film = decode(self.paths[row])
        return [resize(film, size) for size in sizes]


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    found = []
    for n in range(6):
        path = tmp_path / f"{n}.png"
        noise = np.random.default_rng(n).integers(0, 256, (32, 24), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        found.append(path)
    return found


def opened(paths: list[Path], store: Store, size: int = 16, **identity: Any) -> tuple[Any, Reader]:
    reader = Reader(paths, size)
    cache = open_pixels(reader, [digest_file(p) for p in paths], identity, size, store)
    return cache, reader


def test_pixels_are_read_once(store: Store, paths: list[Path]) -> None:
    cache, reader = opened(paths, store)
    assert reader.calls == 6
    assert cache.unreadable == {}
    for row, path in enumerate(paths):
        np.testing.assert_array_equal(cache.images[row], resize(decode(path), 16))
    again, reader = opened(paths, store)
    assert reader.calls == 0
    np.testing.assert_array_equal(again.images, cache.images)
    assert isinstance(again.images, np.memmap)
    assert not again.images.flags.writeable
    assert not list((store.root / "partial").iterdir())


def test_another_content_size_or_identity_is_another_cache(store: Store, paths: list[Path]) -> None:
    folders = [opened(paths, store)[0].folder]
    folders.append(opened(paths, store, size=17)[0].folder)
    folders.append(opened(paths, store, reader="v2")[0].folder)
    folders.append(opened(paths[::-1], store)[0].folder)
    Image.fromarray(np.full((32, 24), 7, np.uint8)).save(paths[2])
    cache, reader = opened(paths, store)
    folders.append(cache.folder)
    assert len(set(folders)) == 5
    assert reader.calls == 6
    assert np.all(cache.images[2] == 7)


def test_unreadable_images_are_listed_and_black(store: Store, paths: list[Path]) -> None:
    paths[1].write_bytes(b"")
    paths[4].write_bytes(paths[4].read_bytes()[:60])
    cache, _ = opened(paths, store)
    assert sorted(cache.unreadable) == [1, 4]
    assert str(paths[1]) in cache.unreadable[1]
    assert "an empty file" in cache.unreadable[1]
    assert not cache.images[[1, 4]].any()
    assert cache.images[[0, 2, 3, 5]].any(axis=(1, 2)).all()
    assert opened(paths, store)[0].unreadable == cache.unreadable


def test_progress_is_told(store: Store, paths: list[Path]) -> None:
    told: list[tuple[int, int]] = []
    reader = Reader(paths, 16)
    open_pixels(reader, ["x"] * 6, {}, 16, store, lambda done, of: told.append((done, of)))
    assert told[-1] == (6, 6)


def test_two_builders_at_once_build_it_once(store: Store, paths: list[Path]) -> None:
    readers = [Reader(paths, 16) for _ in range(4)]
    contents = [digest_file(p) for p in paths]
    found: list[Any] = []
    at = threading.Barrier(4)

    def build(reader: Reader) -> None:
        at.wait()
        found.append(open_pixels(reader, contents, {}, 16, store))

    threads = [threading.Thread(target=build, args=(reader,)) for reader in readers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert sorted(reader.calls for reader in readers) == [0, 0, 0, 6]
    for cache in found:
        np.testing.assert_array_equal(cache.images, found[0].images)


def test_a_build_that_fails_leaves_nothing_that_looks_done(store: Store, paths: list[Path]) -> None:
    def fail(row: int, sizes: Sequence[int]) -> list[Grey]:
        raise MemoryError if row == 3 else UnreadableImageError("x")

    contents = [digest_file(p) for p in paths]
    with pytest.raises(MemoryError):
        open_pixels(fail, contents, {}, 16, store)
    assert not list((store.root / "pixels").glob("*/done.json"))
    cache = open_pixels(Reader(paths, 16), contents, {}, 16, store)
    assert cache.unreadable == {}


def test_a_half_written_cache_is_built_anew(store: Store, paths: list[Path]) -> None:
    cache, _ = opened(paths, store)
    (cache.folder / "done.json").unlink()
    (cache.folder / "images.npy").write_bytes(b"half")
    again, reader = opened(paths, store)
    assert reader.calls == 6
    np.testing.assert_array_equal(again.images[0], resize(decode(paths[0]), 16))


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: (f / "images.npy").write_bytes((f / "images.npy").read_bytes()[:-5]),
        lambda f: (f / "images.npy").write_bytes(b""),
        lambda f: (f / "images.npy").unlink(),
        lambda f: (f / "done.json").write_text("{"),
        lambda f: (f / "done.json").write_text("{}"),
        lambda f: np.save(f / "images.npy", np.zeros((5, 16, 16), np.uint8)),
        lambda f: np.save(f / "images.npy", np.zeros((6, 16, 16), np.float32)),
    ],
    ids=["cut", "empty", "gone", "torn", "other", "short", "float"],
)
def test_a_damaged_cache_is_reported_with_its_repair(
    store: Store, paths: list[Path], damage: Any
) -> None:
    cache, _ = opened(paths, store)
    folder = cache.folder
    del cache
    damage(folder)
    with pytest.raises(DataError, match=r"damaged pixel cache; delete the folder") as error:
        opened(paths, store)
    assert str(folder) in str(error.value)


# --- several sizes, and builds that were cut off


def test_one_decode_makes_every_size(store: Store, paths: list[Path]) -> None:
    contents = [digest_file(p) for p in paths]
    reader = Reader(paths, 16)
    open_pixels(reader, contents, {}, 16, store, also=[40, 24, 16])
    assert reader.calls == 6
    for size in (16, 24, 40):
        again = Reader(paths, size)
        cache = open_pixels(again, contents, {}, size, store)
        assert again.calls == 0
        for row, path in enumerate(paths):
            np.testing.assert_array_equal(cache.images[row], resize(decode(path), size))
    late = Reader(paths, 9)
    open_pixels(late, contents, {}, 9, store, also=[16, 24])
    assert late.sides == {9}, "what is there is not made again"


def test_a_size_that_another_builds_is_left_to_it(store: Store, paths: list[Path]) -> None:
    contents = [digest_file(p) for p in paths]
    cache = open_pixels(Reader(paths, 24), contents, {}, 24, store)
    (cache.folder / "done.json").unlink()
    busy = store.lock(f"pixels-{cache.folder.name}")
    assert busy.acquire(wait=False)
    reader = Reader(paths, 16)
    open_pixels(reader, contents, {}, 16, store, also=[24])
    assert reader.sides == {16}
    busy.release()


def unfinished(store: Store) -> list[int]:
    return [json.loads(p.read_text())["rows"] for p in store.root.glob("partial/*/rows.json")]


def test_a_build_that_was_cut_off_goes_on(
    store: Store, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pixel_cache, "BLOCK", 2)
    paths[0].write_bytes(b"")
    contents = [digest_file(p) for p in paths]

    class Killed(BaseException):
        pass

    class Cut(Reader):
        def __call__(self, row: int, sizes: Sequence[int]) -> list[Grey]:
            if row == 5:
                raise Killed
            return super().__call__(row, sizes)

    with pytest.raises(Killed):
        open_pixels(Cut(paths, 16), contents, {}, 16, store, also=[24])
    assert unfinished(store) == [4, 4]
    told: list[int] = []
    reader = Reader(paths, 16)
    # Now another size too: the two old ones are gone on with, the new one begins at the start.
    cache = open_pixels(
        reader, contents, {}, 16, store, lambda done, of: told.append(done), also=[24, 32]
    )
    assert (reader.calls, told) == (6, [2, 4, 6])
    assert reader.asked == {row: {32} for row in range(4)} | {row: {16, 24, 32} for row in (4, 5)}
    assert list(cache.unreadable) == [0], "it was found by the try that was cut off"
    for size in (16, 24, 32):
        images = open_pixels(Reader(paths, size), contents, {}, size, store).images
        for row, path in enumerate(paths[1:], start=1):
            np.testing.assert_array_equal(images[row], resize(decode(path), size))
    assert not list((store.root / "partial").iterdir())


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: (f / "images.npy").write_bytes(b"half"),
        lambda f: (f / "rows.json").write_text("{"),
        lambda f: (f / "rows.json").write_text("[]"),
        lambda f: (f / "rows.json").write_text('{"rows": 7, "unreadable": {}}'),
        lambda f: (f / "rows.json").unlink(),
        lambda f: np.save(f / "images.npy", np.zeros((5, 16, 16), np.uint8)),
    ],
    ids=["half", "torn", "other", "beyond", "gone", "short"],
)
def test_an_unfinished_cache_that_is_damaged_begins_anew(
    store: Store, paths: list[Path], monkeypatch: pytest.MonkeyPatch, damage: Any
) -> None:
    monkeypatch.setattr(pixel_cache, "BLOCK", 2)
    contents = [digest_file(p) for p in paths]
    reader = Reader(paths, 16)

    def stop(done: int, of: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_pixels(reader, contents, {}, 16, store, stop)
    damage(next(store.root.glob("partial/pixels-*")))
    again = Reader(paths, 16)
    images = open_pixels(again, contents, {}, 16, store).images
    assert again.calls == 6
    for row, path in enumerate(paths):
        np.testing.assert_array_equal(images[row], resize(decode(path), 16))


BUILDER = """
import os, signal, sys
from pathlib import Path
import numpy as np
from cxrbench.core.store import Store
from cxrbench.data import pixel_cache
pixel_cache.BLOCK = 8
def read(row, sizes):
    if row == 29 and sys.argv[2] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    os.write(1, f"{row}\\n".encode())
    return [np.full((s, s), row, np.uint8) for s in sizes]
pixel_cache.open_pixels(read, ["x"] * 40, {}, 16, Store(Path(sys.argv[1])), also=[20])
"""


def test_a_killed_build_goes_on_behind_its_last_block(store: Store) -> None:
    def run(what: str) -> tuple[int, set[int]]:
        words = [sys.executable, "-c", BUILDER, str(store.root), what]
        done = subprocess.run(words, capture_output=True, text=True, timeout=100)
        return done.returncode, {int(row) for row in done.stdout.split()}

    code, before = run("die")
    assert code == -signal.SIGKILL and set(range(24)) <= before
    assert run("live") == (0, set(range(24, 40)))
    for folder in store.root.glob("pixels/*"):
        images = np.load(folder / "images.npy")
        assert (images == np.arange(40)[:, None, None]).all()
    assert len(list(store.root.glob("pixels/*"))) == 2


def test_a_wrong_shape_is_never_written(store: Store) -> None:
    with pytest.raises(ValueError, match=r"row 0: uint8 \(3, 3\); expected uint8 at 4 px"):
        open_pixels(lambda row, sizes: [np.zeros((3, 3), np.uint8)], ["x"], {}, 4, store)


def test_a_reader_s_own_error_is_not_called_a_full_disk(store: Store) -> None:
    def read(row: int, sizes: Sequence[int]) -> list[Grey]:
        raise FileNotFoundError(2, "No such file", "film.bin")

    with pytest.raises(FileNotFoundError, match=r"film\.bin"):
        open_pixels(read, ["x"], {}, 4, store)


def test_a_full_disk_is_said(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    with pytest.raises(CannotWriteError, match="No space left on device"):
        open_pixels(lambda row, sizes: [np.zeros((4, 4), np.uint8)], ["x"], {}, 4, store)
