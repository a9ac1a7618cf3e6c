"""A run over several hosts: one is lost, one joins late, the network to one is cut for a moment and for longer.

    sudo python benchmarks/hosts.py --out runs/hosts

Hosts are network namespaces of this machine (`ip netns`, which needs root), each with an address of its own on one
bridge and a Ray node in it; the run directory is on storage that all of them see, as docs/reliability.md asks. First
one undisturbed run of the bundled example on this machine alone, then one of the same seed on the hosts, which suffers
one event after the other, the next when two stages were finished since. At its end `genal-ray verify` has to find
nothing, the budget has to be spent to the last label, and nobody may have resumed it. Prints the table: what each
event took along, the seconds to the next finished stage, and where parts of the run were then.
"""

from __future__ import annotations

import argparse
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from chaos import KINDS, LAUNCHER, SETTINGS, audit, end, is_a, newest_stage, results

SETTINGS = {**SETTINGS, "scorer.num_actors": 2, "cluster.resource_wait_s": 120}
PORT = 6379
BRIDGE = "gr-bridge"
NUM_HOSTS, CPUS = 3, 3
"""Hosts beside the head, and the logical CPUs of each: two of them hold the run, one alone does not."""
SHORT_CUT_S, LONG_CUT_S = 8.0, 60.0
"""Shorter and longer than the time after which Ray gives a node up."""
JOINS_AFTER_S = 20.0
START_S = 60.0
TIMEOUT_S = 900.0


