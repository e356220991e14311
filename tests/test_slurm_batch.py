"""Batches, scripts, the reading of queues and the end of jobs: without a SLURM."""

import json
import os
import shlex
import stat
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cxrbench.core.cluster import Cluster, Request, parse_memory, parse_time, together
from cxrbench.core.errors import ConfigError, UsageError
from cxrbench.core.registry import Registry
from cxrbench.core.spec import BenchSpec, Execution
from cxrbench.core.stage import Stage
from cxrbench.core.store import Store, write_json
from cxrbench.runner import devices
from cxrbench.runner.bench import plan_bench
from cxrbench.runner.chains import all_chains
from cxrbench.runner.engines.slurm import submit_plan
from cxrbench.runner.engines.slurm_batch import (
    MOST_ELEMENTS,
    Batch,
    Ref,
    Waiting,
    batches_of,
    sbatch_words,
    script,
)
from cxrbench.runner.engines.slurm_job import BatchJob, own_number, worker_environment
from cxrbench.runner.engines.slurm_queue import SlurmError, read_accounts, read_queue
from cxrbench.runner.failures import failure_path
from cxrbench.runner.plan import Plan
from cxrbench.runner.status import read_status

PLUGIN = Path(__file__).parent / "plugins" / "small.py"
CPU = Cluster(gpus=0, cpus=1)
PHANTOM = {"name": "phantom", "split": "cv5", "folds": [0, 1], "params": {"images": 60}}


# --- requests


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 1800), ("1:30", 90), ("4:00:00", 14400), ("2-00", 172800), ("1-02:30", 95400), ("1-0:0:5", 86405)],
)  # fmt: skip
def test_times_are_read_as_sbatch_reads_them(text: str, seconds: int) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "4h", "-1", "1:2:3:4", "1-", "4:00:00\n", "٣"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="time"):
        Cluster.parse({"time": text}, where="x.yaml")


def test_an_unquoted_time_of_yaml_is_refused() -> None:
    with pytest.raises(ConfigError, match="quotes"):
        Cluster.parse({"time": 14400}, where="x.yaml")


def test_a_time_without_time_to_save_is_refused() -> None:
    with pytest.raises(ConfigError, match="save_seconds is 120"):
        Cluster.parse({"stages": {"fit": {"time": "2"}}}, where="x.yaml")


@pytest.mark.parametrize("word", ["--dependency=singleton", "--wrap=x", "-p gpu", "--", "--mem=1G"])
def test_options_that_are_ours_are_refused(word: str) -> None:
    with pytest.raises(ConfigError, match="options"):
        Cluster.parse({"options": [word]}, where="x.yaml")


def test_memory() -> None:
    assert [parse_memory(t) for t in ("512", "2048K", "2G", "1T")] == [512, 2, 2048, 1048576]


def test_the_more_special_request_wins_and_a_chain_asks_for_the_most() -> None:
    cluster = Cluster.parse(
        {"partition": "a", "time": "60", "mem": "8G", "gpus": 1, "options": ["--constraint=a100"],
         "stages": {"fit": {"time": "1-00", "gpus": 2}, "aecnn": {"mem": "64G"}, "fit-aecnn": {"gpus": 4},
                    "score": {"gpus": 0, "mem": "96G"}}},
        where="test",
    )  # fmt: skip
    fit = cluster.request("fit", "aecnn")
    assert (fit.partition, fit.time, fit.mem, fit.gpus) == ("a", "1-00", "64G", 4)
    assert fit.options == ["--constraint=a100"]
    score = cluster.request("score", "vgg16")
    assert (score.time, score.mem, score.gpus) == ("60", "96G", 0)
    job = together([fit, cluster.request("predict", "aecnn"), score])
    assert (job.time, job.mem, job.gpus) == ("1-00", "96G", 4)


# --- batches


