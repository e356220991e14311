"""How cost grows: the same work at several sizes, and the exponent of each curve."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cxrbench.core.registry import Registry
from cxrbench.core.spec import BenchSpec
from cxrbench.core.store import Store
from cxrbench.data.index import Index
from cxrbench.data.pixel_cache import open_pixels
from cxrbench.data.pixels import Grey
from cxrbench.data.splits import stratified_folds
from cxrbench.metrics.delong import clustered_delong
from cxrbench.perf.harness import Curve, Item
from cxrbench.perf.statistics import draw_cohort, replicates, sorted_once
from cxrbench.perf.sweep import fill_store, many_runs
from cxrbench.runner.plan import make_plan
from cxrbench.runner.status import read_status

Call = Callable[[], Any]
LABELS = 14
IMAGES = 8000
REPLICATES = 20


def comparisons(folder: Path, *, scale: int = 1) -> Iterator[Item]:
    """All curves; tests divide the sizes by `scale`."""

    def sizes(*full: int) -> tuple[int, ...]:
        return tuple(max(10, size // scale) for size in full)

    # The largest is ChestX-ray14.
    images, labels = sizes(1000, 8000, 32_000, 112_120), (2, 4, 8, 16)
    some = max(50, IMAGES // scale)
    yield Curve("growth/scores-images", f"AUC, AP and P@95R of {LABELS} labels", "images", images,
                lambda n: _scores(n, LABELS))  # fmt: skip
    yield Curve("growth/scores-labels", f"AUC, AP and P@95R of {some:,} images", "labels", labels,
                lambda k: _scores(some, k))  # fmt: skip
    yield Curve("growth/bootstrap-images", f"{REPLICATES} patient-clustered replicates of {LABELS} labels", "images", images,
                lambda n: _bootstrap(n, LABELS))  # fmt: skip
    yield Curve("growth/delong-images", f"clustered DeLong of {LABELS} labels, patients of about 9 films", "images",
                images, lambda n: _delong(n, LABELS))  # fmt: skip
    yield Curve("growth/delong-labels", f"clustered DeLong of {some:,} images", "labels", labels,
                lambda k: _delong(some, k))  # fmt: skip
    yield Curve("growth/split-images", "cutting five stratified folds", "images", sizes(1000, 4000, 8000, 32_000),
                lambda n: _folds(n, 5))  # fmt: skip
    yield Curve("growth/split-folds", f"cutting stratified folds of {some:,} images", "folds", (4, 8, 16, 32),
                lambda folds: _folds(some, folds))  # fmt: skip
    yield Curve("growth/cache-images", "writing a cache of 64 px, decoding left out", "images", sizes(500, 1000, 2000, 4000),
                lambda n: _cache(folder, n))  # fmt: skip
    yield Curve("growth/plan-runs", "planning runs that are not remembered", "runs", sizes(50, 100, 200, 400),
                lambda runs: _plan(folder, runs))  # fmt: skip
    yield Curve("growth/status-records", "status of records with three artefacts each", "records",
                sizes(125, 250, 500, 1000), lambda records: _status(folder, records))  # fmt: skip


_drawn = lru_cache(8)(draw_cohort)  # several curves look at the same


def _scores(images: int, labels: int) -> Call:
    cohort = _drawn(images, labels)
    return lambda: sorted_once(cohort)


def _bootstrap(images: int, labels: int) -> Call:
    cohort = _drawn(images, labels)
    return lambda: replicates(cohort, REPLICATES)


def _delong(images: int, labels: int) -> Call:
    cohort = _drawn(images, labels)
    known = np.ones(cohort.target.shape, bool)
    return lambda: clustered_delong(cohort.target, cohort.score[..., None], known, cohort.patient)


def _folds(images: int, folds: int) -> Call:
    cohort = _drawn(images, LABELS)
    names = [f"finding {number}" for number in range(LABELS)]
    facts = {
        "image_id": [str(row) for row in range(images)],
        "patient_id": cohort.patient,
        "path": "",
    }
    frame = pd.DataFrame(facts)
    frame[names] = cohort.target.astype(float)
    index = Index("perf", frame, tuple(names))
    return lambda: stratified_folds(index, folds=folds)


def _cache(folder: Path, images: int) -> Call:
    number = itertools.count()
    image: Grey = np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)
    contents = [str(row) for row in range(images)]

    def read(row: int, sizes: Sequence[int]) -> list[Grey]:
        return [image for _ in sizes]

    def run() -> None:
        open_pixels(read, contents, {}, 64, Store(folder / f"cache-{images}-{next(number)}"))

    return run


def _plan(folder: Path, runs: int) -> Call:
    number = itertools.count()
    spec = BenchSpec.parse(many_runs(runs), where="perf")
    registry = Registry()

    def run() -> None:
        make_plan(spec, registry, Store(folder / f"plan-{runs}-{next(number)}"))

    return run


def _status(folder: Path, records: int) -> Call:
    store = fill_store(Store(folder / f"records-{records}"), records)
    return lambda: read_status(store)
