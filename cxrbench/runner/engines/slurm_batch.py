"""Chains of stages as batch jobs: what is an array, what waits for what, the words that sbatch is given.

Nothing here talks to SLURM. A batch is one call of sbatch: a job, or an array of jobs that ask for the same
and wait for the same, or each for the element of their own number in other arrays (`aftercorr`).
"""

import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cxrbench.core.cluster import Cluster, Request, parse_time, together
from cxrbench.core.stage import Stage
from cxrbench.runner.devices import cores_of_job

MOST_ELEMENTS = 500  # of an array; clusters allow 1001 unless they say otherwise
PREFIX = "cxrbench-"  # of every job's name; the batch's id follows
SIGNAL = "USR1"
RECORDS_REQUEST = {"gpus": 0, "cpus": 1, "time": "30"}  # of the job that writes the last records


@dataclass(frozen=True)
class Ref:
    """A job in the queue: an element of an array, or a job without elements."""

    job: str
    element: int | None = None

    def __str__(self) -> str:
        return self.job if self.element is None else f"{self.job}_{self.element}"


@dataclass
class Batch:
    """One call of sbatch: chains by the number of their element."""

    request: Request
    elements: dict[int, list[Stage]]
    array: bool
    afterok: list[Ref] = field(default_factory=list)
    aftercorr: list[str] = field(default_factory=list)

    @property
    def dependency(self) -> str:
        """What sbatch's --dependency is given; empty for none."""
        words = [f"afterok:{':'.join(map(str, self.afterok))}"] if self.afterok else []
        words += [f"aftercorr:{':'.join(self.aftercorr)}"] if self.aftercorr else []
        return ",".join(words)


@dataclass(frozen=True)
class Waiting:
    """A chain with what it asks for and the jobs that it waits for."""

    chain: list[Stage]
    request: Request
    after: frozenset[Ref]

    def shape(self) -> tuple[str, frozenset[Ref]]:
        """Equal for chains that can be elements of one array."""
        return self.request.model_dump_json(), self.after

    def numbers(self) -> set[int]:
        """The elements of arrays that it waits for."""
        return {ref.element for ref in self.after if ref.element is not None}

    def by_number(self) -> tuple[str, frozenset[Ref], frozenset[str]]:
        """Equal for chains that wait for the same jobs, and for elements of the same arrays."""
        alone = frozenset(ref for ref in self.after if ref.element is None)
        arrays = frozenset(ref.job for ref in self.after if ref.element is not None)
        return self.request.model_dump_json(), alone, arrays


def request_of(chain: list[Stage], cluster: Cluster) -> Request:
    """What the job of a chain asks for."""
    return together(cluster.request(stage.kind, stage.name) for stage in chain)


def batches_of(waiting: list[Waiting]) -> list[Batch]:
    """Chains that wait for nothing that is not submitted yet, as few batches."""
    batches, rest = [], []
    for alike in _grouped(waiting, Waiting.shape):
        if len(alike) == 1:
            rest += alike
            continue
        for start in range(0, len(alike), MOST_ELEMENTS):
            part = alike[start : start + MOST_ELEMENTS]
            elements = {number: one.chain for number, one in enumerate(part)}
            batches.append(Batch(part[0].request, elements, True, _sorted(part[0].after)))
    for alike in _grouped(rest, Waiting.by_number):
        batches += _corresponding(alike)
    return batches


def _grouped(waiting: list[Waiting], key: Any) -> Iterable[list[Waiting]]:
    groups: dict[Any, list[Waiting]] = {}
    for one in waiting:
        groups.setdefault(key(one), []).append(one)
    return groups.values()


def _corresponding(alike: list[Waiting]) -> list[Batch]:
    """Chains that each wait for elements of one number are an array; the others are jobs of their own."""
    numbered = {min(one.numbers()): one for one in alike if len(one.numbers()) == 1}
    if len(numbered) < 2:
        numbered = {}
    batches = []
    if numbered:
        first = next(iter(numbered.values()))
        alone = [ref for ref in first.after if ref.element is None]
        arrays = sorted({ref.job for ref in first.after if ref.element is not None}, key=_number)
        elements = {number: one.chain for number, one in sorted(numbered.items())}
        batches.append(Batch(first.request, elements, True, _sorted(alone), arrays))
    placed = {id(one) for one in numbered.values()}
    others = [one for one in alike if id(one) not in placed]
    return batches + [Batch(w.request, {0: w.chain}, False, _sorted(w.after)) for w in others]


def _number(job: str) -> tuple[int, str]:
    return (int(job) if job.isdigit() else 0, job)


def _sorted(refs: Iterable[Ref]) -> list[Ref]:
    return sorted(
        refs, key=lambda ref: (*_number(ref.job), -1 if ref.element is None else ref.element)
    )


Kind = Literal["build", "records"]


def sbatch_words(
    request: Request,
    folder: Path,
    *,
    processes: int,
    save_seconds: int,
    array: list[int] | None,
    dependency: str,
    kind: Kind = "build",
) -> list[str]:
    """The call of sbatch for the batch in a folder, as words that no shell reads."""
    name = "%a.out" if array else "job.out"
    output = f"{str(folder).replace('%', '%%')}/{name}"
    words = [
        "sbatch", "--parsable", "--requeue", "--kill-on-invalid-dep=yes", "--nodes=1", "--ntasks=1",
        f"--job-name={PREFIX}{folder.name}", f"--output={output}", "--open-mode=append",
        f"--cpus-per-task={cores_of_job(request, processes)}",
    ]  # fmt: skip
    given = {option: getattr(request, option) for option in ("partition", "account", "qos", "mem")}
    words += [f"--{option}={value}" for option, value in given.items() if value is not None]
    if request.time is not None:
        words.append(f"--time={minutes(request.time)}")
    if kind == "build":
        words.append(f"--signal=B:{SIGNAL}@{save_seconds}")
    if request.gpus:
        words.append(f"--gpus={request.gpus}")
    if array:
        words.append(f"--array={','.join(map(str, array))}")
    if dependency:
        words.append(f"--dependency={dependency}")
    return [*words, *request.options, str(folder / "job.sh")]


def minutes(time: str) -> int:
    """A time in whole minutes, which is how SLURM counts: rounded up."""
    return -(-parse_time(time) // 60)


def script(folder: Path) -> str:
    """The batch script: what to do stands in the folder, not here."""
    # Until Python has its handler, the warning of the time limit must not end it.
    return (
        "#!/bin/sh\n"
        f"trap '' {SIGNAL}\n"
        f"exec {shlex.quote(sys.executable)} -m cxrbench.runner.engines.slurm_job {shlex.quote(str(folder))}\n"
    )
