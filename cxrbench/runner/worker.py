"""`python -m cxrbench.runner.worker job.json`: build some stages, one after the other, each once.

Success is the artefact that was published, never an exit code. A failure leaves
`jobs/<digest16>.failure.json`. Training on several devices runs in `torch.distributed.run` children, which
end with this process and hold the stage's lock too, so that no work is done twice at once.
"""

import ctypes
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from cxrbench.core.columns import FILE
from cxrbench.core.digest import source_digest
from cxrbench.core.errors import CannotWriteError, CxrbenchError, DataError, InterruptedRunError
from cxrbench.core.provenance import collect_provenance
from cxrbench.core.registry import Registry, load_target
from cxrbench.core.spec import Execution
from cxrbench.core.stage import Stage
from cxrbench.core.store import (
    HOME_VARIABLE,
    MISFITS,
    Store,
    a_number,
    read_json,
    read_json_as,
    read_note,
    write_json,
)
from cxrbench.runner.faults import KINDS, LostRankError, MemoryFullError, MemoryHeldError, explain
from cxrbench.runner.gpu_wait import Patience
from cxrbench.runner.graph import Graph, from_json, to_json
from cxrbench.runner.orphans import die_with_parent
from cxrbench.runner.tracking import log_summary


class Job:
    """What a worker is asked to do."""

    def __init__(self, path: Path) -> None:
        self.path = path
        value = read_json(path)
        try:
            self.store = Store(Path(value["store"]))
            self.graph: Graph = from_json(value["nodes"])
            self.todo: list[str] = [self.graph[digest].digest for digest in value["todo"]]
            self.execution = Execution.parse(value["execution"], where=str(path))
            self.registry = Registry(Path(p) for p in value["plugins"])
            self.roots = {name: Path(p) if p else None for name, p in value["roots"].items()}
            self.sides = {key: [int(s) for s in of] for key, of in value.get("sides", {}).items()}
        except CxrbenchError as error:
            raise type(error)(f"{path}: {error}") from None
        except (*MISFITS, RuntimeError) as error:
            raise DataError(
                f"{path}: not a job of cxrbench ({type(error).__name__}: {error}); run the command that "
                f"made it again"
            ) from None

    def context(self) -> Any:
        """The context of stages that read data; imports NumPy and pandas."""
        from cxrbench.runner.context import Context

        return Context(self.store, self.registry, self.roots, self.execution, self.sides)


def failure_path(store: Store, stage: Stage) -> Path:
    """Where a failed stage says why."""
    return store.folder("jobs") / f"{stage.digest[:16]}.failure.json"


def read_failure(path: Path) -> dict[str, Any] | None:
    """Why a stage, or a rank of it, failed; None where nothing says it."""

    def failure(value: Any) -> dict[str, Any]:
        need = int(a_number(value.get("need", 0)))
        return {
            **value,
            "error": str(value["error"]),
            "exit_code": int(value["exit_code"]),
            "need": need,
        }

    return read_note(path, failure)


def build_stage(job: Job, stage: Stage, context: Any) -> None:
    """Build and publish a stage unless it is there; waits when another process is at it."""
    lock = job.store.lock(stage.key)
    if not lock.acquire(wait=False):
        print(f"{stage.key}: another process builds it; waiting", flush=True)
        lock.acquire(wait=True)
    try:
        if job.store.has(stage.key):
            return
        started, cpu = time.monotonic(), time.process_time()
        work = job.store.partial(stage.key)
        spent = _spent_before(work)
        patience = Patience(stage.key, work, job.execution)
        if stage.kind != "score":
            patience.wait()
        if stage.kind == "fit":
            _fit(job, stage, context, work, lock.descriptor, patience)
        with job.store.building(stage.key) as out:
            facts = _make(stage, context, work, out)
            meta = {
                "kind": stage.kind,
                "name": stage.name,
                "digest": stage.digest,
                "version": stage.version,
                "source": _source(stage),
                "nodes": to_json(stage.ancestry()),  # so that the artefact says how it was built
                "facts": facts,
                "cost": _cost(
                    stage,
                    job.execution,
                    spent + time.monotonic() - started - patience.waited,
                    time.process_time() - cpu,
                ),
                "execution": job.execution.model_dump(mode="json"),
                "provenance": collect_provenance(),
            }
            job.store.publish(stage.key, out, meta)
        job.store.clear_partial(stage.key)
        if stage.kind != "fit":  # a training has logged itself, with its curves
            left = job.store.artefact(stage.key)
            log_summary(stage, job.execution, job.store.root, left, facts)
        failure_path(job.store, stage).unlink(missing_ok=True)
    finally:
        lock.release()


def _spent_before(work: Path) -> float:
    """Seconds that interrupted tries of this training took, as far as they noted it."""
    note, pulse = work / "spent.json", work / "progress.json"
    spent = 0.0
    for path in (note, pulse):
        spent += read_note(path, lambda value: a_number(value["seconds"])) or 0.0
    if pulse.is_file():
        write_json(note, {"seconds": spent})
        pulse.unlink()
    return spent