def stages(count: int) -> list[Stage]:
    from cxrbench.core.stage import DataView

    view = DataView("d", 1, {}, "r", "s", "x", 0, ("a",))
    return [Stage("fit", f"m{i}", "t", 1, {}, view) for i in range(count)]


def made(*after: set[Ref], request: Request = CPU) -> list[Batch]:
    chains = [[stage] for stage in stages(len(after))]
    return batches_of([Waiting(c, request, frozenset(a)) for c, a in zip(chains, after, strict=True)])  # fmt: skip


def shapes(batches: list[Batch]) -> list[tuple[bool, list[int], str]]:
    return [(b.array, list(b.elements), b.dependency) for b in batches]


def test_what_waits_for_the_same_is_an_array() -> None:
    assert shapes(made(set(), set(), {Ref("7")}, {Ref("7")})) == [
        (True, [0, 1], ""),
        (True, [0, 1], "afterok:7"),
    ]


def test_what_waits_for_elements_of_an_array_has_their_numbers() -> None:
    found = made({Ref("7", 3), Ref("9")}, {Ref("7", 1), Ref("9")}, {Ref("8", 1)})
    assert shapes(found) == [
        (True, [1, 3], "afterok:9,aftercorr:7"),
        (False, [0], "afterok:8_1"),
    ]
    assert [found[0].elements[n][0].name for n in (1, 3)] == ["m1", "m0"]


def test_what_waits_for_elements_of_two_numbers_is_a_job_of_its_own() -> None:
    found = made({Ref("7", 3), Ref("8", 2)}, {Ref("7", 1), Ref("8", 1)}, {Ref("7", 2), Ref("8", 2)})
    assert shapes(found) == [(True, [1, 2], "aftercorr:7:8"), (False, [0], "afterok:7_3:8_2")]


def test_every_chain_is_submitted_once() -> None:
    refs = [Ref("1", 0), Ref("1", 1), Ref("2"), Ref("2", 1), Ref("3", 1)]
    after = [{refs[i % 5], refs[(i * 3) % 5]} for i in range(40)]
    names = [chain[0].name for batch in made(*after) for chain in batch.elements.values()]
    assert sorted(names) == sorted(f"m{i}" for i in range(40))


def test_arrays_are_as_long_as_clusters_allow() -> None:
    found = made(*[set() for _ in range(MOST_ELEMENTS + 2)])
    assert [len(batch.elements) for batch in found] == [MOST_ELEMENTS, 2]


def test_other_requests_are_other_batches() -> None:
    chains = [[stage] for stage in stages(2)]
    waiting = [Waiting(c, replace_request(n), frozenset()) for n, c in enumerate(chains)]
    assert [b.array for b in batches_of(waiting)] == [False, False]


def replace_request(cpus: int) -> Request:
    return Request(gpus=0, cpus=cpus + 1)


# --- words and script


def test_the_words_of_sbatch(tmp_path: Path) -> None:
    request = Request(
        partition="gpu", account="chest; rm -rf /", time="1-12", mem="32G", gpus=2, options=["--constraint=a b"]
    )  # fmt: skip
    words = sbatch_words(
        request, tmp_path / "50%" / "id", processes=2, save_seconds=90, array=[1, 3], dependency="afterok:5"
    )  # fmt: skip
    assert words[0] == "sbatch"
    assert words[-2:] == ["--constraint=a b", str(tmp_path / "50%" / "id" / "job.sh")]
    for word in (
        "--requeue", "--kill-on-invalid-dep=yes", "--signal=B:USR1@90", "--job-name=cxrbench-id", "--gpus=2",
        "--cpus-per-task=8", "--time=2160", "--mem=32G", "--partition=gpu", "--account=chest; rm -rf /",
        "--array=1,3", "--dependency=afterok:5", f"--output={tmp_path}/50%%/id/%a.out",
    ):  # fmt: skip
        assert word in words
    plain = sbatch_words(Request(gpus=0), tmp_path, processes=1, save_seconds=90, array=None, dependency="")  # fmt: skip
    assert not [w for w in plain if w.startswith(("--array", "--dependency", "--gpus", "--time", "--mem"))]  # fmt: skip


