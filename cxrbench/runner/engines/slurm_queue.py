"""What SLURM knows of a store's jobs: its queue, and its accounting where it has one.

A job's name holds the id of its batch, whose folder (`jobs/slurm/<id>/`) was written before the job was submitted: so a
stage in the queue is found whatever became of the process that submitted it.
"""

import getpass
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cxrbench.core.errors import CxrbenchError
from cxrbench.core.store import Store, read_note
from cxrbench.runner.engines.slurm_batch import PREFIX, Ref

CLIENT_SECONDS = 60
# States that a job does not leave; any other is a job that still runs, will run, or is being ended.
ENDED = frozenset({
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
    "PREEMPTED", "REVOKED", "TIMEOUT",
})  # fmt: skip
KEPT = ("SLURM_CONF", "SLURM_JWT", "SLURM_CLUSTERS")


class SlurmError(CxrbenchError):
    """A program of SLURM is missing, failed or did not answer."""

    exit_code = 69


@dataclass(frozen=True)
class QueuedJob:
    """A job of this store as SLURM shows it."""

    ref: Ref
    state: str
    reason: str = ""

    @property
    def alive(self) -> bool:
        """Whether it will still do something."""
        return self.state not in ENDED


@dataclass(frozen=True)
class Element:
    """What one job was given: the stages of a chain; none for the job that writes the last records."""

    batch: str
    number: int
    array: bool
    todo: tuple[str, ...]  # digests
    keys: tuple[str, ...]
    submitted: str


def client_environment() -> dict[str, str]:
    """This process's environment without the marks of a job that it may itself be part of."""
    return {k: v for k, v in os.environ.items() if not k.startswith("SLURM_") or k in KEPT}


def call(words: list[str]) -> str:
    """What a client of SLURM prints; SlurmError says what went wrong and with which words."""
    if shutil.which(words[0]) is None:
        raise SlurmError(
            f"{words[0]}: not found on the PATH; --engine slurm needs a node with SLURM's commands"
        )
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=CLIENT_SECONDS, env=client_environment(),
            check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SlurmError(f"{words[0]}: {error}") from None
    if done.returncode:
        said = done.stderr.strip() or f"ended with code {done.returncode}"
        raise SlurmError(f"{words[0]}: {said}")
    return done.stdout


def read_queue() -> dict[tuple[str, int], QueuedJob]:
    """This user's jobs by batch and element, those included that ended a moment ago.

    A batch without an array has the one element 0. Raises SlurmError when the queue cannot be read.
    """
    text = call(
        ["squeue", "--noheader", "--array", "--states=all", f"--user={getpass.getuser()}", "--format=%i|%j|%T|%r"]
    )  # fmt: skip
    found = {}
    for line in text.splitlines():
        words = line.strip().split("|", 3)
        if len(words) == 4 and words[1].startswith(PREFIX):
            ref = read_ref(words[0])
            found[words[1].removeprefix(PREFIX), ref.element or 0] = QueuedJob(ref, *words[2:])
    return found


def read_ref(text: str) -> Ref:
    """A job's number as SLURM prints it: 12, or 12_3 for an element of an array."""
    job, _, element = text.partition("_")
    return Ref(job, int(element) if element.isdigit() else None)


def read_accounts(jobs: list[str]) -> dict[Ref, QueuedJob]:
    """Jobs that have left the queue, from the accounting; empty where a cluster keeps none."""
    if not jobs:
        return {}
    try:
        text = call(["sacct", "--noheader", "--parsable2", "--allocations",
                     "--format=JobID,State", f"--jobs={','.join(jobs)}"])  # fmt: skip
    except SlurmError:
        return {}
    found = {}
    for line in text.splitlines():
        number, _, state = line.strip().partition("|")
        ref = read_ref(number)
        if state:  # "CANCELLED by 1000"
            found[ref] = QueuedJob(ref, state.split()[0].rstrip("+"))
    return found


def read_elements(store: Store) -> Iterator[Element]:
    """What was submitted from this store, oldest first; what is no batch's file is left out."""
    batches: list[list[Element]] = []
    for path in store.root.glob("jobs/slurm/*/batch.json"):
        elements = read_note(path, partial(_elements, path.parent.name))
        if elements:
            batches.append(elements)
    for elements in sorted(
        batches, key=lambda elements: (elements[0].submitted, elements[0].batch)
    ):
        yield from elements


