"""What a user can ask for: recipes, runs and benchmarks."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from cxrbench.core.cluster import Cluster
from cxrbench.core.frozen import Frozen
from cxrbench.core.reported import ReportedRow

Preset = Literal["paper", "code", "tuned", "quick"]
Precision = Literal["auto", "32-true", "16-mixed", "bf16-mixed"]
# How a film of any shape is read at a side S. `squeeze`: the whole film to [S, S], whatever its shape. `centre`: its
# short side to S and the middle of the long one, [S, S]. `short_side`: its short side to S, the whole film [h, w].
Reading = Literal["squeeze", "centre", "short_side"]


class Augment(Frozen):
    """Random changes of a training image, applied in this order after the crop."""

    horizontal_flip: float = Field(0.0, ge=0, le=1, description="probability")
    vertical_flip: float = Field(0.0, ge=0, le=1, description="probability")
    rotate: float = Field(0.0, ge=0, le=180, description="largest angle in degrees")
    shift: float = Field(0.0, ge=0, lt=1, description="largest shift as a share of the side")
    scale: float = Field(0.0, ge=0, lt=1, description="largest relative change of size")
    shear: float = Field(0.0, ge=0, lt=90, description="largest shear in degrees")
    contrast: float = Field(0.0, ge=0, lt=1, description="largest relative change")
    brightness: float = Field(0.0, ge=0, lt=1, description="largest relative change")
    on: Literal["loader", "device"] = Field(
        "loader",
        description="an image at a time in loader processes, or whole batches where the network is",
    )


class Recipe(Frozen):
    """How a network is trained: all of it is part of a stage's identity.

    `size` is the side of the classifier's input and `load` the side at which images are read, in
    pixels; a method that works on larger images (AECNN: 4 x) multiplies both.
    """

    epochs: int = Field(20, ge=1)
    batch_size: int = Field(16, ge=1, description="global: over all devices")
    accumulate: int = Field(1, ge=1, description="batches whose gradients are added for a step")
    optimizer: Literal["adam", "adamw", "rmsprop", "sgd"] = "adam"
    learning_rate: float = Field(1e-4, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["constant", "plateau", "cosine", "linear"] = "constant"
    warmup_epochs: float = Field(0.0, ge=0)
    plateau_factor: float = Field(0.1, gt=0, lt=1)
    plateau_patience: int = Field(5, ge=0)
    gradient_clip: float | None = Field(None, gt=0)
    ema_decay: float | None = Field(None, gt=0, lt=1)
    size: int = Field(224, ge=16, le=4096)
    load: int = Field(256, ge=16, le=4096)
    augment: Augment = Augment()
    sampler: Literal["shuffle", "balanced", "matched"] = Field(
        "shuffle",
        description="balanced: images with and without a finding equally often; matched: and of the same ages and sexes",
    )
    sync_batchnorm: bool = False
    train_view: Literal["whole", "random_crop", "resize"] = "random_crop"
    validation_view: Literal["whole", "resize", "center_crop"] = "resize"
    test_view: Literal["whole", "resize", "center_crop", "ten_crop"] = "resize"
    select: Literal["val_loss", "val_auc"] = "val_loss"
    precision: Precision = "auto"
    channels_last: bool | Literal["auto"] = Field(
        "auto",
        description="the networks' memory format; auto: where it is quicker, on CPUs and in mixed precision",
    )
    compile: bool | Literal["reduce-overhead", "max-autotune"] = Field(
        False, description="torch.compile, or one of its modes; reduce-overhead takes CUDA graphs"
    )

    @model_validator(mode="after")
    def _fits(self) -> "Recipe":
        if self.size > self.load:
            raise ValueError(f"size {self.size} is larger than load {self.load}")
        if self.schedule == "plateau" and self.warmup_epochs:
            raise ValueError("warmup_epochs does not go with the schedule plateau")
        return self


class MethodParams(Frozen):
    """Base of every method's `Params`."""

    recipe: Recipe = Recipe()


