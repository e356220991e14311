"""Stages: the unit of work, of caching, of process isolation and of scheduling.

`fit`, `compute` and `transform` only describe; nothing runs. A stage's digest is the SHA-256 of what
decides its artefact; equal digest, equal artefact, built once for whoever asked first.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, Protocol

from cxrbench.core.digest import canonical_json, canonical_object, digest_text
from cxrbench.core.errors import ConfigError
from cxrbench.core.frozen import Dumped, Frozen
from cxrbench.core.seed import derive_seed

Kind = Literal["compute", "fit", "transform", "predict", "score"]
Part = Literal["train", "val", "test", "all"]


class Buildable(Protocol):
    """What a class must say of itself to be the subject of a stage."""

    name: ClassVar[str]
    version: ClassVar[int]
    Params: ClassVar[Any]


@dataclass(frozen=True)
class DataView:
    """One fold of one data set, or of a transformed copy of it; describes, holds no pixels.

    `root_seed` (from which stages derive their seeds) and `externals` (other data sets that the user has
    given for fitting on, by name) are no part of the view's identity.
    """

    dataset: str
    version: int
    params: Mapping[str, Any]
    revision: str
    split: str
    split_digest: str
    fold: int
    labels: tuple[str, ...]
    skip_unreadable: bool = False
    external: bool = False
    train_images: int | None = None  # only so many of the training part; None: all
    # How a model's labels are called here, where it was trained on another data set.
    label_map: tuple[tuple[str, str], ...] = ()
    root_seed: int = 0
    images: "Stage | None" = None
    externals: Mapping[str, "DataView"] = field(default_factory=dict)

    def beside(self, name: str) -> "DataView":
        """Another data set that the user has given for fitting on; ConfigError when there is none."""
        if name not in self.externals:
            raise ConfigError(
                f"this needs the data set {name} beside {self.dataset}; pass --external {name}=DIR, or "
                f"list it under `externals` in the benchmark's file"
            )
        return self.externals[name]

    def at(self, *, fold: int) -> "DataView":
        """The same data at another fold."""
        return replace(self, fold=fold)

    def pixels(self) -> dict[str, Any]:
        """What decides the images alone: neither split nor fold nor labels."""
        return {
            "dataset": self.dataset,
            "version": self.version,
            "params": dict(self.params),
            "revision": self.revision,
            "skip_unreadable": self.skip_unreadable,
            "images": self.images.digest if self.images else None,
        }

    def identity(self) -> dict[str, Any]:
        """What decides the images, the labels and which of them are trained on."""
        # What is not asked for is no part of it, so that older artefacts keep their names.
        asked: dict[str, Any] = {}
        if self.label_map:
            asked["label_map"] = [list(pair) for pair in self.label_map]
        if self.train_images is not None:
            asked["train_images"] = self.train_images
        return {
            **self.pixels(),
            **asked,
            "split": self.split,
            "split_digest": self.split_digest,
            "fold": self.fold,
            "labels": list(self.labels),
            "external": self.external,
        }

    @cached_property
    def identity_text(self) -> str:
        """`identity` as canonical JSON; several stages share a view."""
        return canonical_json(self.identity())


@dataclass(frozen=True)
class Stage:
    """A node of the graph: what to build, from which data, with which artefacts as inputs."""

    kind: Kind
    name: str
    target: str  # "package.module:Class" or "/path/to/plugin.py:Class"; recorded, not in the digest
    version: int
    params: Mapping[str, Any]
    data: DataView
    seed: int = 0
    part: Part = "train"
    inputs: Mapping[str, "Stage"] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything that decides the artefact."""
        own = {
            "kind": self.kind,
            "name": self.name,
            "version": self.version,
            "seed": self.seed,
            "part": self.part,
            "inputs": {name: stage.digest for name, stage in self.inputs.items()},
        }
        params, data = self.params, self.data
        shared = {  # with other stages, so their texts are made once for all
            "params": params.text if isinstance(params, Dumped) else canonical_json(dict(params)),
            "data": canonical_json(data.pixels())
            if self.kind == "transform"
            else data.identity_text,
        }
        return digest_text(canonical_object(own, shared))

    @property
    def key(self) -> str:
        """The artefact's folder name."""
        return f"{self.kind}-{self.name}-{self.digest[:16]}"

    def view(self) -> DataView:
        """The images that a transform made, as a view."""
        if self.kind != "transform":
            raise ConfigError(f"{self.key}: a {self.kind} makes no images")
        return replace(self.data, images=self)

    def parents(self) -> Iterator["Stage"]:
        """The stages whose artefacts this one reads."""
        yield from self.inputs.values()
        if self.data.images:
            yield self.data.images

    def ancestry(self) -> dict[str, "Stage"]:
        """This stage and all it depends on, by digest, parents first."""
        found: dict[str, Stage] = {}
        for parent in self.parents():
            found.update(parent.ancestry())
        found[self.digest] = self
        return found