def test_the_script_quotes_its_folder_and_outlives_an_early_warning(tmp_path: Path) -> None:
    folder = tmp_path / "a'b $(touch hurt) c"
    text = script(folder)
    assert shlex.split(text.splitlines()[-1])[-1] == str(folder)
    checked = tmp_path / "job.sh"
    checked.write_text(text.replace("exec ", "kill -USR1 $$; echo "))
    done = subprocess.run(["sh", str(checked)], capture_output=True, text=True, cwd=tmp_path, check=True)  # fmt: skip
    assert done.stdout.strip().endswith(str(folder))
    assert not (tmp_path / "hurt").exists()


# --- chains


def test_chains_hold_what_only_waits_for_them(plan: Plan, store: Store) -> None:
    chains = all_chains(plan.missing(store), store)
    kinds = sorted([s.kind for s in chain] for chain in chains)
    assert kinds == sorted(
        [["fit", "predict", "score"]] * 4 + [["compute"]] * 2 + [["transform"]] * 2 + [["compute"]] * 2
    )  # fmt: skip


# --- a queue of fakes


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Two folds of a plain method and of one that waits for a statistic; tests have stores of their own."""
    spec = BenchSpec.parse(
        {"name": "q", "preset": "quick", "methods": ["small", "small-difference"], "datasets": [PHANTOM]},
        where="test",
    )  # fmt: skip
    return plan_bench(spec, Registry([PLUGIN]), Store(tmp_path_factory.mktemp("plan")), "cpu")


class Fakes:
    """Programs on the PATH that note how they were called and print what they are told to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.says(
            "sbatch", 'n=$(($(cat "$0.n" 2>/dev/null || echo 100) + 1)); echo $n | tee "$0.n"'
        )
        self.says("squeue", f"cat {shlex.quote(str(folder / 'queue'))} 2>/dev/null || true")
        self.says("sacct", "exit 1")
        self.says("scontrol", "true")

    def says(self, name: str, body: str) -> None:
        path = self.folder / name
        path.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> "$0.calls"\n{body}\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def calls(self, name: str) -> list[str]:
        path = self.folder / f"{name}.calls"
        return path.read_text().splitlines() if path.is_file() else []

    def queue(self, *lines: str) -> None:
        (self.folder / "queue").write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fakes:
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return Fakes(folder)


def submit(plan: Plan, store: Store, cluster: Cluster = CPU, **options: Any) -> Any:
    return submit_plan(
        plan, store, Registry([PLUGIN]), Execution(engine="slurm"), cluster, **options
    )


def queue_of(store: Store, state: str = "PENDING") -> list[str]:
    """What squeue would print of all that was submitted."""
    lines = []
    for folder in store.root.glob("jobs/slurm/*/"):
        batch, job = (
            json.loads((folder / "batch.json").read_text()),
            (folder / "job").read_text().strip(),
        )
        for number in batch["elements"]:
            name = f"{job}_{number}" if batch["array"] else job
            lines.append(f"{name}|cxrbench-{folder.name}|{state}|Dependency")
    return lines


def test_submitting_twice_queues_nothing_twice(plan: Plan, store: Store, fakes: Fakes) -> None:
    first = submit(plan, store)
    assert first.calls == len(fakes.calls("sbatch")) == 5  # with the one for the last records
    assert sorted(key for keys in first.jobs.values() for key in keys) == sorted(
        stage.key for stage in plan.graph.values()
    )
    assert fakes.calls("sbatch")[-1].count("afterany:101:102:103:104 ") == 1
    fakes.queue("77|vasp|RUNNING|None", *queue_of(store))
    second = submit(plan, store)
    assert (second.jobs, second.records_job, len(second.waiting)) == ({}, None, 18)
    assert len(fakes.calls("sbatch")) == 5


