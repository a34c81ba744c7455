"""SLURM cluster with two nodes on this machine, for the duration of a test session.

``python tests/cluster/slurm.py COMMAND ...`` runs a command in such a cluster.
"""

import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
NODES = ("drg1", "drg2")
CPUS = 2
"""CPUs of each node in SLURM's configuration, whatever the machine has."""

_PREFIX = "drgrade-slurm-"
_SYSTEM_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])

# cred_expire is also what a requeued job waits before it starts again: two minutes by default.
_CONF = """\
ClusterName=drgrade
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
SlurmctldPort={port0}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobRequeue=1
ReturnToService=2
KillWait=5
MinJobAge=300
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_interval=2
NodeName={nodes[0]} NodeHostName={host} NodeAddr=127.0.0.1 Port={port1} CPUs={cpus} RealMemory=1000
NodeName={nodes[1]} NodeHostName={host} NodeAddr=127.0.0.1 Port={port2} CPUs={cpus} RealMemory=1000
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing_requirement() -> str:
    """Explain why SLURM cannot be started here.

    Returns:
        The reason; empty if it can be started.
    """
    missing = [name for name in DAEMONS if not shutil.which(name, path=_SYSTEM_PATH)]
    if missing:
        return f"{', '.join(missing)} not installed: apt-get install slurm-wlm munge"
    if os.geteuid() != 0:
        return "SLURM's daemons have to be started as root"
    return ""


@contextmanager
def cluster() -> Iterator[dict[str, str]]:
    """Start munged, slurmctld and two slurmd, and stop them with their jobs at the end.

    Yields:
        Environment of commands that use the cluster.

    Raises:
        RuntimeError: If it does not start, with the ends of its logs.
    """
    remove_leftovers()
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    folder.chmod(0o755)  # munged runs as another user
    (folder / "owner").write_text(str(os.getpid()))
    environment = {**os.environ, "SLURM_CONF": f"{folder}/slurm.conf", "PATH": _SYSTEM_PATH}
    daemons = []
    try:
        daemons.append(_start_munge(folder, environment))
        _write_conf(folder)
        for command in (["slurmctld", "-D"], *(["slurmd", "-D", "-N", node] for node in NODES)):
            daemons.append(_start(command, folder, environment))
        _wait(lambda: _idle(environment), "the nodes to be idle", folder)
        yield environment
    finally:
        _stop(folder, environment)
        for daemon in daemons:
            daemon.wait(timeout=10)


def remove_leftovers() -> None:
    """Stop clusters of test sessions that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        owner = folder / "owner"
        if not owner.is_file() or not Path(f"/proc/{owner.read_text()}").is_dir():
            _kill(folder)
            shutil.rmtree(folder, ignore_errors=True)


def _start_munge(folder: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start munge with its own key and socket, independent of the system's."""
    home = folder / "munge"
    home.mkdir()
    (home / "key").write_bytes(secrets.token_bytes(128))
    (home / "key").chmod(0o600)
    user = "munge" if any(entry.pw_name == "munge" for entry in pwd.getpwall()) else "root"
    for path in (home, home / "key"):
        shutil.chown(path, user)
    home.chmod(0o755)
    files = [
        f"--{kind}={home / kind.split('-')[0]}" for kind in ("key-file", "socket", "log-file", "pid-file")
    ]
    files.append(f"--seed-file={home / 'seed'}")
    daemon = _start(["munged", "--foreground", *files], folder, environment, user)
    _wait(lambda: (home / "socket").exists(), "munged's socket", folder)
    return daemon


def _write_conf(folder: Path) -> None:
    ports = _free_ports(3)
    text = _CONF.format(
        host=socket.gethostname().split(".")[0],
        folder=folder,
        port0=ports[0],
        port1=ports[1],
        port2=ports[2],
        nodes=NODES,
        cpus=CPUS,
    )
    for name in ("state", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir()
    (folder / "slurm.conf").write_text(text)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _start(
    command: list[str], folder: Path, environment: dict[str, str], user: str | None = None
) -> subprocess.Popen[bytes]:
    name = "-".join(re.sub(r"\W", "", part) for part in (command[0], command[-1]))
    with (folder / f"{name}.out").open("w") as output:
        return subprocess.Popen(
            [shutil.which(command[0], path=_SYSTEM_PATH) or command[0], *command[1:]],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C ends the tests; they end the daemons
            user=user,
        )


def _idle(environment: dict[str, str]) -> bool:
    asked = subprocess.run(
        ["sinfo", "--noheader", "--Node", "--format=%T"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return asked.stdout.split() == ["idle"] * len(NODES)


def _wait(ready: Callable[[], bool], what: str, folder: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            logs = [f"{path}:\n{path.read_text()[-2000:]}" for path in sorted(folder.glob("*.log"))]
            raise RuntimeError("\n".join([f"waited {seconds:.0f} s for {what}", *logs]))
        time.sleep(0.2)


def _stop(folder: Path, environment: dict[str, str]) -> None:
    """Cancel the jobs, and end all processes of the cluster."""
    subprocess.run(["scancel", "--user=root"], env=environment, capture_output=True, check=False, timeout=60)
    _kill(folder)
    shutil.rmtree(folder, ignore_errors=True)


def _kill(folder: Path) -> None:
    """End the processes with this cluster in their environment: daemons, steps and jobs."""
    for sent in (signal.SIGTERM, signal.SIGKILL):
        for _ in range(25):
            processes = members(folder)
            if not processes:
                return
            for process in processes:
                try:
                    os.kill(process, sent)
                except ProcessLookupError:
                    continue
            time.sleep(0.2)


def members(folder: Path) -> list[int]:
    """List the processes of a cluster.

    Args:
        folder: The cluster's folder, with ``slurm.conf``.

    Returns:
        Process ids, without this process and its parent.
    """
    entry = f"SLURM_CONF={folder}/slurm.conf".encode()
    own = {os.getpid(), os.getppid()}
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            inside = entry in path.read_bytes().split(b"\0")
            ended = path.with_name("stat").read_text().rsplit(") ", 1)[-1].startswith("Z")
        except OSError:
            continue
        if inside and not ended and int(path.parent.name) not in own:
            found.append(int(path.parent.name))
    return found


if __name__ == "__main__":
    if reason := missing_requirement():
        sys.exit(reason)
    with cluster() as found:
        sys.exit(subprocess.run(sys.argv[1:] or ["sinfo"], env=found, check=False).returncode)
