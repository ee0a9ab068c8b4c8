"""A Slurm cluster of one node in a folder, from the distribution's packages: munged, slurmctld and slurmd, by hand.

Needs root and `apt-get install slurmctld slurmd slurm-client munge`. Nothing of the machine's own configuration is
read or written. `python tests/slurm/cluster.py FOLDER` starts one and prints the variable that clients need.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel", "sinfo")
CPUS = 2
CONFIGURATION = """\
ClusterName=trivet
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
SlurmctldPort={controller_port}
SlurmdPort={node_port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
ReturnToService=2
SlurmdTimeout=120
KillWait=20
MinJobAge=600
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=4000 Gres=gpu:2 State=UNKNOWN
SlurmdParameters=config_overrides
PartitionName=all Nodes={host} Default=YES MaxTime=60 State=UP
"""


class Cluster:
    """One node, started by `start`, ended by `stop`.

    Args:
        folder: for its configuration, state and logs; short, since it holds a socket.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._daemons: list[subprocess.Popen[bytes]] = []

    @staticmethod
    def missing() -> str | None:
        """Why there can be no cluster here."""
        lacking = [name for name in PROGRAMS if _program(name) is None]
        if lacking:
            return f"{', '.join(lacking)} not installed (apt-get install slurmctld slurmd slurm-client munge)"
        return None if os.getuid() == 0 else "needs root"

    @property
    def environment(self) -> dict[str, str]:
        """What clients need besides their own environment."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def start(self) -> None:
        """Start the three daemons and wait until the node is idle."""
        for name in ("munge", "state", "spool"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "munge").chmod(0o755)
        key = self.folder / "munge" / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        text = CONFIGURATION.format(
            host=socket.gethostname().partition(".")[0], folder=self.folder, cpus=CPUS,
            controller_port=_free_port(), node_port=_free_port(),
        )  # fmt: skip
        (self.folder / "slurm.conf").write_text(text)
        # Counted, not there: what is asked for per GPU can so be tried without one.
        for number in range(2):
            (self.folder / f"gpu{number}").touch()
        (self.folder / "gres.conf").write_text(f"AutoDetect=off\nName=gpu File={self.folder}/gpu[0-1]\n")
        munge = self.folder / "munge"
        self._spawn(
            "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={munge / 'socket'}",
            f"--log-file={munge / 'log'}", f"--pid-file={munge / 'pid'}", f"--seed-file={munge / 'seed'}",
        )  # fmt: skip
        self._wait("munged", (munge / "socket").exists, 10)
        self._spawn("slurmctld", "-D", "-i")
        self._wait("slurmctld", lambda: "UP" in self.ask("scontrol", "ping"), 20)
        self._spawn("slurmd", "-D", "-N", socket.gethostname().partition(".")[0])
        self._wait("the node", lambda: self.ask("sinfo", "-h", "-o", "%T").strip() == "idle", 30)

    def stop(self) -> None:
        """End all jobs, then the daemons, the last started first."""
        with suppress(subprocess.SubprocessError, OSError):
            self.ask("scancel", "--full", "--signal=KILL", "--user=root")
            self.ask("scancel", "--user=root")
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in reversed(self._daemons):
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self._daemons.clear()

    def ask(self, *command: str) -> str:
        """What a client prints, its complaints included."""
        done = subprocess.run(
            command, env={**os.environ, **self.environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=30,
        )  # fmt: skip
        return done.stdout

    def logs(self) -> str:
        """The ends of all logs, for a test that failed."""
        found = [self.folder / "munge" / "log", *sorted(self.folder.glob("*.log")), *sorted(self.folder.glob("*.out"))]
        return "\n".join(
            f"== {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in found if path.is_file()
        )

    def _spawn(self, name: str, *options: str) -> None:
        program = _program(name)
        assert program is not None
        with (self.folder / f"{name}.out").open("wb") as output:
            self._daemons.append(
                subprocess.Popen(
                    [program, *options], env={**os.environ, **self.environment}, stdin=subprocess.DEVNULL,
                    stdout=output, stderr=output, start_new_session=True,
                )
            )  # fmt: skip

    def _wait(self, what: str, condition: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with suppress(subprocess.SubprocessError):
                if condition():
                    return
            if any(daemon.poll() is not None for daemon in self._daemons):
                break
            time.sleep(0.2)
        logs = self.logs()
        self.stop()
        raise AssertionError(f"{what} did not come up\n{logs}")


def _program(name: str) -> str | None:
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    if reason := Cluster.missing():
        sys.exit(reason)
    cluster = Cluster(Path(sys.argv[1]).absolute())
    cluster.start()
    print(f"export SLURM_CONF={cluster.environment['SLURM_CONF']}", flush=True)
    try:
        signal.sigwait({signal.SIGINT, signal.SIGTERM})
    finally:
        cluster.stop()
