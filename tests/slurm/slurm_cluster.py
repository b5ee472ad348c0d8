"""A real Slurm of two nodes on this machine: munged, slurmctld and two slurmds on loopback,
everything in one temporary folder.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "scancel", "setpriv")
NODES = ("n1", "n2")

CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
PlugStackConfig={folder}/plugstack.conf
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
ReturnToService=2
JobRequeue=1
KillWait=15
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=8 RealMemory=64000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=8 RealMemory=64000
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE
"""
"""Nodes of eight CPUs, whatever the machine has, so that one job of the batch files fills one;
cred_expire: after a requeue Slurm holds a job back for as long (default 120 s).
"""


def unavailable() -> str | None:
    """Why there can be no cluster here, or None."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    absent = [p for p in PROGRAMS if shutil.which(p, path=path) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (apt-get install slurm-wlm munge)"
    if os.geteuid() != 0:
        return "slurmd needs root"
    try:
        _free_ports(3)
    except OSError as error:
        return f"no port can be bound on 127.0.0.1: {error}"
    return None


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


@dataclass(frozen=True, slots=True)
class Cluster:
    """A running Slurm; its client commands need :attr:`environment`."""

    folder: Path
    environment: dict[str, str]

    def run(self, *command: object, **variables: object) -> str:
        """Standard output of a client command; ``variables`` are laid over the environment. Raises
        CalledProcessError with what it said.
        """
        environment = self.environment | {k: str(v) for k, v in variables.items()}
        done = subprocess.run(
            [str(c) for c in command],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, (
            f"{command}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
        return done.stdout.strip()

    def facts(self, job: str) -> dict[str, str]:
        """``scontrol show job`` of one job or array task, e.g. ``{"JobState": "RUNNING",
        "Restarts": "0", ...}``.
        """
        words = self.run("scontrol", "show", "job", "--oneliner", job).splitlines()[0].split()
        return dict(w.split("=", 1) for w in words if "=" in w)

    def state(self, job: str) -> str:
        return self.facts(job)["JobState"]

    def queue(self) -> str:
        """One line a job and array task that is known, ended ones included."""
        return self.run(
            "squeue", "--array", "--states=all", "--sort=i", "--format=%.10i %.12j %.12T %.20r %E"
        )

    def processes(self, *words: str) -> list[int]:
        """Process ids of what jobs run whose command line holds all ``words``."""
        return [pid for pid in _of_cluster(self.folder) if set(words) <= set(_command_line(pid))]

    def wait(self, good: Callable[[], bool], what: str, seconds: float = 300) -> None:
        """Poll until ``good()``. Raises AssertionError with the queue when it takes too long."""
        end = time.monotonic() + seconds
        while not good():
            assert time.monotonic() < end, f"not within {seconds} s: {what}\n{self.queue()}"
            time.sleep(0.1)

    def ended(self, *jobs: str) -> bool:
        """No task of these jobs waits, runs or is about to run again."""
        return not self.run("squeue", "--noheader", "--jobs", ",".join(jobs))


@contextmanager
def running() -> Iterator[Cluster]:
    """A cluster with both nodes idle; everything that it started has ended when this is left,
    whatever happened inside.
    """
    folder = Path(
        tempfile.mkdtemp(prefix="slurm-")
    )  # not below pytest's folder: a socket's path has at most 107 bytes
    environment = os.environ | {
        "SLURM_CONF": str(folder / "slurm.conf"),
        "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin",
    }
    environment = {
        k: v
        for k, v in environment.items()
        if k == "SLURM_CONF" or not k.startswith(("SLURM_", "SBATCH_"))
    }
    try:
        with ExitStack() as stack:
            stack.callback(_end_strays, folder)
            _write_files(folder)
            socket_path, key = folder / "munge.sock", folder / "munge.key"
            files = [f"--{n}-file={folder}/munged.{n}" for n in ("pid", "log", "seed")]
            munged = [
                "munged",
                "--foreground",
                "--force",
                f"--socket={socket_path}",
                f"--key-file={key}",
                *files,
            ]
            for program in (
                munged,
                ["slurmctld", "-D"],
                *(["slurmd", "-D", "-N", n] for n in NODES),
            ):
                stack.callback(_end, _start(program, folder, environment))
            cluster = Cluster(folder, environment)
            stack.callback(_cancel_all, cluster)
            _wait_for_nodes(cluster)
            yield cluster
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_files(folder: Path) -> None:
    (folder / "state").mkdir()
    for node in NODES:
        (folder / node).mkdir()
    folder.chmod(0o711)
    key = folder / "munge.key"
    key.touch(mode=0o400)
    key.write_bytes(secrets.token_bytes(64))
    (folder / "plugstack.conf").touch()
    host = socket.gethostname().split(".")[0]
    (folder / "slurm.conf").write_text(CONF.format(host=host, ports=_free_ports(3), folder=folder))


def _start(
    command: Sequence[str], folder: Path, environment: dict[str, str]
) -> subprocess.Popen[bytes]:
    """Start a daemon that ends with this process; its output goes to a file in ``folder``."""
    with (folder / f"{'-'.join([command[0], *(w for w in command if w in NODES)])}.out").open(
        "wb"
    ) as said:
        return subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
        )


def _end(daemon: subprocess.Popen[bytes]) -> None:
    daemon.terminate()
    try:
        daemon.wait(10)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def _cancel_all(cluster: Cluster) -> None:
    """Cancel what is left in the queue, so that no job outlives its slurmd."""
    subprocess.run(
        ["scancel", "--signal=KILL", "--full", "--user=root"],
        env=cluster.environment,
        capture_output=True,
        timeout=20,
        check=False,
    )
    subprocess.run(
        ["scancel", "--user=root"],
        env=cluster.environment,
        capture_output=True,
        timeout=20,
        check=False,
    )
    end = time.monotonic() + 15
    while time.monotonic() < end and _of_cluster(cluster.folder, {"slurmstepd"}):
        time.sleep(0.1)


def _end_strays(folder: Path) -> None:
    """Kill what is left of this cluster: processes that were born with its SLURM_CONF (jobs, their
    children, daemons).
    """
    for pid in _of_cluster(folder):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _of_cluster(folder: Path, names: set[str] | None = None) -> list[int]:
    mark = f"SLURM_CONF={folder}/slurm.conf".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                named = names is None or (entry / "comm").read_text().strip() in names
                if named and mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:  # it has ended meanwhile
                continue
    return found


def _command_line(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return []


def _wait_for_nodes(cluster: Cluster, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    command = ["sinfo", "--noheader", "--Node", "--format=%N %t"]
    while time.monotonic() < end:
        done = subprocess.run(
            command,
            env=cluster.environment,
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        if done.returncode == 0 and done.stdout.split() == [w for n in NODES for w in (n, "idle")]:
            return
        time.sleep(0.2)
    said = "\n".join(
        f"== {p.name}\n{p.read_text(errors='replace')[-2000:]}"
        for p in sorted(cluster.folder.glob("*.[lo][ou][gt]"))
    )
    raise RuntimeError(f"the nodes were not idle within {seconds} s\n{said}")