def _target(cls: type) -> str:
    return getattr(cls, "plugin_target", None) or f"{cls.__module__}:{cls.__qualname__}"


def _describe(
    kind: Kind,
    cls: type[Buildable],
    data: DataView,
    params: Frozen | None,
    inputs: Mapping[str, Stage],
    part: Part = "train",
    *,
    seeded: bool = True,
) -> Stage:
    resolved = params if params is not None else cls.Params()
    if not isinstance(resolved, cls.Params):
        raise ConfigError(f"{cls.name}: params must be {cls.Params.__qualname__}")
    return Stage(
        kind=kind,
        name=cls.name,
        target=_target(cls),
        version=cls.version,
        params=resolved.dumped(),
        data=data,
        seed=derive_seed(data.root_seed, kind, cls.name) if seeded else 0,
        part=part,
        inputs=dict(inputs),
    )


def fit(
    cls: type[Buildable],
    data: DataView,
    params: Frozen | None = None,
    *,
    part: Part = "train",
    **inputs: Stage,
) -> Stage:
    """A training of `cls` on the training part of `data`, which may read other artefacts."""
    return _describe("fit", cls, data, params, inputs, part)


def compute(
    cls: type[Buildable],
    data: DataView,
    params: Frozen | None = None,
    *,
    part: Part = "train",
    **inputs: Stage,
) -> Stage:
    """Statistics of the training part of `data` without a training."""
    return _describe("compute", cls, data, params, inputs, part)


def transform(
    cls: type[Buildable], data: DataView, params: Frozen | None = None, **inputs: Stage
) -> DataView:
    """A new view: every image of `data` rewritten by `cls`, used exactly like the raw data."""
    return _describe("transform", cls, data, params, inputs, "all", seeded=False).view()


def predict(model: Stage, home: DataView, on: DataView | None = None) -> Stage:
    """Probabilities of a fitted model for the validation and test parts of a run's own view.

    The images of `on` are read (the model's own: aligned, cropped), but never at another split or fold
    than `home`.
    """
    images = (on or model.data).images
    return Stage(
        kind="predict",
        name=model.name,
        target=model.target,
        version=model.version,
        params=model.params,
        data=home if images is home.images else replace(home, images=images),
        inputs={"model": model},
    )


def predict_elsewhere(model: Stage, test: DataView) -> Stage:
    """Probabilities of a fitted model for the test part of another data set.

    What rewrote the model's images (aligned, cropped) rewrites those of `test` in the same way.
    """
    return Stage(
        kind="predict",
        name=model.name,
        target=model.target,
        version=model.version,
        params=model.params,
        data=_rewritten(model.data.images, test),
        inputs={"model": model},
    )


def _rewritten(images: Stage | None, view: DataView) -> DataView:
    if images is None:
        return view
    return replace(view, images=replace(images, data=_rewritten(images.data.images, view)))


def score(
    predictions: Stage, *, replicates: int, seed: int, validation: Stage | None = None
) -> Stage:
    """The scores of saved predictions; `validation` are those that thresholds are picked on, where
    they are of another data set."""
    inputs = {"predictions": predictions} | ({"validation": validation} if validation else {})
    return Stage(
        kind="score",
        name=predictions.name,
        target="cxrbench.runner.score:score",
        version=1,
        params={"replicates": replicates},
        data=predictions.data,
        seed=seed,
        inputs=inputs,
    )


def find_leaks(run: Stage) -> list[str]:
    """Why a run's graph would see its own test patients in training; empty when it does not."""
    leaks = []
    elsewhere = "validation" in run.inputs
    home = run.inputs["validation"].data if elsewhere else run.data
    for stage in run.ancestry().values():
        if stage.kind not in ("fit", "compute"):
            continue
        data = stage.data
        who = f"{stage.kind} {stage.name}"
        if elsewhere and data.dataset == run.data.dataset:
            leaks.append(f"{who}: fitted on {data.dataset}, which is tested on from outside")
            continue
        if data.external:
            if data.dataset == home.dataset:
                leaks.append(f"{stage.key}: {data.dataset} is declared external but is tested on")
            continue
        if data.dataset != home.dataset:
            leaks.append(f"{who}: fitted on {data.dataset}, which is not declared external")
        elif (data.split, data.split_digest) != (home.split, home.split_digest):
            leaks.append(f"{who}: fitted on split {data.split!r}, tested on {home.split!r}")
        elif data.fold != home.fold:
            leaks.append(
                f"{who}: fitted on fold {data.fold}, whose training part holds "
                f"test patients of fold {home.fold}"
            )
        elif stage.part != "train":
            leaks.append(f"{who}: fitted on {stage.part} images, test patients among them")
    return leaks
