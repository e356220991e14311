"""A SLURM of its own for tests: munged, slurmctld and slurmd in the foreground, all in one folder."""

import getpass
import os
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
CLIENTS = ("sbatch", "squeue", "scontrol", "scancel")
READY_SECONDS = 60
KILL_WAIT = 20  # seconds that a job has between SIGTERM and SIGKILL
CONFIGURATION = """
ClusterName=cxrbench-test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmdParameters=config_overrides
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait={wait}
MinJobAge=900
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=4000 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10
"""


def missing() -> list[str]:
    """The programs of SLURM and munge that this machine lacks."""
    return [name for name in (*DAEMONS, *CLIENTS) if _program(name) is None]


def _program(name: str) -> str | None:
    # Debian has the daemons in /usr/sbin, which users do not have on their path.
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        return one.getsockname()[1], two.getsockname()[1]


@dataclass
class Cluster:
    """A running cluster of one node; `environment` points its clients to it."""

    folder: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """The variables that clients need."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def start(self, cpus: int = 2) -> None:
        """Start the daemons and wait until the node takes jobs."""
        for name in ("munge", "state", "spool"):
            (self.folder / name).mkdir(parents=True)
        munge = self.folder / "munge"
        (munge / "key").write_bytes(os.urandom(1024))
        (munge / "key").chmod(0o600)
        host = socket.gethostname().partition(".")[0]
        configuration = CONFIGURATION.format(
            host=host,
            user=getpass.getuser(),
            folder=self.folder,
            ports=_free_ports(),
            cpus=cpus,
            wait=KILL_WAIT,
        )
        (self.folder / "slurm.conf").write_text(configuration)
        self._daemon(
            "munged", "--foreground", "--force", f"--key-file={munge}/key", f"--socket={munge}/socket",
            f"--pid-file={munge}/pid", f"--log-file={munge}/log", f"--seed-file={munge}/seed",
        )  # fmt: skip
        self._wait("munge's socket", lambda: (munge / "socket").exists())
        conf = str(self.folder / "slurm.conf")
        self._daemon("slurmctld", "-D", "-f", conf)
        self._daemon("slurmd", "-D", "-f", conf)
        self._wait("an idle node", lambda: "idle" in self.run("sinfo", "-h", "-o", "%T"))

    def _daemon(self, name: str, *words: str) -> None:
        program = _program(name)
        assert program is not None
        log = (self.folder / f"{name}.out").open("wb")
        environment = {**os.environ, **self.environment}
        self.processes.append(
            subprocess.Popen(
                [program, *words], stdout=log, stderr=subprocess.STDOUT, env=environment
            )
        )

    def _wait(self, what: str, ready) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while not ready():
            for process in self.processes:
                assert process.poll() is None, f"{process.args} ended:\n{self.logs()}"
            assert time.monotonic() < deadline, f"no {what} in {READY_SECONDS} s:\n{self.logs()}"
            time.sleep(0.2)

    def run(self, *words: str) -> str:
        """What a client prints; an empty text when it fails."""
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            env={**os.environ, **self.environment},
            timeout=30,
        )
        return done.stdout if done.returncode == 0 else ""

    def logs(self) -> str:
        """The ends of the daemons' logs."""
        files = sorted(self.folder.glob("*.out"))
        return "\n".join(f"{f.name}: {f.read_text(errors='replace')[-3000:]}" for f in files)

    def stop(self) -> None:
        """End the jobs and the daemons that were started here."""
        self.run("scancel", f"--user={getpass.getuser()}")
        deadline = time.monotonic() + 2 * KILL_WAIT
        # Daemons that go before their jobs have ended leave them running.
        while self.run("squeue", "-h") and time.monotonic() < deadline:
            time.sleep(0.2)
        for process in reversed(self.processes):
            process.terminate()
        for process in reversed(self.processes):
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
