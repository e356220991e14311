"""`python -m cxrbench.runner.engines.slurm_job FOLDER`: what a batch job does on its node.

It starts the worker, hands signals on, and writes the records of the runs that the worker completed.

- SIGUSR1 is SLURM's warning of the time limit: the worker saves its state and ends, and the job is put back into the queue.
- SIGTERM is SLURM's own end of the job (preemption, a node that is drained, scancel): the worker saves, and whether the job
  comes back is SLURM's to say. A job that asked for its return here would undo a scancel.
"""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from cxrbench.core.provenance import VARIABLES
from cxrbench.core.stage import Stage
from cxrbench.core.store import Store, read_json_as, read_note, write_json
from cxrbench.runner.engines.base import WORKER_VARIABLES
from cxrbench.runner.engines.slurm_batch import SIGNAL
from cxrbench.runner.engines.slurm_queue import SlurmError, call
from cxrbench.runner.failures import failure_path
from cxrbench.runner.faults import how_it_ended
from cxrbench.runner.finish import write_records
from cxrbench.runner.plan import Plan

RESUMABLE = 75
STOPPED = (RESUMABLE, -signal.SIGTERM)  # what a worker that was asked to stop ends with


def own_number(environment: dict[str, str]) -> tuple[int, str]:
    """(number of this job's element, what scontrol calls the job)."""
    # The plain number of an array's last element is the whole array's.
    if array := environment.get("SLURM_ARRAY_JOB_ID"):
        element = int(environment["SLURM_ARRAY_TASK_ID"])
        return element, f"{array}_{element}"
    return 0, environment.get("SLURM_JOB_ID", "")


def worker_environment(environment: dict[str, str]) -> dict[str, str]:
    """The environment of a worker: without SLURM's variables, which libraries take for orders."""
    kept = {k: v for k, v in environment.items() if not k.startswith("SLURM_") or k in VARIABLES}
    return {**kept, **WORKER_VARIABLES}


class BatchJob:
    """One element of a batch."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, environment
        self.number, self.job = own_number(environment)
        self.batch, self.given = read_json_as(folder / "batch.json", self._taken, "a batch of jobs")
        self.store = Store(Path(self.batch["store"]))
        plan = Path(self.batch["plan"])
        self.plan = read_json_as(plan, partial(Plan.from_json, where=str(plan)), "a plan")
        self.signals: list[int] = []
        self.worker: subprocess.Popen[bytes] | None = None

    def _taken(self, batch: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """(batch, this element of it), looked through before any work."""
        given = batch["elements"][str(self.number)]
        texts = [batch["store"], batch["plan"], *given["todo"], *given["awaited"], *given["keys"]]
        if given["todo"]:
            texts.append(given["job"])
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("a name that is no text")
        if not Path(batch["plan"]).is_file():
            raise ValueError("its plan is gone")
        return {**batch, "timeouts": int(batch["timeouts"]), "again": bool(batch["again"])}, given

    def run(self) -> int:
        """Do the job; 0 when all is built, or at least all that other jobs wait for."""
        if not self.given["todo"]:
            print(f"{len(write_records(self.plan, self.store))} records written", flush=True)
            return 0
        for number in (getattr(signal, f"SIG{SIGNAL}"), signal.SIGTERM):
            signal.signal(number, self._hand_on)
        before = {digest for digest in self.given["todo"] if self._has(digest)}
        code = self._work()
        for digest in self.given["todo"]:
            if self._has(digest):
                # A worker that was begun again must not write a record twice for the same stage.
                again = bool(self.batch["again"]) and digest not in before
                write_records(self.plan, self.store, after=digest, again=again)
        return self._end(code)

    def _hand_on(self, number: int, frame: Any) -> None:
        self.signals.append(number)
        if self.worker:
            self.worker.terminate()

    def _work(self) -> int:
        job = Path(self.given["job"])
        command = [sys.executable, "-m", "cxrbench.runner.worker", str(job)]
        print(
            f"job {self.job}: {' + '.join(self.given['keys'])}\nlog: {job.with_suffix('.log')}",
            flush=True,
        )
        with job.with_suffix(".log").open("ab") as log:
            self.worker = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                env=worker_environment(self.environment),
            )  # fmt: skip
        if self.signals:  # one that came before there was a worker
            self.worker.terminate()
        return self.worker.wait()

    def _end(self, code: int) -> int:
        left = [digest for digest in self.given["todo"] if not self._has(digest)]
        if not left:
            return 0
        stage = self.plan.graph[left[0]]
        if signal.SIGTERM in self.signals:
            # SLURM may have signalled the worker's children, too: what they say of it is no failure.
            failure_path(self.store, stage).unlink(missing_ok=True)
            print(f"{stage.key}: stopped by SLURM; a training has saved its state", flush=True)
            return RESUMABLE
        if self.signals and code in STOPPED:
            return self._after_time_limit(stage)
        if not failure_path(self.store, stage).is_file():
            self._note_failure(stage, how_it_ended(code), code)
        print(f"failed: {stage.key}", flush=True)
        needed = set(self.given["awaited"]) & set(left)
        # Other jobs read what is there; ending with an error would keep them from it.
        return 0 if self.given["awaited"] and not needed else max(1, code)

    def _after_time_limit(self, stage: Stage) -> int:
        note = self.folder / f"{self.number}.timeouts.json"
        before = read_note(note, lambda value: {**value, "count": int(value["count"])}) or {}
        count = before.get("count", 0) + 1
        write_json(note, {"count": count, "stage": stage.key})
        # Only trainings keep what they have done: what was cut off from its start would be so again.
        hopeless = stage.kind != "fit" and before.get("stage") == stage.key
        if hopeless or count > self.batch["timeouts"]:
            self._note_failure(
                stage,
                f"stopped at the time limit {count} times"
                + (" without an end" if hopeless else "; its state is saved")
                + "; ask for more --time and give the same command again",
                RESUMABLE,
            )
            return RESUMABLE
        try:
            call(["scontrol", "requeue", self.job])
        except SlurmError as error:
            self._note_failure(
                stage, f"saved at the time limit, but not put back into the queue ({error}); give the same "
                f"command again, which goes on from there", RESUMABLE,
            )  # fmt: skip
            return RESUMABLE
        print(f"time limit {count}: {stage.key} is stopped; back in the queue", flush=True)
        return RESUMABLE

    def _note_failure(self, stage: Stage, error: str, code: int) -> None:
        log = Path(self.given["job"]).with_suffix(".log")
        value = {"stage": stage.key, "error": error, "exit_code": max(1, code), "log": str(log)}
        write_json(failure_path(self.store, stage), value)

    def _has(self, digest: str) -> bool:
        return self.store.has(self.plan.graph[digest].key)


if __name__ == "__main__":
    sys.exit(BatchJob(Path(sys.argv[1]), dict(os.environ)).run())