def _source(stage: Stage) -> str | None:
    return None if stage.kind == "score" else source_digest(load_target(stage.target))


def _make(stage: Stage, context: Any, work: Path, out: Path) -> dict[str, Any]:
    if stage.kind == "score":
        from cxrbench.runner.score import score

        files = {name: context.artefact(parent) / FILE for name, parent in stage.inputs.items()}
        predictions = files["predictions"]
        return score(stage, predictions, files.get("validation", predictions), out)
    from cxrbench.runner import execute

    if stage.kind == "fit":
        trained = work / "trained"
        for name in ("model.safetensors", "log.csv"):
            shutil.copyfile(trained / name, out / name)
        facts: dict[str, Any] = read_json_as(trained / "facts.json", dict, "a training's facts")
        return facts
    makers = {
        "predict": execute.run_predict,
        "compute": execute.run_compute,
        "transform": execute.run_transform,
    }
    return makers[stage.kind](stage, context, out)


def _fit(job: Job, stage: Stage, context: Any, work: Path, lock: int, patience: Patience) -> None:
    # What ran out of memory keeps some of it: where there may be another try, each has a process of its own.
    if job.execution.devices == 1 and not job.execution.halve_on_oom and not patience:
        from cxrbench.runner.execute import run_fit

        run_fit(stage, context, work)
        return
    while True:
        try:
            _fit_apart(job, stage, work, lock)
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


def _fit_apart(job: Job, stage: Stage, work: Path, lock: int) -> None:
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
    raise _first_failure(work, job.execution)


def _begin_launcher(kernel: ctypes.CDLL, blocked: set[signal.Signals]) -> None:
    """What the launcher of the ranks is before it begins: it ends with its worker, and its ranks with it."""
    die_with_parent(kernel)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked)


def _first_failure(work: Path, execution: Execution) -> CxrbenchError:
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
            "error": _message(known),
            "exit_code": code,
            "lost": lost,
            "type": type(known).__name__,
            "need": getattr(known, "need", 0),
        }
        write_json(work / f"rank-{rank}.failure.json", value)
        return code
    return 0


def _cost(stage: Stage, execution: Execution, wall: float, cpu: float) -> dict[str, Any]:
    """Time and memory; `device_seconds` counts every device of a training, one of a prediction."""
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    peak = max(resource.getrusage(who).ru_maxrss for who in whose) * 1024
    devices = {"fit": execution.devices, "score": 0}.get(stage.kind, 1)
    cost: dict[str, Any] = {
        "seconds": wall,
        "cpu_seconds": cpu,
        "peak_memory_bytes": peak,
        "device": execution.accelerator,
        "device_seconds": wall * devices,
    }
    if execution.accelerator == "gpu" and devices:
        import torch

        cost["gpu"] = torch.cuda.get_device_name()
        if stage.kind != "fit":  # a training notes its own, in the process that trained
            cost["peak_gpu_memory_bytes"] = torch.cuda.max_memory_allocated()
    return cost


def _message(error: BaseException) -> str:
    return str(error) if isinstance(error, CxrbenchError) else f"{type(error).__name__}: {error}"


def _threads(execution: Execution) -> None:
    """CPU threads of this process and its children: read by NumPy and torch when they are imported."""
    if execution.threads:
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ[name] = str(execution.threads)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(execution.threads)


def run_apart(job: Path, log: Path, environment: dict[str, str]) -> None:
    """Do a job in a process that was made for it, in a session of its own, printing to its log."""
    os.setsid()
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # the process that forked it ignores it
    with log.open("ab") as stream:
        for number in (1, 2):
            os.dup2(stream.fileno(), number)
    for printed in (sys.stdout, sys.stderr):
        printed.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.environ.clear()
    os.environ.update(environment)
    sys.exit(main([str(job)]))


def main(words: list[str]) -> int:
    """Build the stages of a job; returns an exit code for people, not for the scheduler."""
    job = Job(Path(words[0]))
    _threads(job.execution)
    os.environ[HOME_VARIABLE] = str(job.store.root)
    if "--rank-of" in words:
        return run_rank(job, words[words.index("--rank-of") + 1])
    context = job.context()
    for digest in job.todo:
        stage = job.graph[digest]
        try:
            build_stage(job, stage, context)
        except InterruptedRunError as error:
            print(f"{stage.key}: {error}", flush=True)
            return error.exit_code
        except Exception as raised:
            traceback.print_exc()
            known = explain(raised, stage, job.execution, job.store.root)
            code = known.exit_code if isinstance(known, CxrbenchError) else 1
            value = {"stage": stage.key, "error": _message(known), "exit_code": code,
                     "log": str(job.path.with_suffix(".log")), "type": type(known).__name__, "traceback": traceback.format_exc()}  # fmt: skip
            print(f"{stage.key}: {value['error']}", flush=True)
            try:
                write_json(failure_path(job.store, stage), value)
            except CannotWriteError as full:  # then the exit code says it
                print(full, flush=True)
                return full.exit_code
            return code
        print(f"{stage.key}: done", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
