"""A throwaway Slurm of one node with fake GPUs, for tests: no root, no systemd, no cgroups, nothing outside a folder.

A GPU is any character device, so /dev/null and /dev/zero will do: Slurm sets CUDA_VISIBLE_DEVICES and schedules them.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

DEVICES = ("/dev/null", "/dev/zero")

CONF = """
ClusterName=hicache
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={port}
SlurmdPort={next_port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
MaxArraySize={max_array}
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=200000
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=500
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
PropagateResourceLimits=NONE
KillWait=5
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 Boards=1 SocketsPerBoard=1 CoresPerSocket=2 ThreadsPerCore=1 \
RealMemory=3000 Gres=gpu:2 State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(what)
        time.sleep(0.1)


def free_port() -> int:
    """A port such that it and the next are free."""
    while True:
        with socket.socket() as first, socket.socket() as second, contextlib.suppress(OSError):
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            second.bind(("127.0.0.1", port + 1))
            return port


def ask(*words: str) -> str:
    """Output of a Slurm command; empty if it fails."""
    return subprocess.run(words, capture_output=True, text=True, timeout=60).stdout.strip()


@contextlib.contextmanager
def slurm(folder: Path, max_array: int) -> Iterator[None]:
    """The cluster while inside; SLURM_CONF points to it."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o755)
    key, port, host = folder / "munge.key", free_port(), socket.gethostname().partition(".")[0]
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    (folder / "gres.conf").write_text(f"Name=gpu File={','.join(DEVICES)}\n")
    values = {"host": host, "folder": folder, "user": getpass.getuser(), "port": port, "next_port": port + 1}
    (folder / "slurm.conf").write_text(CONF.format(**values, max_array=max_array))
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    munge = [f"--{name}={folder}/munge.{name}" for name in ("socket",)]
    munge += [f"--key-file={key}", f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log"]
    daemons = [
        (["munged", "--foreground", "--force", *munge, f"--seed-file={folder}/munge.seed"], folder / "munge.socket"),
        (["slurmctld", "-D", "-c"], folder / "slurmctld.pid"),
        (["slurmd", "-D", "-N", host], folder / "slurmd.pid"),
    ]
    running: list[subprocess.Popen[bytes]] = []
    try:
        for command, sign in daemons:
            with open(folder / f"{command[0]}.out", "wb") as out:
                running.append(subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True))
            until(sign.exists, 20, f"{command[0]} did not start, see {folder}/{command[0]}.out")
        until(lambda: ask("sinfo", "-h", "-o", "%t") == "idle", 20, f"the node did not become idle, see {folder}")
        yield
    finally:
        ask("scancel", "--user", getpass.getuser())
        for daemon in reversed(running):
            daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
        os.environ.pop("SLURM_CONF", None)
        if before is not None:
            os.environ["SLURM_CONF"] = before
