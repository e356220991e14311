"""The rules that every method and data set keeps, as checks that any author can run on their own file."""

import copy
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cxrbench.core.errors import CxrbenchError, UsageError
from cxrbench.core.nearest import nearest
from cxrbench.core.registry import Registry, normalise
from cxrbench.core.spec import BenchSpec, Execution
from cxrbench.core.stage import DataView, find_leaks, predict, score
from cxrbench.core.store import Store, read_json
from cxrbench.data.pixels import UnreadableImageError
from cxrbench.data.splits import Split

CHANCE = 0.55  # a macro AUC on the phantom that luck alone does not reach
BATCH = 4
HALF = 0.1  # of its size, or of 1, that a loss may change in half precision


@dataclass(frozen=True)
class Check:
    """One rule, and whether it is kept."""

    name: str
    passed: bool
    detail: str = ""


def _check(name: str, body: Callable[[], str | None]) -> Check:
    """`body` returns what is wrong, or None."""
    try:
        wrong = body()
    except Exception as error:  # whatever an author's code raises is a finding
        wrong = f"{type(error).__name__}: {error}"
    return Check(name, wrong is None, wrong or "")


def verify_name(registry: Registry, name: str) -> Iterator[Check]:
    """Check the method or data set of this name; UsageError when there is none."""
    methods, datasets = registry.entries("methods"), registry.entries("datasets")
    known = normalise(name)
    if known not in methods and known not in datasets:
        raise UsageError(f"nothing is called {name!r}; {nearest(known, [*methods, *datasets])}")
    if known in methods:
        yield from verify_method(registry, known)
    if known in datasets:
        yield from verify_dataset_class(registry.load("datasets", known))


def example_view(registry: Registry, labels: int = 14) -> DataView:
    """A view of nothing, to ask for graphs with; every other data set stands beside it."""
    view = DataView(
        dataset="phantom", version=1, params={}, revision="0", split="cv5", split_digest="0", fold=0,
        labels=tuple(f"label-{k}" for k in range(labels)),
    )  # fmt: skip
    others = registry.entries("datasets").keys() - {"phantom"}
    externals = {name: replace(view, dataset=name, labels=(), external=True) for name in others}
    return replace(view, externals=externals)


def verify_method(registry: Registry, name: str, *, train: bool = True) -> Iterator[Check]:
    """The rules of methods; `train` adds a short training by real workers."""
    cls = registry.load("methods", name)
    entry = registry.entry("methods", name)
    yield _check("has a docstring and presets", lambda: _says_itself(cls, entry))
    for preset in cls.presets:
        yield _check(
            f"preset {preset} plans without a leak", partial(_plans, registry, cls, preset)
        )
    for labels in (1, 14):
        yield _check(f"learns from a batch with {labels} labels", partial(_steps, cls, labels))
    yield _check("half precision stays finite", lambda: _half(cls))
    twins = cache(lambda: (_build(cls, 2).eval(), _build(cls, 2).eval()))
    yield _check("initial weights follow from the seed", lambda: _seeded(*twins()))
    yield _check("weights survive saving and loading", lambda: _round_trip(cls, *twins()))
    if train:
        yield _check(
            f"a short training on the phantom has a macro AUC over {CHANCE}"
            if cls.learns
            else "a short training on the phantom is scored",
            lambda: _trains(registry, name, CHANCE if cls.learns else 0.0),
        )


def _says_itself(cls: Any, entry: Any) -> str | None:
    if not entry.summary:
        return "the class has no docstring"
    return None if "quick" in cls.presets else "no preset is called quick"


def _plans(registry: Registry, cls: Any, preset: str) -> str | None:
    params = cls.resolve(preset, {}, {}, where=cls.name)
    view = example_view(registry)
    stage = score(predict(cls.stages(view, params), view), replicates=0, seed=0)
    leaks = find_leaks(stage)
    return "; ".join(leaks) or None


