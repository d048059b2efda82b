"""Several nodes on one machine: network namespaces with addresses of their own, joined by a bridge; for root on Linux.

A node is what a container of a job is: its own network, host name, /etc/hosts and process numbers. So the command that
the platform starts is process 1, which a signal reaches only if it has a handler. Files are shared, but for what is
mounted in a node.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shlex
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from tests.launching import environment

_numbers = itertools.count()

# $1: host name; $2: file for /etc/hosts; $3: shell commands that mount; $4: the job's command.
_ENTER = 'hostname "$1" && mount --bind "$2" /etc/hosts && eval "$3" && exec sh -c "$4"'


class Node:
    """One node of a job: a namespace and, after `start`, what runs in it."""

    def __init__(self, namespace: str, name: str, hosts: Path) -> None:
        self.namespace, self.name, self.hosts = namespace, name, hosts
        self.process: subprocess.Popen[str]

    def start(self, command: str, job: Mapping[str, object], mounts: Sequence[str] = ()) -> None:
        """Run a command as a container's first process: by `sh -c`, in the environment that the platform sets."""
        inner = ["sh", "-c", _ENTER, "sh", self.name, str(self.hosts), " && ".join(("true", *mounts)), command]
        apart = ["unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self.process = subprocess.Popen(
            ["ip", "netns", "exec", self.namespace, *apart, *inner], env=environment(job=job), text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )  # fmt: skip

    def terminate(self) -> None:
        """SIGTERM to the container's first process, as the platform stops a job."""
        parent = self.process.pid
        (first,) = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        os.kill(int(first), signal.SIGTERM)


@contextlib.contextmanager
def nodes(count: int, folder: Path) -> Iterator[list[Node]]:
    """`count` nodes named node-0, node-1, …, at 10.77.0.1, 10.77.0.2, …; skips the test where they cannot be made."""
    prefix = f"mp{os.getpid()}-{next(_numbers)}"
    hosts = folder / "hosts"
    hosts.write_text("127.0.0.1 localhost\n" + "".join(f"10.77.0.{n + 1} node-{n}\n" for n in range(count)))
    made = [Node(f"{prefix}-{n}", f"node-{n}", hosts) for n in range(count)]
    try:
        _join(prefix, made)
        yield made
    finally:
        for node in made:
            if hasattr(node, "process"):
                node.process.kill()
        for name in (f"{prefix}-lan", *(node.namespace for node in made)):
            subprocess.run(["ip", "netns", "delete", name], stderr=subprocess.DEVNULL)


def _join(prefix: str, made: list[Node]) -> None:
    """A switch in a namespace of its own and a cable from each node to it; the machine's own network is not touched."""
    switch = f"{prefix}-lan"
    commands = [f"netns add {switch}", f"-n {switch} link add br0 type bridge", f"-n {switch} link set br0 up"]
    for number, node in enumerate(made):
        commands += [
            f"netns add {node.namespace}",
            f"-n {switch} link add port{number} type veth peer name eth0 netns {node.namespace}",
            f"-n {switch} link set port{number} master br0 up",
            f"-n {node.namespace} address add 10.77.0.{number + 1}/24 dev eth0",
            f"-n {node.namespace} link set eth0 up",
            f"-n {node.namespace} link set lo up",
        ]
    for command in commands:
        try:
            subprocess.run(["ip", *shlex.split(command)], check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"nodes need root, network namespaces and iproute2: ip {command}: {getattr(error, 'stderr', error)}")


def finish(job: list[Node], timeout: int = 150) -> list[str]:
    """What each node said, once all have ended."""
    return [node.process.communicate(timeout=timeout)[0] for node in job]
