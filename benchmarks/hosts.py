"""A run over several hosts: one is lost, one joins late, the network to one is cut for a moment and for longer.

    sudo python benchmarks/hosts.py --out runs/hosts [--compare]

Hosts are network namespaces of this machine (`ip netns`, which needs root), each with an address of its own on one
bridge and a Ray node in it; the run directory is on storage that all of them see, as docs/reliability.md asks. One run
of the bundled example on the hosts suffers one event after the other, the next when a round was committed since. At its
end `genal-ray verify` has to find nothing, the budget has to be spent to the last label, and nobody may have resumed
it. Prints the table: what was on the host that an event hit, the seconds from the event to the next finished stage and
to the next committed round, the incidents until then, and where the parts of the run were at that moment. Then, with
`--compare`, an undisturbed run of the same seed on this machine alone: whether labels and accuracies are the same.
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
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import chaos
import psutil
from chaos import KINDS, LAUNCHER, audit, end, is_a, newest_stage, read_lines, results

SETTINGS = chaos.SETTINGS | {
    "budget.total": 140,
    "scorer.num_actors": 2,
    "cluster.resource_wait_s": 180,
}
PORT = 6379
BRIDGE, GATEWAY = "gr-bridge", "10.77.0.254"
NUM_HOSTS, CPUS = 3, 3
"""Hosts beside the head, and the logical CPUs of each: two of them hold the run, one alone does not."""
SHORT_CUT_S, SILENT_CUT_S, LONG_CUT_S = 8.0, 32.0, 90.0
"""Shorter than cluster.heartbeat_s (20 s here); longer, but shorter than it takes Ray to give a node up (about 50 s:
five checks of 10 s at most, 3 s apart); longer than both."""
JOINS_AFTER_S = 20.0
START_S = 90.0
TIMEOUT_S = 1800.0


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
        ip("-n", self.name, "route", "add", "default", "via", GATEWAY)
        self.connected = True

    def run(self, *words: str, log: Path) -> subprocess.Popen[bytes]:
        """Starts a command on the host."""
        with log.open("ab") as output:
            command = ["ip", "netns", "exec", self.name, *words]
            return subprocess.Popen(command, stdout=output, stderr=output, env=self._environment)

    def start_node(self, head: Host | None, folder: Path) -> subprocess.Popen[bytes]:
        """A Ray node that joins the one of `head`, or is the head."""
        place = ["--head", f"--port={PORT}", "--num-cpus=0", "--include-dashboard=false"]
        if head is not None:
            place = [f"--address={head.address}:{PORT}", f"--num-cpus={CPUS}"]
        place += [f"--node-ip-address={self.address}", f"--temp-dir={folder / self.name[3:]}"]
        ray = str(Path(sys.executable).with_name("ray"))
        words = ["start", "--block", "--object-store-memory=300000000", *place]
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
        self.connected = False

    def heal(self) -> None:
        ip("link", "set", self._link, "up")
        self.connected = True

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
            if host.connected and self._nodes[host.name].poll() is not None:
                self._nodes[host.name] = host.start_node(self.head, self._folder)

    def lose(self, host: Host) -> None:
        host.lose()
        end(self._nodes.pop(host.name))

    def parts(self) -> str:
        there = {host.name: host.parts() for host in self.workers}
        return "; ".join(f"{name}: {', '.join(parts)}" for name, parts in there.items() if parts)

    def fullest(self) -> Host:
        return max(reversed(self.workers), key=lambda host: len(host.parts()))

    def remove(self) -> None:
        for host in self._hosts:
            with suppress(OSError):  # what is gone already
                host.remove()
        for node in self._nodes.values():
            end(node)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happens to the host with the most parts of the run, and what happens later."""

    name: str
    now: Callable[[Network, Host], None]
    later: Callable[[Network, Host], None] = lambda network, host: None
    after_s: float = 0.0


def cut_for(seconds: float) -> Event:
    return Event(
        name=f"network cut for {seconds:.0f} s",
        now=lambda network, host: host.cut(),
        later=lambda network, host: host.heal(),
        after_s=seconds,
    )


def fill_up(network: Network, host: Host) -> None:
    for _ in range(NUM_HOSTS - 1):
        network.join()