class Execution(Frozen):
    """Where and how stages run: recorded, never part of an identity."""

    engine: Literal["local", "slurm", "ray"] = "local"
    accelerator: Literal["cpu", "gpu"] = "cpu"
    devices: int = Field(1, ge=1, description="processes of one training")
    slots: int = Field(
        1,
        ge=0,
        description="stages that run at the same time; 0 is as many as a Ray cluster has room for",
    )
    per_gpu: int = Field(1, ge=1, description="stages that share a GPU")
    cores: int = Field(0, ge=0, description="CPUs that a chain takes of Ray; 0 is one a process")
    # Where machines are found is no part of what is recorded.
    ray_address: str = Field("", exclude=True, description="of a Ray cluster; none is embedded")
    threads: int = Field(0, ge=0, description="CPU threads a process; 0 shares the cores")
    workers: int = Field(0, ge=0, description="loader processes of one training process")
    checkpoint_steps: int = Field(0, ge=0, description="steps between saves; 0 is by time only")
    checkpoint_seconds: float = Field(60.0, ge=0, description="0 saves at each epoch's end only")
    rank_seconds: float = Field(300.0, gt=0, description="until a silent process is given up")
    deterministic: bool = Field(
        False,
        description="on GPUs: deterministic forms of operations that have one, which are slower",
    )
    resident: bool = Field(
        False,
        description="a training's pixels lie on its device, where the loader leaves them alone",
    )
    halve_on_oom: bool = Field(False, description="half the images at once where memory is short")
    gpu_mem_seconds: float = Field(
        0.0, ge=0, description="a stage's waiting for GPU memory that others hold, at most"
    )
    gpu_mem_gib: float = Field(0.0, ge=0, description="free before a stage begins; 0 asks for none")
    wandb: Literal["off", "offline", "online"] = "off"
    group: str = ""

    @model_validator(mode="after")
    def _counted(self) -> "Execution":
        if not self.slots and self.engine != "ray":
            raise ValueError("slots 0 is for the engine ray, which counts them itself")
        return self


class DatasetEntry(Frozen):
    """A data set of a benchmark: which split, which folds, where.

    `train_images`: so many of the training images alone, for curves of learning; validation and test stay.
    """

    name: str
    split: str = ""
    folds: list[int] | None = None
    train_images: int | None = Field(None, ge=1)
    path: Path | None = None
    params: dict[str, Any] = {}


class TestEntry(Frozen):
    """Another data set that the trained models are tested on; `all` of its images, or a split's test part.

    `label_map` pairs a model's label with the name that it has there, beyond the names known to be equal.
    """

    name: str
    split: str = "all"
    fold: int = Field(0, ge=0)
    path: Path | None = None
    params: dict[str, Any] = {}
    label_map: dict[str, str] = {}


class ExternalEntry(Frozen):
    """Another data set that parts of methods are fitted on, such as a detector of lungs."""

    name: str
    split: str = ""
    path: Path | None = None
    params: dict[str, Any] = {}


class ViewEntry(Frozen):
    """What rewrites the images before a method sees them: aligned, cropped, restored."""

    name: str
    preset: Preset | None = None
    params: dict[str, Any] = {}


class MethodEntry(Frozen):
    """A method of a benchmark with its own settings; `views` stand for the benchmark's when given.

    `reported`: the paper's numbers for this row, in place of the method's own; an empty list: there are none.
    """

    name: str
    preset: Preset | None = None
    params: dict[str, Any] = {}
    views: list[str | ViewEntry] | None = None
    reported: list[ReportedRow] | None = None


class BenchSpec(Frozen):
    """A sweep of methods over data sets, folds and seeds.

    `recipe` is laid over the recipe of every stage of every method, so that one budget holds for all;
    `methods: all` takes every registered method that has the preset.
    """

    name: str = Field("benchmark", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    description: str = ""
    preset: Preset = "paper"
    methods: Literal["all"] | list[str | MethodEntry] = "all"
    datasets: list[DatasetEntry] = Field(min_length=1)
    seeds: list[int] = Field([0], min_length=1)
    recipe: dict[str, Any] = {}
    views: list[str | ViewEntry] = []
    externals: list[ExternalEntry] = []
    test_on: list[TestEntry] = []
    skip_unreadable: bool = False
    cluster: Cluster = Cluster()