def _build(cls: Any, labels: int) -> Any:
    params = cls.resolve("quick", {}, {}, where=cls.name)
    torch.manual_seed(0)
    module = cls(params, tuple(f"label-{k}" for k in range(labels)))
    module.log = lambda *args, **options: None
    module.log_dict = lambda *args, **options: None
    return module


def _batch(cls: Any, module: Any, labels: int) -> dict[str, Any]:
    side = cls.image_size(module.params)[1]
    random = torch.Generator().manual_seed(0)
    known = torch.ones(BATCH, labels, dtype=torch.bool)
    known[0] = False  # a row of which nothing is known
    return {
        "image": torch.randint(0, 256, (BATCH, 1, side, side), generator=random, dtype=torch.uint8),
        "target": torch.randint(0, 2, (BATCH, labels), generator=random).float(),
        "known": known,
        "row": torch.arange(BATCH),
    }


def _steps(cls: Any, labels: int) -> str | None:
    module = _build(cls, labels)
    batch = _batch(cls, module, labels)
    loss = _loss(module, batch)
    if not torch.isfinite(loss):
        return f"the loss is {float(loss)} although only one row is unknown"
    loss.backward()  # type: ignore[no-untyped-call]
    idle = [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None]
    if idle:
        return f"no gradient reaches {', '.join(idle[:5])}"
    batch["known"] = torch.zeros_like(batch["known"])
    if not torch.isfinite(_loss(module, batch)):
        return "the loss of a batch of which nothing is known is not finite"
    module.eval()
    with torch.inference_mode():
        found = module.predict_step(batch, 0)
    if found.shape != (BATCH, labels) or found.dtype != torch.float64:
        return f"predict_step gives {found.dtype} {tuple(found.shape)}; expected float64 [B, K]"
    return None if ((found >= 0) & (found <= 1)).all() else "a probability is outside [0, 1]"


def _half(cls: Any) -> str | None:
    """A step under bf16-mixed: the loss and every gradient are finite, and the loss is about that of float32."""
    module = _build(cls, 2)
    batch = _batch(cls, module, 2)
    torch.manual_seed(0)
    whole = float(_loss(module, batch).detach())
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = _loss(module, batch)
    found = float(loss.detach())
    if not math.isfinite(found) or abs(found - whole) > HALF * max(abs(whole), 1.0):
        return f"the loss is {found}; in float32 {whole}"
    loss.backward()  # type: ignore[no-untyped-call]
    wrong = [
        name
        for name, p in module.named_parameters()
        if p.grad is not None and not torch.isfinite(p.grad).all()
    ]
    return f"gradients of {', '.join(wrong[:5])} are not finite" if wrong else None


def _loss(module: Any, batch: dict[str, Any]) -> torch.Tensor:
    step = module.training_step(batch, 0)
    loss: torch.Tensor = step["loss"] if isinstance(step, dict) else step
    return loss


def _round_trip(cls: Any, first: Any, second: Any) -> str | None:
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.add_(1.0)
    second.load_state_dict(copy.deepcopy(first.state_dict()), strict=True)
    batch = _batch(cls, first, 2)
    with torch.inference_mode():
        same = torch.equal(first.predict_step(batch, 0), second.predict_step(batch, 0))
    return None if same else "the same weights give other probabilities"


def _seeded(first: Any, second: Any) -> str | None:
    one, other = first.state_dict(), second.state_dict()
    differing = [name for name in one if not torch.equal(one[name], other[name])]
    return f"two builds from one seed differ in {differing[:3]}" if differing else None


def _trains(registry: Registry, name: str, least: float) -> str | None:
    from cxrbench.runner.bench import plan_bench, run_bench

    spec = BenchSpec.parse(
        {
            "name": "verify",
            "preset": "quick",
            "methods": [name],
            "datasets": [
                {"name": "phantom", "split": "holdout", "params": {"images": 400, "enrichment": 3}}
            ],
            "recipe": {"epochs": 3, "batch_size": 16},
        },
        where="verify",
    )
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        plan = plan_bench(spec, registry, store, "cpu")
        result = run_bench(plan, registry, store, Execution(), "missing")
        if result.outcome.failed:
            return "; ".join(str(f["error"]) for f in result.outcome.failed.values())
        auc = read_json(result.records[0])["scores"]["macro"]["auc"]
    return None if auc is not None and auc > least else f"the macro AUC is {auc}"


