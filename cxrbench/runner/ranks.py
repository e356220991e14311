"""Trainings in processes of their own: a rank for each device, or one where memory may run out and be tried again.

Several devices are `torch.distributed.run` children of the worker. They end with it, and hold the stage's lock too, so
that no work is done twice at once.
"""

import ctypes
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

from cxrbench.core.errors import CxrbenchError, InterruptedRunError
from cxrbench.core.spec import Execution
from cxrbench.core.stage import Stage
from cxrbench.core.store import write_json
from cxrbench.runner.failures import message, read_failure
from cxrbench.runner.faults import KINDS, LostRankError, MemoryFullError, MemoryHeldError, explain
from cxrbench.runner.gpu_wait import Patience
from cxrbench.runner.job import Job
from cxrbench.runner.orphans import die_with_parent


def fit(job: Job, stage: Stage, context: Any, work: Path, lock: int, patience: Patience) -> None:
    """Train a stage in this process, or where several devices or another try may be needed, in others."""
    # What ran out of memory keeps some of it: where there may be another try, each has a process of its own.
    if job.execution.devices == 1 and not job.execution.halve_on_oom and not patience:
        from cxrbench.runner.execute import run_fit

        run_fit(stage, context, work)
        return
    while True:
        try:
            fit_apart(job, stage, work, lock)
        except MemoryFullError as error:
            if patience and isinstance(error, MemoryHeldError):
                print(f"{stage.key}: {error}", flush=True)
                patience.note(error)
                patience.wait()
                continue
            if not job.execution.halve_on_oom:
                raise
            from cxrbench.runner.halving import halve

            images = halve(work, error)
            print(f"{stage.key}: {error}", flush=True)
            print(
                f"{stage.key}: --halve-on-oom: again with micro-batches of {images} a device",
                flush=True,
            )
        else:
            return


def fit_apart(job: Job, stage: Stage, work: Path, lock: int) -> None:
    """Train in a process of its own for each device; raises what the first of them that failed left."""
    launcher = [
        "-m", "torch.distributed.run", "--standalone",
        "--nproc-per-node", str(job.execution.devices),
    ] if job.execution.devices > 1 else []  # fmt: skip
    command = [sys.executable, *launcher, "-m", "cxrbench.runner.worker", str(job.path), "--rank-of",
               stage.digest]  # fmt: skip
    blocked = {signal.SIGTERM, signal.SIGINT}
    kernel = ctypes.CDLL(None)  # between fork and exec the loader's lock may be another thread's
    signal.pthread_sigmask(signal.SIG_BLOCK, blocked)  # none between the start and the handlers
    group = subprocess.Popen(
        command,
        pass_fds=(lock,),
        preexec_fn=lambda: _begin_launcher(kernel, blocked),
    )
    asked = []

    def ask(number: int, frame: Any) -> None:
        asked.append(number)
        group.send_signal(signal.SIGTERM)

    before = {n: signal.signal(n, ask) for n in blocked}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked)
    try:
        group.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if (work / "trained" / "facts.json").is_file():
        return
    if (work / "interrupted").exists():
        (work / "interrupted").unlink()
        raise InterruptedRunError("asked to stop; the training state is saved")
    if asked and not list(work.glob("rank-*.failure.json")):
        raise InterruptedRunError("asked to stop before the training began")
    raise first_failure(work, job.execution)


def _begin_launcher(kernel: ctypes.CDLL, blocked: set[signal.Signals]) -> None:
    """What the launcher of the ranks is before it begins: it ends with its worker, and its ranks with it."""
    die_with_parent(kernel)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked)


def first_failure(work: Path, execution: Execution) -> CxrbenchError:
    """The error of the rank that failed first, or the ranks that left none: the others miss these."""
    found = sorted(work.glob("rank-*.failure.json"), key=lambda path: path.stat().st_mtime)
    values = [value for path in found if (value := read_failure(path))]
    for path in found:
        path.unlink()
    own = next((value for value in values if not value.get("lost")), None)
    if own:
        rank = f"rank {own.get('rank')}: " if execution.devices > 1 else ""
        kind = KINDS.get(str(own.get("type")), CxrbenchError)
        error = kind(f"{rank}{own['error']}")
        error.exit_code = own["exit_code"]
        if isinstance(error, MemoryHeldError):
            error.need = own["need"]
        return error
    left = {str(value.get("rank")) for value in values}
    silent = [str(rank) for rank in range(execution.devices) if str(rank) not in left]
    word = "rank" if len(silent) == 1 else "ranks"
    heard = f"; rank {values[0].get('rank')} says: {values[0]['error']}" if values else ""
    return CxrbenchError(
        f"{word} {', '.join(silent)} of {execution.devices} ended without a word: killed, perhaps for want "
        f"of memory (smaller --set recipe.batch_size with --set recipe.accumulate), or silent for "
        f"{execution.rank_seconds:.0f} s{heard}"
    )


def run_rank(job: Job, digest: str) -> int:
    """One process of a training on several devices."""
    die_with_parent(ctypes.CDLL(None))
    from cxrbench.runner.execute import run_fit

    stage = job.graph[digest]
    work = job.store.partial(stage.key)
    try:
        run_fit(stage, job.context(), work)
    except InterruptedRunError as error:
        (work / "interrupted").touch()
        return error.exit_code
    except Exception as raised:
        traceback.print_exc()
        known = explain(raised, stage, job.execution, job.store.root)
        rank = os.environ.get("RANK", "0")
        code = known.exit_code if isinstance(known, CxrbenchError) else 1
        lost = isinstance(known, LostRankError)
        value = {
            "rank": rank,
            "error": message(known),
            "exit_code": code,
            "lost": lost,
            "type": type(known).__name__,
            "need": getattr(known, "need", 0),
        }
        write_json(work / f"rank-{rank}.failure.json", value)
        return code
    return 0