def test_what_ended_without_its_artefact_is_submitted_again(
    plan: Plan, store: Store, fakes: Fakes
) -> None:
    submit(plan, store)
    lines = queue_of(store)
    fakes.queue(*(line.replace("PENDING", "TIMEOUT") if "101_0" in line else line for line in lines))  # fmt: skip
    again = submit(plan, store)
    assert len(again.jobs) == 1
    assert len(again.waiting) == 15


def test_an_unreadable_queue_submits_nothing(plan: Plan, store: Store, fakes: Fakes) -> None:
    fakes.says("squeue", "echo 'slurm_load_jobs error: Unable to contact' >&2; exit 1")
    with pytest.raises(SlurmError, match="squeue: slurm_load_jobs error: Unable to contact"):
        submit(plan, store)
    assert fakes.calls("sbatch") == []


def test_a_refused_submission_says_what_is_queued_and_goes_on(
    plan: Plan, store: Store, fakes: Fakes
) -> None:
    fakes.says("sbatch", 'test -e "$0.n" && { echo "QOSMaxSubmitJobPerUserLimit" >&2; exit 1; }; echo 5 | tee "$0.n"')  # fmt: skip
    with pytest.raises(
        SlurmError, match=r"(?s)QOSMaxSubmit.*asked by: sbatch .*4 jobs are in the queue"
    ):
        submit(plan, store)
    fakes.says("sbatch", "echo 9")
    fakes.queue(*(f"5_{n}|cxrbench-{p.parent.name}|RUNNING|None" for p in store.root.glob("jobs/slurm/*/job")
                  for n in range(4)))  # fmt: skip
    rest = submit(plan, store)
    assert {job.partition("_")[0] for job in rest.jobs} == {"9"}
    assert len(rest.waiting) == 8
    assert any("aftercorr:5" in c or "afterok:5_2" in c for c in fakes.calls("sbatch"))


def test_force_leaves_queued_work_alone(plan: Plan, store: Store, fakes: Fakes) -> None:
    submit(plan, store)
    fakes.queue(*queue_of(store))
    with pytest.raises(UsageError, match="is in the queue as job 10"):
        submit(plan, store, again=True)


def test_what_has_done_its_work_is_removed_after_a_week(
    plan: Plan, store: Store, fakes: Fakes
) -> None:
    def aged() -> set[Path]:
        """Every batch of now, as if it were a month old; which came first stays."""
        for path in store.root.glob("jobs/slurm/*/batch.json"):
            batch = json.loads(path.read_text())
            then = datetime.fromisoformat(batch["submitted"]) - timedelta(days=30)
            write_json(path, {**batch, "submitted": then.isoformat()})
        return set(store.root.glob("jobs/slurm/*"))

    first = submit(plan, store)
    old = aged()
    fakes.queue(*queue_of(store))
    assert first.calls == 5 and submit(plan, store).jobs == {}
    assert set(store.root.glob("jobs/slurm/*")) == old, "all of it is alive"
    fakes.queue(*queue_of(store, "COMPLETED"))
    fits = [s.key for s in plan.graph.values() if s.kind == "fit" and s.name == "small"]
    for digest, stage in plan.graph.items():  # all but the first training and what follows it
        if not any(s.key == fits[0] for s in stage.ancestry().values()):
            write_json(store.artefact(stage.key) / "stage.json", {"digest": digest})
    submit(plan, store)
    left = set(store.root.glob("jobs/slurm/*"))
    [batch] = [path for path in old & left if path.is_dir()]
    assert fits[0] in (batch / "batch.json").read_text(), (
        "when the queue was read it had work to do"
    )
    assert [path.suffix for path in old & left if path.is_file()] == [".json"], "and reads its plan"
    assert len([path for path in left - old if path.is_dir()]) == 2, (
        "the new one, and that for the records"
    )
    aged()
    fakes.queue(*queue_of(store, "FAILED"))
    submit(plan, store)
    assert not set(store.root.glob("jobs/slurm/*")) & old, "its stages were given to a later one"


