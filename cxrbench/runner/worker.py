"""`python -m cxrbench.runner.worker job.json`: build some stages, one after the other, each once.

Success is the artefact that was published, never an exit code. A failure leaves
`jobs/<digest16>.failure.json`.
"""

import os
import resource
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from cxrbench.core.columns import FILE
from cxrbench.core.digest import source_digest
from cxrbench.core.errors import CannotWriteError, CxrbenchError, InterruptedRunError
from cxrbench.core.provenance import collect_provenance
from cxrbench.core.registry import load_target
from cxrbench.core.spec import Execution
from cxrbench.core.stage import Stage
from cxrbench.core.store import HOME_VARIABLE, a_number, read_json_as, read_note, write_json
from cxrbench.runner.failures import failure_path, message
from cxrbench.runner.faults import explain
from cxrbench.runner.gpu_wait import Patience
from cxrbench.runner.graph import to_json
from cxrbench.runner.job import Job
from cxrbench.runner.ranks import fit, run_rank
from cxrbench.runner.tracking import log_summary


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
        _forget_peak(job.execution)
        work = job.store.partial(stage.key)
        spent = _spent_before(work)
        patience = Patience(stage.key, work, job.execution)
        if stage.kind != "score":
            patience.wait()
        if stage.kind == "fit":
            fit(job, stage, context, work, lock.descriptor, patience)
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
        for path in trained.iterdir():
            if path.name != "facts.json":
                shutil.copyfile(path, out / path.name)
        facts: dict[str, Any] = read_json_as(trained / "facts.json", dict, "a training's facts")
        return facts
    makers = {
        "predict": execute.run_predict,
        "compute": execute.run_compute,
        "transform": execute.run_transform,
    }
    return makers[stage.kind](stage, context, out)


def _forget_peak(execution: Execution) -> None:
    """A worker builds several stages: the peak of GPU memory is each one's own."""
    if execution.accelerator == "gpu" and "torch" in sys.modules:
        torch = sys.modules["torch"]
        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()


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
            value = {"stage": stage.key, "error": message(known), "exit_code": code,
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