class Host:
    """A network namespace with one address, and the Ray node in it."""

    def __init__(self, number: int, environment: dict[str, str]) -> None:
        self.name, self.address, self._link = f"gr-host{number}", f"10.77.0.{number + 1}", f"gr-link{number}"
        self._environment = environment
        ip("netns", "add", self.name)
        ip("link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        ip("link", "set", self._link, "master", BRIDGE, "up")
        ip("-n", self.name, "addr", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            ip("-n", self.name, "link", "set", device, "up")

    def run(self, *words: str, log: Path) -> subprocess.Popen[bytes]:
        """Starts a command on the host."""
        with log.open("ab") as output:
            command = ["ip", "netns", "exec", self.name, *words]
            return subprocess.Popen(command, stdout=output, stderr=output, env=self._environment)

    def start_node(self, head: Host | None, folder: Path) -> subprocess.Popen[bytes]:
        """A Ray node that joins the one of `head`, or is the head."""
        if head is None:
            place = ["--head", f"--port={PORT}", f"--temp-dir={folder / 'ray'}", "--num-cpus=0"]
            place.append("--include-dashboard=false")
        else:
            place = [f"--address={head.address}:{PORT}", f"--num-cpus={CPUS}"]
        ray = str(Path(sys.executable).with_name("ray"))
        words = ["start", "--block", f"--node-ip-address={self.address}", "--object-store-memory=300000000", *place]
        return self.run(ray, *words, log=folder / f"{self.name}.log")

    def processes(self) -> list[psutil.Process]:
        found = []
        for pid in ip("netns", "pids", self.name).split():
            try:
                found.append(psutil.Process(int(pid)))
            except psutil.NoSuchProcess:
                continue
        return found

    def parts(self) -> list[str]:
        """What of a run is there."""
        running = self.processes()
        kinds = [kind for kind in KINDS if kind not in (LAUNCHER, "raylet", "head node")]
        counts = {kind: sum(is_a(kind, process) for process in running) for kind in kinds}
        return [kind if count == 1 else f"{count} {kind}s" for kind, count in counts.items() if count]

    def lose(self) -> None:
        """All at once, as when the power fails."""
        self.cut()
        for process in self.processes():
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue

    def cut(self) -> None:
        ip("link", "set", self._link, "down")

    def heal(self) -> None:
        ip("link", "set", self._link, "up")

    def remove(self) -> None:
        self.lose()
        ip("link", "delete", self._link)
        ip("netns", "delete", self.name)


class Network:
    """The hosts: a head, where the run is started, and those that hold its parts."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._environment = {
            **os.environ,
            "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(16),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self._hosts: list[Host] = []
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def head(self) -> Host:
        return self._hosts[0]

    @property
    def workers(self) -> list[Host]:
        """Those that are not lost."""
        return [host for host in self._hosts[1:] if host.name in self._nodes]

    def join(self) -> None:
        """Another host; the first one is the head, and has to listen before others can join."""
        host = Host(len(self._hosts), self._environment)
        self._hosts.append(host)
        self._nodes[host.name] = host.start_node(None if host is self.head else self.head, self._folder)
        until = time.monotonic() + START_S
        while not listens(self.head.address) and time.monotonic() < until:
            time.sleep(0.5)

    def restart_ended_nodes(self) -> None:
        """As the machines' supervisors would: Ray ends a node that it had given up."""
        for host in self.workers:
            if self._nodes[host.name].poll() is not None:
                self._nodes[host.name] = host.start_node(self.head, self._folder)

    def lose(self, host: Host) -> None:
        host.lose()
        end(self._nodes.pop(host.name))

    def fullest(self) -> Host:
        return max(self.workers, key=lambda host: len(host.parts()))

    def remove(self) -> None:
        for host in self._hosts:
            host.remove()
        for node in self._nodes.values():
            end(node)


def lost(network: Network) -> tuple[str, list[str]]:
    """The others have room."""
    host = network.fullest()
    parts = host.parts()
    network.lose(host)
    return "host lost, room on the others", parts


def lost_and_replaced(network: Network) -> tuple[str, list[str]]:
    """The others have no room until another one joins."""
    host = network.fullest()
    parts = host.parts()
    network.lose(host)
    time.sleep(JOINS_AFTER_S)
    network.join()
    return f"host lost, no room until another joins after {JOINS_AFTER_S:.0f} s", parts


def cut_for(seconds: float) -> Callable[[Network], tuple[str, list[str]]]:
    def happens(network: Network) -> tuple[str, list[str]]:
        host = network.fullest()
        parts = host.parts()
        host.cut()
        time.sleep(seconds)
        host.heal()
        return f"network cut for {seconds:.0f} s, then healed", parts

    return happens


EVENTS = (cut_for(SHORT_CUT_S), lost, lost_and_replaced, cut_for(LONG_CUT_S))


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    event: str
    took_along: list[str]
    seconds: float
    """To the next finished stage, its work included."""
    then: dict[str, list[str]]
    """What of the run was on which host after that."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/hosts"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if os.geteuid() or shutil.which("ip") is None:
        raise SystemExit("network namespaces need root, and the command ip (on Debian: apt-get install iproute2)")
    out = args.out.resolve()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    rng = random.Random(args.seed)
    settings = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "cluster.cli", "run", "demo", *settings, "--output-dir"]
    subprocess.run([*command, str(out / "undisturbed")], check=True, stdout=subprocess.DEVNULL)
    with hosts(Path("/tmp") / f"gr-hosts-{os.getpid()}") as network:
        for _ in range(1 + NUM_HOSTS):
            network.join()
        words = [*command, str(out / "run"), "--address", f"{network.head.address}:{PORT}"]
        launcher = network.head.run(*words, log=out / "launcher.log")
        try:
            rows = suffer(network, launcher, out / "run", rng)
        finally:
            end(launcher)
    findings = audit(out / "run", SETTINGS)
    print(table(rows))
    same = results(out / "run") == results(out / "undisturbed")
    print(f"launcher's exit code {launcher.returncode}; same labels and accuracies as undisturbed: {same}")
    print("findings:", *findings or ["none"], sep="\n  ")
    if findings or launcher.returncode or len(rows) < len(EVENTS):
        raise SystemExit(1)


@contextmanager
def hosts(folder: Path) -> Iterator[Network]:
    """The network, gone with its processes and files at the end."""
    folder.mkdir()
    ip("link", "add", BRIDGE, "type", "bridge")
    network = Network(folder)
    try:
        ip("addr", "add", "10.77.0.254/24", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        yield network
    finally:
        network.remove()
        ip("link", "delete", BRIDGE)
        shutil.rmtree(folder, ignore_errors=True)


def suffer(network: Network, launcher: subprocess.Popen[bytes], run: Path, rng: random.Random) -> list[Row]:
    """The run to its end, with one event after the other."""
    rows: list[Row] = []
    until = time.monotonic() + TIMEOUT_S

    def next_stage(after: str) -> bool:
        """Waits for a newer one; whether there is one and the run goes on."""
        while launcher.poll() is None and time.monotonic() < until:
            network.restart_ended_nodes()
            if (stage := newest_stage(run)) and stage != after:
                return True
            time.sleep(0.2)
        return False

    next_stage("")
    for happens in EVENTS:
        if not (next_stage(newest_stage(run)) and next_stage(newest_stage(run))):
            break
        time.sleep(rng.uniform(0, 6))
        after, begun = newest_stage(run), time.monotonic()
        event, parts = happens(network)
        if not next_stage(after):
            break
        seconds, then = round(time.monotonic() - begun, 1), {host.name: host.parts() for host in network.workers}
        rows.append(Row(event=event, took_along=parts, seconds=seconds, then=then))
        print(rows[-1], flush=True)
    while next_stage(newest_stage(run)):
        continue
    return rows


def listens(address: str) -> bool:
    try:
        with socket.create_connection((address, PORT), timeout=1):
            return True
    except OSError:
        return False


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


def table(rows: list[Row]) -> str:
    lines = ["| event | what was there | s to the next stage | where parts were then |", "|---" * 4 + "|"]
    for row in rows:
        then = "; ".join(f"{name}: {', '.join(parts)}" for name, parts in row.then.items() if parts)
        lines.append(f"| {row.event} | {', '.join(row.took_along)} | {row.seconds:.0f} | {then} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
