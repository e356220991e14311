"""What a batch job asks its cluster for: the `cluster` block of a specification."""

import re
from collections.abc import Iterable

from pydantic import Field, field_validator, model_validator

from cxrbench.core.errors import ConfigError
from cxrbench.core.frozen import Frozen

# sbatch's own forms: minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]].
_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<parts>\d+(?::\d{1,2}){0,2})\Z", re.ASCII)
_MEMORY = re.compile(r"(?P<number>\d+)(?P<unit>[KMGT]?)\Z", re.ASCII)
_MEBIBYTES = {"K": 1 / 1024, "": 1, "M": 1, "G": 1024, "T": 1024**2}
# What the engine itself says to sbatch.
OWN_OPTIONS = frozenset({
    "array", "chdir", "comment", "dependency", "export", "hold", "job-name", "kill-on-invalid-dep",
    "no-requeue", "nodes", "ntasks", "open-mode", "output", "error", "parsable", "requeue", "signal",
    "test-only", "wait", "wrap",
})  # fmt: skip


def parse_time(text: str) -> int:
    """Seconds of a time in one of sbatch's forms; ValueError for any other text."""
    match = _TIME.match(text)
    if not match:
        raise ValueError("expected minutes, hours:minutes:seconds or days-hours:minutes:seconds")
    parts = [int(part) for part in match["parts"].split(":")]
    if match["days"] is not None:
        hours, minutes, seconds = (*parts, 0, 0)[:3]
        return ((int(match["days"]) * 24 + hours) * 60 + minutes) * 60 + seconds
    if len(parts) == 3:
        return (parts[0] * 60 + parts[1]) * 60 + parts[2]
    return parts[0] * 60 + (parts[1] if len(parts) == 2 else 0)


def parse_memory(text: str) -> float:
    """MiB of a memory size such as 32G; ValueError for any other text."""
    match = _MEMORY.match(text)
    if not match:
        raise ValueError("expected a number and K, M, G or T, such as 32G")
    return int(match["number"]) * _MEBIBYTES[match["unit"]]


class Request(Frozen):
    """Resources of a job, by the names of sbatch's options; what is None is left to the cluster."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: str | None = None
    mem: str | None = None
    gpus: int | None = Field(None, ge=0)
    cpus: int | None = Field(None, ge=1, description="cores of the job")
    options: list[str] = Field([], description="more of sbatch's options: --constraint=a100")

    @field_validator("time", "mem", mode="before")
    @classmethod
    def _texts(cls, value: object) -> object:
        # YAML 1.1 reads an unquoted 4:00:00 as 14400, which sbatch would take for minutes.
        if isinstance(value, int):
            raise ValueError("give it in quotes, such as '4:00:00' or '32G'")
        return value

    @field_validator("time")
    @classmethod
    def _a_time(cls, value: str | None) -> str | None:
        if value is not None and parse_time(value) == 0:
            raise ValueError("no time at all")
        return value

    @field_validator("mem")
    @classmethod
    def _a_memory(cls, value: str | None) -> str | None:
        if value is not None:
            parse_memory(value)
        return value

    @field_validator("options")
    @classmethod
    def _free_options(cls, options: list[str]) -> list[str]:
        for word in options:
            name = word.removeprefix("--").partition("=")[0]
            if not word.startswith("--") or not name:
                raise ValueError(f"{word!r}: write --NAME or --NAME=VALUE")
            if name in OWN_OPTIONS or name in (
                "partition",
                "account",
                "qos",
                "time",
                "mem",
                "gpus",
            ):
                raise ValueError(f"--{name} is set by cxrbench or has a key of its own")
        return options

    def laid_over(self, below: "Request") -> "Request":
        """This request, with `below` where it says nothing."""
        names = Request.model_fields
        chosen = {n: getattr(self, n) for n in names if getattr(self, n) not in (None, [])}
        return Request(**{**{n: getattr(below, n) for n in names}, **chosen})


class Cluster(Request):
    """How a benchmark runs on a cluster: requests, and what happens at a time limit.

    `stages` has requests for some stages alone, by kind (`fit`), name (`aecnn`) or both (`fit-aecnn`).
    """

    stages: dict[str, Request] = {}
    workers: int | None = Field(
        None,
        ge=0,
        description="loader processes of a training; default: one a core where GPUs train",
    )
    save_seconds: int = Field(120, ge=10, le=3600, description="of warning before the time limit")
    timeouts: int = Field(20, ge=0, description="time limits after which a job gives up")

    @model_validator(mode="after")
    def _time_to_save(self) -> "Cluster":
        for request in (self, *self.stages.values()):
            if request.time is not None and parse_time(request.time) <= self.save_seconds:
                raise ValueError(
                    f"time {request.time} leaves no time to work: save_seconds is {self.save_seconds}"
                )
        return self

    def request(self, kind: str, name: str) -> Request:
        """What a stage asks for: the more special entry wins."""
        found = Request(**{n: getattr(self, n) for n in Request.model_fields})
        for key in (kind, name, f"{kind}-{name}"):
            if key in self.stages:
                found = self.stages[key].laid_over(found)
        return found


def together(requests: Iterable[Request]) -> Request:
    """One request for stages that share a job: the first's place, the most that any asks for."""
    first, *others = requests
    update: dict[str, object] = {}
    for field, size in (("time", parse_time), ("mem", parse_memory), ("gpus", int), ("cpus", int)):
        values = [getattr(r, field) for r in (first, *others)]
        given = [value for value in values if value is not None]
        if given:
            update[field] = max(given, key=size)
    return first.model_copy(update=update)


def check_names(cluster: Cluster, stages: Iterable[tuple[str, str]]) -> None:
    """ConfigError for an entry of `cluster.stages` that can be no stage's kind or name."""
    from cxrbench.core.nearest import nearest

    known = {"compute", "fit", "transform", "predict", "score"}
    for kind, name in stages:
        known |= {name, f"{kind}-{name}"}
    for key in cluster.stages:
        if key not in known:
            raise ConfigError(
                f"cluster.stages.{key}: no stage of this plan has that kind or name; {nearest(key, known)}"
            )