def _elements(name: str, batch: dict[str, Any]) -> list[Element]:
    array, submitted = bool(batch["array"]), str(batch["submitted"])
    return [
        Element(
            name,
            int(number),
            array,
            tuple(map(str, given["todo"])),
            tuple(map(str, given["keys"])),
            submitted,
        )
        for number, given in batch["elements"].items()
    ]


def job_of(store: Store, batch: str) -> str | None:
    """The number that sbatch gave a batch, where its submission came so far."""
    try:
        return (store.root / "jobs" / "slurm" / batch / "job").read_text().strip() or None
    except OSError:
        return None


def queued_stages(store: Store, queue: Mapping[tuple[str, int], QueuedJob]) -> dict[str, QueuedJob]:
    """The stages that wait or run in the queue, by digest."""
    found: dict[str, QueuedJob] = {}
    for element in read_elements(store):
        job = queue.get((element.batch, element.number))
        if job and job.alive:
            found.update(dict.fromkeys(element.todo, job))
    return found


def describe_jobs(store: Store) -> dict[str, Any]:
    """The jobs of stages that are not built yet: `jobs` with stage, job, state and reason; `error` if unreadable.

    `gone` is the state of a job that neither the queue nor the accounting knows any more.
    """
    newest: dict[str, Element] = {}
    for element in read_elements(store):
        left = [k for k in element.keys if not store.has(k)]
        if left or not element.todo:
            newest[element.keys[0] if element.keys else f"records {element.batch}"] = element
    if not newest:
        return {"jobs": [], "error": None}
    try:
        queue = read_queue()
    except SlurmError as error:
        return {"jobs": [], "error": str(error)}
    unknown = {
        job_of(store, e.batch) for k, e in newest.items() if (e.batch, e.number) not in queue
    }
    accounts = read_accounts(sorted(job for job in unknown if job))
    rows = []
    for element in newest.values():
        job = queue.get((element.batch, element.number)) or _accounted(store, element, accounts)
        if not element.todo and not job.alive:
            continue
        left = [key for key in element.keys if not store.has(key)]
        rows.append({"stage": left[0] if left else "records", "job": str(job.ref), "state": job.state,
                     "reason": job.reason, "alive": job.alive})  # fmt: skip
    return {"jobs": rows, "error": None}


def _accounted(store: Store, element: Element, accounts: Mapping[Ref, QueuedJob]) -> QueuedJob:
    number = job_of(store, element.batch)
    if number is None:
        return QueuedJob(Ref("-"), "gone", "it was never submitted")
    ref = Ref(number, element.number if element.array else None)
    return accounts.get(ref) or QueuedJob(ref, "gone")


def settled(store: Store, queue: Mapping[tuple[str, int], QueuedJob], *, before: str) -> list[Path]:
    """What this user submitted before a time (ISO, UTC) and nobody needs any more, oldest first.

    These are batches without a living job, of which every stage is built or was given to a later batch, and then the
    plans that no other batch names.
    """
    batches: dict[str, list[Element]] = {}
    newest: dict[str, str] = {}  # stage key -> the batch that it was given to last
    for element in read_elements(store):
        batches.setdefault(element.batch, []).append(element)
        newest.update(dict.fromkeys(element.keys, element.batch))

    def over(element: Element) -> bool:
        job = queue.get((element.batch, element.number))
        left = (k for k in element.keys if newest[k] == element.batch and not store.has(k))
        return element.submitted < before and not (job and job.alive) and not any(left)

    folder = slurm_folder(store)
    found = [folder / batch for batch, elements in batches.items() if all(map(over, elements))]
    # Of the jobs of others the queue says nothing.
    found = [path for path in found if path.stat().st_uid == os.getuid()]

    def plan_of(path: Path) -> str | None:
        return read_note(path / "batch.json", lambda batch: Path(batch["plan"]).name)

    plans = {
        path.name: path for path in folder.glob("plan-*.json")
    }  # and nothing else, whatever is named
    for path in folder.glob("*/"):
        if path not in found:
            plans.pop(plan_of(path) or "", None)
    named = dict.fromkeys(map(plan_of, found))
    return [*found, *(plans[name] for name in named if name in plans)]


def slurm_folder(store: Store) -> Path:
    """Where batches are kept."""
    return store.folder("jobs", "slurm")
