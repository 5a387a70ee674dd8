#!/usr/bin/env python3
"""Runs a command beside a Slurm of its own: a controller and a few nodes, all on this machine.

    single_machine_slurm.py [--nodes N] COMMAND [ARGUMENT...]

COMMAND finds this Slurm by SLURM_CONF: `srun`, `sbatch`, `salloc` just work in it. Its TMPDIR goes when
it ends. Its exit status is this one's; 77 says that Slurm is not installed. Nodes are called node01, node02, ... and have 8
processors each, whatever the machine has. Needs no root, no cgroups and no network but loopback.

However the command or this ends, nothing stays: the daemons, and what they started, are ended by pid.
"""

import argparse
import ctypes
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

NOT_INSTALLED = 77
PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sinfo")
PATH = os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/local/sbin:/usr/sbin:/sbin"
ATTEMPTS = 5  # Another process may take a port that was free.
READY_SECONDS = 30
END_SECONDS = 5

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
LIBC = ctypes.CDLL(None, use_errno=True)

CONFIGURATION = """\
ClusterName=single
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/builtin
SlurmdParameters=config_overrides
MpiDefault=none
KillWait=2
ReturnToService=2
NodeName={nodes} NodeHostname={host} NodeAddr=127.0.0.1 Port={node_ports} CPUs=8
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class Ended(Exception):
    """A signal asked this to end."""


def prctl(option, value):
    if LIBC.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def free_ports(count):
    """So many ports in a row that nobody listens on now."""
    while True:
        sockets = []
        try:
            sockets.append(socket.create_server(("127.0.0.1", 0)))
            first = sockets[0].getsockname()[1]
            for port in range(first + 1, first + count):
                sockets.append(socket.create_server(("127.0.0.1", port)))
            return first
        except (OSError, OverflowError):
            continue
        finally:
            for listening in sockets:
                listening.close()


def children():
    """Pids of this process's children, those of its dead descendants among them."""
    found = []
    for name in os.listdir("/proc"):
        try:
            with open("/proc/%s/stat" % int(name), encoding="latin-1") as stat:
                if int(stat.read().rpartition(")")[2].split()[1]) == os.getpid():
                    found.append(int(name))
        except (ValueError, OSError):
            continue
    return found


def end(process):
    """Asks a child to end, and makes it."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def end_descendants():
    """Kills and reaps until there is none: those of a dead child come to this process."""
    while True:
        pids = children()
        if not pids:
            return
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            os.waitpid(pid, 0)


class Slurm:
    """The daemons, in a folder of their own."""

    def __init__(self, folder, nodes):
        self.folder = folder
        self.nodes = ["node%02d" % (i + 1) for i in range(nodes)]
        self.environment = dict(os.environ, PATH=PATH, SLURM_CONF=folder + "/slurm.conf", TMPDIR=folder)
        self.daemons = []

    def start(self):
        """Whether they came up; their logs are in the folder."""
        os.mkdir(self.folder + "/state")
        with open(self.folder + "/munge.key", "wb") as key:
            os.chmod(key.name, 0o600)
            key.write(os.urandom(128))
        port = free_ports(1 + len(self.nodes))
        with open(self.folder + "/slurm.conf", "w", encoding="utf-8") as configuration:
            configuration.write(CONFIGURATION.format(
                host=socket.gethostname().partition(".")[0], user=getpass.getuser(), folder=self.folder,
                controller_port=port, nodes="node[01-%02d]" % len(self.nodes),
                node_ports="[%d-%d]" % (port + 1, port + len(self.nodes))))
        # Forced: it warns instead of refusing where others may enter the folders above its own.
        self.start_daemon("munged", "--foreground", "--force", *(
            "--%s=%s/munge.%s" % (option, self.folder, name)
            for option, name in (("key-file", "key"), ("socket", "socket"), ("pid-file", "pid"),
                                 ("seed-file", "seed"), ("log-file", "log"))))
        if not self.wait_until(lambda: os.path.exists(self.folder + "/munge.socket")):
            return False
        self.start_daemon("slurmctld", "-D", "-c")
        for node in self.nodes:
            self.start_daemon("slurmd", "-D", "-N", node)
        return self.wait_until(self.all_idle)

    def start_daemon(self, *command):
        with open("%s/%d.%s.out" % (self.folder, len(self.daemons), command[0]), "w", encoding="utf-8") as log:
            self.daemons.append(subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                preexec_fn=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL)))

    def all_idle(self):
        states = subprocess.run(
            ["sinfo", "--Node", "--noheader", "--format=%T"], env=self.environment, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, check=False).stdout.split()
        return states == [b"idle"] * len(self.nodes)

    def wait_until(self, condition):
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            if any(daemon.poll() is not None for daemon in self.daemons):
                return False
            if condition():
                return True
            time.sleep(0.1)
        return False

    def stop(self):
        # munged last: the others speak through it.
        for daemon in reversed(self.daemons):
            end(daemon)
        end_descendants()

    def logs(self):
        for name in sorted(os.listdir(self.folder)):
            if name.endswith((".out", ".log")):
                with open(os.path.join(self.folder, name), encoding="utf-8", errors="replace") as log:
                    yield "%s: %s" % (name, log.read()[-2000:])


def run(nodes, command):
    for _ in range(ATTEMPTS):
        # Not in TMPDIR: the path of a socket has 107 bytes at most.
        with tempfile.TemporaryDirectory(prefix="slurm.", dir="/tmp") as folder:
            os.chmod(folder, 0o755)
            slurm = Slurm(folder, nodes)
            process = None
            try:
                if slurm.start():
                    process = subprocess.Popen(command, env=slurm.environment)
                    status = process.wait()
                    return status if status >= 0 else 128 - status
                failure = "\n".join(slurm.logs())
            except Ended:
                return 128 + signal.SIGTERM
            finally:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                if process is not None:
                    end(process)
                slurm.stop()
                signal.signal(signal.SIGTERM, raise_ended)
    print("Slurm did not start:\n" + failure, file=sys.stderr)
    return 1


def raise_ended(*_):
    raise Ended()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    if not arguments.command:
        parser.error("there is no COMMAND")
    for program in PROGRAMS:
        if shutil.which(program, path=PATH) is None:
            print("%s is not installed: apt-get install slurmctld slurmd slurm-client munge" % program,
                  file=sys.stderr)
            return NOT_INSTALLED

    # The work is a child's, which still tidies up when this process is killed.
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGTERM, raise_ended)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        status = 1
        try:
            if os.getppid() == parent:
                status = run(arguments.nodes, arguments.command)
        except Ended:
            status = 128 + signal.SIGTERM
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os.kill(pid, signal.SIGTERM))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    sys.exit(main())