def test_what_ended_this_week_keeps_its_logs(plan: Plan, store: Store, fakes: Fakes) -> None:
    submit(plan, store)
    before = set(store.root.glob("jobs/slurm/*"))
    submit(plan, store)
    assert set(store.root.glob("jobs/slurm/*")) > before


def test_a_request_for_no_stage_is_refused(plan: Plan, store: Store, fakes: Fakes) -> None:
    with pytest.raises(ConfigError, match=r"cluster\.stages\.fits: no stage .* 'fit'"):
        submit(plan, store, Cluster(gpus=0, stages={"fits": Request(mem="1G")}))
    assert fakes.calls("sbatch") == []


def test_the_queue_as_squeue_prints_it(fakes: Fakes) -> None:
    fakes.queue(
        "12_3|cxrbench-ab|RUNNING|None", "13|cxrbench-cd|PENDING|(Reserved|odd)", "14|other|RUNNING|None", "torn"
    )  # fmt: skip
    found = read_queue()
    assert {key: (str(job.ref), job.state, job.reason) for key, job in found.items()} == {
        ("ab", 3): ("12_3", "RUNNING", "None"),
        ("cd", 0): ("13", "PENDING", "(Reserved|odd)"),
    }


def test_the_accounting_as_sacct_prints_it(fakes: Fakes) -> None:
    fakes.says("sacct", "printf '12_3|CANCELLED by 1000\\n13|OUT_OF_MEMORY\\n14|COMPLETED+\\n'")
    found = {str(ref): job.state for ref, job in read_accounts(["12", "13", "14"]).items()}
    assert found == {"12_3": "CANCELLED", "13": "OUT_OF_MEMORY", "14": "COMPLETED"}


def test_status_shows_the_jobs(plan: Plan, store: Store, fakes: Fakes) -> None:
    submit(plan, store)
    lines = queue_of(store)
    fakes.queue(*lines[1:])
    lost = lines[0].partition("|")[0]
    fakes.says("sacct", f"echo '{lost}|NODE_FAIL'")
    status = read_status(store)
    assert status["queue_error"] is None
    assert {row["state"] for row in status["jobs"] if row["job"] == lost} <= {"NODE_FAIL"}
    assert sum(row["alive"] for row in status["jobs"]) == len(lines) - 1
    fakes.says("squeue", "exit 3")
    assert read_status(store)["queue_error"] == "squeue: ended with code 3"


@pytest.mark.parametrize(
    "text", ["", "[]", '{"elements": 3}', '{"elements": {}, "array": 1, "submitted": 1}']
)
def test_status_outlives_a_damaged_batch(plan: Plan, store: Store, fakes: Fakes, text: str) -> None:
    submit(plan, store)
    fakes.queue(*queue_of(store))
    whole = len(read_status(store)["jobs"])
    (store.folder("jobs", "slurm", "torn") / "batch.json").write_text(text)
    assert len(read_status(store)["jobs"]) == whole > 0


def test_status_needs_no_slurm_where_nothing_was_submitted(store: Store, fakes: Fakes) -> None:
    assert read_status(store)["jobs"] == []
    assert fakes.calls("squeue") == []


# --- what GPUs a cluster has is not known here


def settle(**options: Any) -> Cluster:
    words: dict[str, Any] = {"gpus": None, "devices": None, "accelerator": None, **options}
    return devices.gpus_of_jobs(Cluster(), **words)


def test_the_gpus_of_jobs_must_be_said() -> None:
    with pytest.raises(UsageError, match="--gpus N"):
        settle()
    assert settle(gpus=2).gpus == 2
    assert settle(accelerator="gpu", devices=3).gpus == 3
    assert settle(accelerator="cpu").gpus == 0