def verify_dataset_class(cls: Any) -> Iterator[Check]:
    """The rules of data sets, on the miniature that the class writes of itself."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "data"
        root.mkdir()
        found: dict[str, Any] = {}
        for variant in reversed(cls.variants if cls.needs_root else ("",)):
            layout = f" ({variant})" if variant else ""
            home = root / (variant or "usual")
            written = _check(
                f"reads the miniature that it writes{layout}",
                partial(_write, cls, home, variant, found),
            )
            yield written
            if not written.passed:
                return
        index = found["index"]  # of the usual layout, which came last
        yield _check("labels are 1, 0 or unknown", lambda: _labels(index))
        yield _check("reads the same twice", lambda: _same(cls, found))
        for name in cls.splits:
            yield _check(f"split {name} keeps patients apart", partial(_split, cls, index, name))
        yield _check("images are grey squares", lambda: _images(cls, index))
        if cls.needs_root:
            yield _check("a damaged image is named", lambda: _damaged(cls, index))
            yield _check("no data folder is a clear error", lambda: _no_root(cls))


def _write(cls: Any, root: Path, variant: str, found: dict[str, Any]) -> str | None:
    if not cls.needs_root:
        found["root"] = None
    else:
        root.mkdir()
        extra = {"variant": variant} if variant else {}
        found["root"] = cls.fake(root, images=80, size=64, seed=0, **extra)
    found["index"] = cls.read_index(found["root"], cls.Params())
    return None if cls.__doc__ else "the class has no docstring"


def _labels(index: Any) -> str | None:
    values = index.targets[~np.isnan(index.targets)]
    return None if np.isin(values, (0, 1)).all() else "a label has another value than 0 and 1"


def _same(cls: Any, found: dict[str, Any]) -> str | None:
    again = cls.read_index(found["root"], cls.Params())
    blank = [""] * len(again)
    return (
        None if again.revision(blank) == found["index"].revision(blank) else "two readings differ"
    )


def _split(cls: Any, index: Any, name: str) -> str | None:
    split: Split = cls.make_split(name, index)
    for fold in range(split.folds):
        parts = split.parts(index, fold)
        owners: dict[str, str] = {}
        for patient, part in zip(index.patient_ids, parts, strict=True):
            if owners.setdefault(patient, part) != part:
                return f"fold {fold}: patient {patient} is in {owners[patient]} and {part}"
        empty = {"train", "val", "test"} - set(parts)
        if empty:
            return f"fold {fold}: no image in {', '.join(sorted(empty))}"
    return None


def _images(cls: Any, index: Any) -> str | None:
    for row in range(min(5, len(index))):
        image = cls.read_image(index, row, 32)
        if image.shape != (32, 32) or image.dtype != np.uint8:
            return f"row {row}: {image.dtype} {image.shape}; expected uint8 (32, 32)"
    return None


def _damaged(cls: Any, index: Any) -> str | None:
    path = index.path(0)
    backup = path.with_suffix(".whole")
    shutil.copyfile(path, backup)
    try:
        path.write_bytes(path.read_bytes()[:200])
        cls.read_image(index, 0, 32)
    except UnreadableImageError as error:
        return None if path.name in str(error) else f"the error does not name the file: {error}"
    finally:
        backup.replace(path)
    return "a truncated image is read without an error"


def _no_root(cls: Any) -> str | None:
    try:
        cls.read_index(None, cls.Params())
    except CxrbenchError as error:
        return None if "--data" in str(error) else f"the error does not say --data: {error}"
    return "no folder is accepted"
