"""The making of pixel caches against a loop in one process, and the memory that it takes."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from cxrbench.core.store import Store
from cxrbench.data.pixel_cache import open_pixels
from cxrbench.data.pixels import Grey, decode, resize
from cxrbench.perf.harness import Comparison, Counted, Goal, Item, NotAvailableError, same_arrays

SIZES = (224, 256, 283, 320, 1024)  # all sides at which benchmarks/main.yaml reads films
# In a process of its own, as the peak of memory is a process's.
BUILDER = """
import json, re, sys
from pathlib import Path
from cxrbench.core.store import Store
from cxrbench.data.pixel_cache import open_pixels
from cxrbench.data.pixels import decode, resize
films, images, side, home = json.loads(sys.argv[1])
def read(row, sizes):
    film = decode(Path(films[row % len(films)]))
    return [resize(film, size) for size in sizes]
def anonymous():  # pages of files can be dropped at any time and are no memory that is needed
    found = Path("/proc/self/status").read_text()
    return int(re.search(r"RssAnon:\\s+(\\d+) kB", found)[1]) / 1024
peak = []
contents = [str(row) for row in range(images)]
before = anonymous()
open_pixels(read, contents, {}, side, Store(Path(home)), lambda done, of: peak.append(anonymous()))
print(json.dumps(max(peak) - before))
"""


def by_pillow_with_area(path: Path, size: int) -> Grey:
    """Pillow's RGB with the cache's own resize, so that the pixels can be equal, [S, S]."""
    with Image.open(path, formats=("PNG",)) as image:
        rgb = np.asarray(image.convert("RGB"))
    return np.ascontiguousarray(cv2.resize(rgb, (size, size), interpolation=cv2.INTER_AREA)[..., 0])


def comparisons(
    folder: Path,
    paths: list[Path],
    size: int,
    *,
    sizes: Sequence[int] = SIZES,
    images: tuple[int, int] = (1000, 4000),
) -> Iterator[Item]:
    """Caches of films at one size and at several, and the memory of two lengths."""
    for cores, least in ((1, 1.5), (2, 1.8)):
        yield _making(folder, paths, (size,), cores, least)
    for cores, least in ((1, 1.5), (2, 1.8)):
        yield _making(folder, paths[: len(paths) // 2], sizes, cores, least)
    yield _memory(folder, images)


def _making(
    folder: Path, paths: list[Path], sizes: Sequence[int], cores: int, least: float
) -> Comparison:
    number = count()
    several = len(sizes) > 1
    cores_said = f"{cores} core{'s' * (cores > 1)}"

    def read(row: int, wanted: Sequence[int]) -> list[Grey]:
        film = decode(paths[row])
        return [resize(film, size) for size in wanted]

    def ours() -> Grey:
        store = Store(folder / f"store-{cores}-{len(sizes)}-{next(number)}")
        names = [path.name for path in paths]
        with on_cores(cores):
            open_pixels(read, names, {}, sizes[0], store, also=sizes)
        found = [open_pixels(read, names, {}, size, store).images.ravel() for size in sizes]
        return np.concatenate(found)

    def peer() -> Grey:
        with on_cores(1):
            each = [[by_pillow_with_area(path, size) for path in paths] for size in sizes]
        return np.concatenate([np.stack(images).ravel() for images in each])

    at = ", ".join(map(str, sizes))
    return Comparison(
        f"cache/{cores_said.replace(' ', '-')}" + "-all-sizes" * several,
        f"pixel cache{'s' * several} of {at} px on {cores_said}, flushed to disk / a PIL loop on one",
        ours=ours,
        peer=peer,
        equal=same_arrays,
        goal=Goal("ratio", least, least=True),
        units=(len(paths), len(paths)),
        unit="image",
        note="The loop decodes to RGB and resizes by area, since the pixels must be equal; it reads a film once a size, "
        "as a loop a size does."
        if several
        else "The loop decodes to RGB and resizes by area, since the pixels must be equal; one size.",
    )


def build_memory(folder: Path, images: int, *, side: int = 64) -> float:
    """Megabytes that building the cache of so many images adds to a process, pages of files not counted."""
    folder.mkdir(parents=True, exist_ok=True)
    films = []
    for number in range(8):
        films.append(str(folder / f"{number}.png"))
        noise = np.random.default_rng(number).integers(0, 256, (96, 96), dtype=np.uint8)
        Image.fromarray(noise).save(films[-1])
    job = json.dumps([films, images, side, str(folder / f"store-{images}")])
    done = subprocess.run(
        [sys.executable, "-c", BUILDER, job], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise NotAvailableError(f"the build failed: {done.stderr.strip()[-200:]}")
    return float(json.loads(done.stdout))


def _memory(folder: Path, images: tuple[int, int]) -> Counted:
    few, many = images
    return Counted(
        "cache/memory-growth",
        f"memory of building a cache of {many:,} images beyond that of {few:,}",
        lambda: build_memory(folder / "many", many) - build_memory(folder / "few", few),
        Goal("megabytes", 16),
        note="64 px, from files of 96 px; each in a process of its own, anonymous memory after each block of 256.",
    )


class on_cores:
    """Bind this process to so many cores; NotAvailableError where there are fewer, or no such call."""

    def __init__(self, cores: int) -> None:
        self.cores = cores

    def __enter__(self) -> None:
        if not hasattr(os, "sched_setaffinity"):
            raise NotAvailableError("processes cannot be bound to cores on this system")
        self.before = os.sched_getaffinity(0)
        if len(self.before) < self.cores:
            raise NotAvailableError(f"needs {self.cores} cores, has {len(self.before)}")
        os.sched_setaffinity(0, sorted(self.before)[: self.cores])

    def __exit__(self, *error: object) -> None:
        os.sched_setaffinity(0, self.before)