def test_a_precision_that_cannot_be_known_must_be_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "gpu_count", lambda: 0)
    spec = BenchSpec.parse({"datasets": [PHANTOM]}, where="test")
    with pytest.raises(UsageError, match=r"recipe\.precision"):
        devices.precision_of_jobs(spec, Cluster(gpus=1))
    said = spec.model_copy(update={"recipe": {"precision": "bf16-mixed"}})
    assert devices.precision_of_jobs(said, Cluster(gpus=1)) == "bf16-mixed"
    assert devices.precision_of_jobs(spec, Cluster(gpus=0)) == "32-true"


@pytest.mark.parametrize(
    ("request_", "base", "expected"),
    [
        (Request(gpus=0, cpus=6), Execution(devices=2), ("cpu", 2, 3, 0)),
        (Request(gpus=0), Execution(), ("cpu", 1, 2, 0)),
        (Request(gpus=2), Execution(accelerator="gpu", devices=1), ("gpu", 2, 0, 4)),
        (Request(gpus=0, cpus=4), Execution(accelerator="gpu", devices=2), ("cpu", 1, 4, 0)),
    ],
)
def test_a_job_runs_on_what_it_asks_for(
    request_: Request, base: Execution, expected: tuple[Any, ...]
) -> None:
    found = devices.execution_of_job(base, Cluster(), request_)
    assert (found.accelerator, found.devices, found.threads, found.workers) == expected


# --- the job on its node


def test_a_worker_sees_no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = worker_environment({"SLURM_JOB_ID": "5", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "HOME": "/h"})  # fmt: skip
    assert {k: v for k, v in seen.items() if k.startswith("SLURM") or k == "HOME"} == {
        "SLURM_JOB_ID": "5",
        "HOME": "/h",
    }


def test_an_element_is_never_taken_for_its_whole_array() -> None:
    array = {"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}
    assert own_number(array) == (3, "12_3")
    assert own_number({"SLURM_JOB_ID": "12"}) == (0, "12")


WORKER = """
import signal, sys, time
from pathlib import Path
def stop(number, frame):
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
{body}
"""


@pytest.fixture
def job(
    plan: Plan, store: Store, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, BatchJob]]:
    """Runs a batch job of one chain whose worker is a few lines of Python."""

    def run(body: str, *, kind: str = "fit", timeouts: int = 2, built: tuple[str, ...] = (),
            awaited: tuple[str, ...] = (), folder: str = "b") -> tuple[int, BatchJob]:  # fmt: skip
        fit = next(s for s in plan.graph.values() if s.kind == kind and s.name == "small")
        chain = [
            fit,
            *(s for s in plan.graph.values() if fit.digest in s.ancestry() and s is not fit),
        ]
        place = store.folder("jobs", "slurm", folder)
        write_json(store.root / "plan.json", plan.to_json())
        write_json(place / "batch.json", {
            "store": str(store.root), "plan": str(store.root / "plan.json"), "array": False, "again": False,
            "timeouts": timeouts, "submitted": "", "elements": {"0": {
                "job": str(place / "job.json"), "todo": [s.digest for s in chain],
                "keys": [s.key for s in chain],
                "awaited": [s.digest for s in chain if s.kind in awaited]}},
        })  # fmt: skip
        for stage in chain:
            if stage.kind in built:
                write_json(store.artefact(stage.key) / "stage.json", {})
        code = (
            "import os, sys; from pathlib import Path\n"
            "from cxrbench.runner.engines import slurm_job\n"
            "import subprocess; real = subprocess.Popen\n"
            f"fake = [sys.executable, '-c', {WORKER.format(body=body)!r}]\n"
            "def popen(words, **k):\n"
            "    worker = 'cxrbench.runner.worker' in words\n"
            "    return real([*fake, words[-1]] if worker else words, **k)\n"
            "subprocess.Popen = popen\n"
            "sys.exit(slurm_job.BatchJob(Path(sys.argv[1]), dict(os.environ)).run())"
        )
        environment = {**os.environ, "SLURM_JOB_ID": "12"}
        done = subprocess.run([sys.executable, "-c", code, str(place)], env=environment, timeout=60,
                              capture_output=True, text=True, check=False)  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, BatchJob(place, {"SLURM_JOB_ID": "12"})

    return run