LATE = Event(
    name=f"started without room, {NUM_HOSTS - 1} more hosts join after {JOINS_AFTER_S:.0f} s",
    now=lambda network, host: None,
    later=fill_up,
    after_s=JOINS_AFTER_S,
)
EVENTS = (
    cut_for(SHORT_CUT_S),
    cut_for(SILENT_CUT_S),
    Event(name="host lost, room on the others", now=lambda network, host: network.lose(host)),
    Event(
        name=f"host lost, no room until another joins after {JOINS_AFTER_S:.0f} s",
        now=lambda network, host: network.lose(host),
        later=lambda network, host: network.join(),
        after_s=JOINS_AFTER_S,
    ),
    cut_for(LONG_CUT_S),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    event: str
    hit: str
    """The host and what was on it."""
    stage_s: float
    """To the next finished stage, its work included."""
    round_s: float
    """To the next committed round, likewise."""
    incidents: dict[str, int]
    """By part, until then."""
    then: str
    """What of the run was on which host at that moment."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/hosts"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compare", action="store_true", help="with an undisturbed run")
    args = parser.parse_args()
    if os.geteuid() or shutil.which("ip") is None:
        raise SystemExit("network namespaces need root, and the command ip (on Debian: apt-get install iproute2)")
    out = args.out.resolve()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    settings = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "cluster.cli", "run", "demo", *settings, "--output-dir"]
    with hosts(Path("/tmp") / f"hosts-{os.getpid()}") as network:
        network.join()
        network.join()
        words = [*command, str(out / "run"), "--address", f"{network.head.address}:{PORT}"]
        begun = time.monotonic()
        launcher = network.head.run(*words, log=out / "launcher.log")
        try:
            rows = suffer(network, launcher, out / "run", random.Random(args.seed))
        finally:
            end(launcher)
    print(table(rows))
    print(f"{time.monotonic() - begun:.0f} s; launcher's exit code {launcher.returncode}")
    findings = audit(out / "run", SETTINGS)
    print("findings:", *findings or ["none"], sep="\n  ")
    if args.compare:
        subprocess.run([*command, str(out / "undisturbed")], check=True, stdout=subprocess.DEVNULL)
        same = results(out / "run") == results(out / "undisturbed")
        print(f"same labels and accuracies as undisturbed: {same}")
    if findings or launcher.returncode or len(rows) <= len(EVENTS) or not all(row.round_s for row in rows):
        raise SystemExit(1)


@contextmanager
def hosts(folder: Path) -> Iterator[Network]:
    """The network, gone with its processes and files at the end."""
    ip("link", "add", BRIDGE, "type", "bridge")  # not there twice: two of these would meet
    network = Network(folder)
    try:
        folder.mkdir()
        ip("addr", "add", f"{GATEWAY}/24", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        yield network
    finally:
        network.remove()
        ip("link", "delete", BRIDGE)
        shutil.rmtree(folder, ignore_errors=True)


def suffer(network: Network, launcher: subprocess.Popen[bytes], run: Path, rng: random.Random) -> list[Row]:
    """The run to its end, with one event after the other; first it waits for hosts that join late."""
    until = time.monotonic() + TIMEOUT_S

    def goes_on() -> bool:
        time.sleep(0.2)
        network.restart_ended_nodes()
        return launcher.poll() is None and time.monotonic() < until

    def measure(event: Event, host: Host) -> Row:
        hit, after, known = (
            f"{host.name}: {', '.join(host.parts()) or 'nothing'}",
            newest_stage(run),
            len(incidents(run)),
        )
        rounds, begun = num_rounds(run), time.monotonic()
        waiting, stage_s, round_s = True, 0.0, 0.0
        event.now(network, host)
        while (waiting or not round_s) and goes_on():
            passed = round(time.monotonic() - begun, 1)
            if waiting and passed >= event.after_s:
                event.later(network, host)
                waiting = False
            if not stage_s and newest_stage(run) != after:
                stage_s = passed
            if not round_s and num_rounds(run) > rounds:
                round_s = passed
        count = Counter(line["part"] for line in incidents(run)[known:])
        times = {"stage_s": stage_s, "round_s": round_s}
        row = Row(event=event.name, hit=hit, **times, incidents=dict(count), then=network.parts())
        print(row, flush=True)
        return row

    rows = [measure(LATE, network.workers[0])]
    for event in EVENTS:
        time.sleep(rng.uniform(0, 6))
        if not goes_on():
            break
        rows.append(measure(event, network.fullest()))
    while goes_on():
        continue
    return rows


def num_rounds(run: Path) -> int:
    return len(list((run / "rounds").glob("*/COMMITTED")))


def incidents(run: Path) -> list[dict[str, Any]]:
    return read_lines(run / "incidents.jsonl")


def listens(address: str) -> bool:
    try:
        with socket.create_connection((address, PORT), timeout=1):
            return True
    except OSError:
        return False


def ip(*words: str) -> str:
    """Output of the command. Raises OSError with what it says."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def table(rows: list[Row]) -> str:
    head = ("event", "on the host that it hit", "s to the next stage", "to the next round", "incidents", "parts then")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        lost = ", ".join(f"{part}: {count}" for part, count in row.incidents.items()) or "none"
        lines.append(f"| {row.event} | {row.hit} | {row.stage_s:.0f} | {row.round_s:.0f} | {lost} | {row.then} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