def failure(made: BatchJob) -> str | None:
    stage = next(made.plan.graph[d] for d in made.given["todo"] if not made.store.has(made.plan.graph[d].key))  # fmt: skip
    path = failure_path(made.store, stage)
    return str(json.loads(path.read_text())["error"]) if path.is_file() else None


SIGNALLED = "import os; os.kill(os.getppid(), signal.{}); time.sleep(30)"


def test_the_time_limit_puts_the_job_back(job: Any, fakes: Fakes) -> None:
    code, made = job(SIGNALLED.format("SIGUSR1"))
    assert code == 75
    assert fakes.calls("scontrol") == ["requeue 12"]
    assert failure(made) is None


def test_the_end_that_slurm_decides_asks_for_nothing(job: Any, fakes: Fakes) -> None:
    code, made = job(SIGNALLED.format("SIGTERM"))
    assert code == 75
    assert fakes.calls("scontrol") == [], "a job that was cancelled would come back"
    assert failure(made) is None


def test_time_limits_have_an_end(job: Any, fakes: Fakes) -> None:
    for _ in range(2):
        assert failure(job(SIGNALLED.format("SIGUSR1"))[1]) is None
    code, made = job(SIGNALLED.format("SIGUSR1"))
    assert code == 75
    assert len(fakes.calls("scontrol")) == 2
    assert "stopped at the time limit 3 times; its state is saved; ask for more --time" in str(failure(made))  # fmt: skip


def test_what_saves_nothing_is_not_cut_off_at_the_same_place_again(job: Any, fakes: Fakes) -> None:
    job(SIGNALLED.format("SIGUSR1"), built=("fit",), timeouts=20)
    _, made = job(SIGNALLED.format("SIGUSR1"), built=("fit",), timeouts=20)
    assert len(fakes.calls("scontrol")) == 1
    assert "2 times without an end" in str(failure(made))


def test_a_refused_return_is_said_and_never_a_success(job: Any, fakes: Fakes) -> None:
    fakes.says("scontrol", "echo 'Requested operation is presently disabled' >&2; exit 1")
    code, made = job(SIGNALLED.format("SIGUSR1"))
    assert code == 75
    assert "presently disabled); give the same command again" in str(failure(made))


def test_a_killed_worker_is_a_failure_that_says_so(job: Any) -> None:
    code, made = job("import os; os.kill(os.getpid(), signal.SIGKILL)")
    assert code == 1
    assert failure(made).startswith("the worker was killed by signal 9, perhaps for want of memory")


def test_what_fails_beside_what_others_wait_for_does_not_block_them(job: Any) -> None:
    code, _ = job("sys.exit(65)", built=("fit",), awaited=("fit",), folder="a")
    assert code == 0
    code, _ = job("sys.exit(65)", built=("fit",), awaited=("fit", "predict"), folder="b")
    assert code == 65
    code, _ = job("sys.exit(65)", built=("fit",), folder="c")
    assert code == 65


# --- Lightning inside SLURM


def test_lightning_is_not_confused_by_slurm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment

    from cxrbench.core.spec import Recipe
    from cxrbench.runner.training import make_trainer

    for name, value in {"NTASKS": "2", "JOB_NAME": "x", "JOB_ID": "5", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}.items():  # fmt: skip
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert SLURMEnvironment.detect()
    (tmp_path / "hpc_ckpt_3.ckpt").write_bytes(b"another run's")
    trainer = make_trainer(Recipe(precision="32-true"), Execution(), [], tmp_path, None)
    assert isinstance(trainer._accelerator_connector.cluster_environment, LightningEnvironment)
    assert trainer._checkpoint_connector._hpc_resume_path is None
