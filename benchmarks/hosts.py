"""Runs on several hosts of which one is lost, cut off for a while, or late: nothing lost, nothing paid twice.

    sudo python benchmarks/hosts.py [--out runs/hosts] [--cases lost,cut,...]

Each host is a set of namespaces on this machine (network, processes, shared memory, host name) with a raylet of its
own, and a bridge joins them; what they share is the disk, as the nodes of a cluster do. The first host carries Ray's
head and the driver, the others all that computes. In each case the bundled example with small settings loses or gains
hosts once a stage of its first round is finished. Then it has to end by itself, `genal-ray verify` has to find nothing,
and the budget has to be spent to the last label. Needs root, `ip`, `unshare` and `nsenter` (Linux). OUT/cases.jsonl
holds a line for each case; what is in it is not done again. Prints the table.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
from chaos import SETTINGS, audit, is_a, read_lines

BRIDGE = "genal-br"
PORT = 6379
MORE_SETTINGS = {
    "budget.total": 80,
    "cluster.heartbeat_s": 60,
    "learner.max_failures": 5,
    "student.max_failures": 5,
}
TIMEOUT_S = 1500.0
START_S = 120.0
CUT_S = 90.0
"""Ray gives up a node after half a minute."""
SHORT_CUT_S = 8.0


class Host:
    """Namespaces with an address, and what runs in them."""

    def __init__(self, number: int) -> None:
        """Starts it, without Ray."""
        self.name, self.address = f"genal-h{number}", f"10.77.0.{10 + number}"
        self._cable = f"genal-v{number}"
        ip(f"netns add {self.name}")
        ip(f"link add {self._cable} type veth peer name eth0 netns {self.name}")
        ip(f"link set {self._cable} master {BRIDGE} up")
        for words in (f"addr add {self.address}/24 dev eth0", "link set eth0 up", "link set lo up"):
            ip(f"-n {self.name} {words}")
        # Without a name of its own in /etc/hosts, torch's gloo would take this machine's address for the host's.
        script = f"""
            hostname {self.name}
            mount -t tmpfs -o size=2g tmpfs /dev/shm
            printf '127.0.0.1 localhost\\n{self.address} {self.name}\\n' > /run/{self.name}.hosts
            mount --bind /run/{self.name}.hosts /etc/hosts
            exec sleep infinity
        """
        inside = ["unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc"]
        self._outer = subprocess.Popen(["ip", "netns", "exec", self.name, *inside, "sh", "-ec", script])
        self._init = self._wait_for_init()

    def start_ray(self, head: Host | None, temp_dir: Path, num_cpus: int = 0) -> None:
        """As the head when there is none yet."""
        words = [*ray("start"), "--node-ip-address", self.address, "--temp-dir", str(temp_dir / self.name)]
        words += ["--object-store-memory", str(300 * 2**20), "--disable-usage-stats"]
        words += (
            ["--head", "--port", str(PORT), "--num-cpus", "0", "--include-dashboard", "false"]
            if head is None
            else ["--address", f"{head.address}:{PORT}", "--num-cpus", str(num_cpus)]
        )
        subprocess.run(self.inside(words), check=True, timeout=START_S, stdout=subprocess.DEVNULL)

    def inside(self, words: list[str]) -> list[str]:
        spaces = ["--mount", "--net", "--pid", "--uts", "--ipc"]
        here = f"--wd={Path.cwd()}"
        return ["nsenter", "--target", str(self._init.pid), *spaces, here, "--", *words]

    def processes(self, kind: str) -> list[psutil.Process]:
        """Those of a kind of `chaos.KINDS`."""
        space = pid_space(self._init)
        return [one for one in psutil.process_iter() if pid_space(one) == space and is_a(kind, one)]

    def cut(self) -> None:
        ip(f"link set {self._cable} down")

    def heal(self) -> None:
        ip(f"link set {self._cable} up")

    def lose(self) -> None:
        """As when its power goes: silent for the others, all processes gone at once."""
        self.cut()
        self.end()

    def end(self) -> None:
        if self._init.is_running():
            self._init.kill()
        self._outer.wait(30)
        subprocess.run(["ip", "netns", "del", self.name], check=False, stderr=subprocess.DEVNULL)
        Path(f"/run/{self.name}.hosts").unlink(missing_ok=True)

    def _wait_for_init(self) -> psutil.Process:
        until = time.monotonic() + 10
        while time.monotonic() < until:
            for one in psutil.Process(self._outer.pid).children(recursive=True):
                if one.name() == "sleep":
                    return one
            time.sleep(0.05)
        raise SystemExit(f"{self.name} did not start: are you root?")


def pid_space(process: psutil.Process) -> str:
    """Which processes see this one."""
    try:
        return os.readlink(f"/proc/{process.pid}/ns/pid")
    except OSError:
        return ""


def ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True)


def ray(verb: str) -> list[str]:
    return [str(Path(sys.executable).with_name("ray")), verb]


class EarlyEnd(Exception):
    """The run ended before what was waited for."""


class Cluster:
    """The first host, with Ray's head and the run, and those that compute."""

    def __init__(self, case: Case, out: Path) -> None:
        """Starts the hosts and the run."""
        self._num_cpus = case.num_cpus
        self.directory, self._temp_dir = out / case.name, Path(f"/tmp/genal-{os.getpid()}")
        self.settings = {**SETTINGS, **MORE_SETTINGS, **case.settings}
        self.hosts: list[Host] = []
        self._head = Host(0)
        self._head.start_ray(None, self._temp_dir)
        for _ in range(case.num_hosts):
            self.join()
        shutil.rmtree(self.directory, ignore_errors=True)
        words = [word for key, value in self.settings.items() for word in ("--set", f"{key}={value}")]
        place = ["--address", f"{self._head.address}:{PORT}", "--output-dir", str(self.directory)]
        command = [sys.executable, "-m", "cluster.cli", "run", "demo", *words, *place]
        with self.directory.with_suffix(".log").open("w") as log:
            self._run = subprocess.Popen(self._head.inside(command), stdout=log, stderr=subprocess.STDOUT)
        self._begun = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return time.monotonic() - self._begun

    def join(self, host: Host | None = None) -> Host:
        """A new host joins the cluster, or one that was given up."""
        if host is None:
            host = Host(1 + len(self.hosts))
            self.hosts.append(host)
        host.start_ray(self._head, self._temp_dir, self._num_cpus)
        return host

    def wait(self, seconds: float) -> None:
        """Raises EarlyEnd when the run ends, or takes too long."""
        time.sleep(seconds)
        if self._run.poll() is not None or self.seconds > TIMEOUT_S:
            raise EarlyEnd

    def wait_for_stage(self, stage: str, round: int = 1) -> None:
        while not (self.directory / "rounds" / f"{round:04d}" / f"{stage}.json").exists():
            self.wait(0.2)

    def host_of(self, kind: str) -> Host:
        """A host where a process of this kind is, as soon as there is one."""
        while True:
            for host in self.hosts:
                if host.processes(kind):
                    return host
            self.wait(0.2)

    def wait_for_the_end(self) -> None:
        with suppress(EarlyEnd):
            while True:
                self.wait(0.5)

    def end(self) -> None:
        if self._run.poll() is None:
            self._run.kill()
        for host in (*self.hosts, self._head):
            host.end()
        shutil.rmtree(self._temp_dir, ignore_errors=True)


@dataclass(frozen=True, kw_only=True)
class Case:
    """What happens to a run's hosts."""

    name: str
    what: str
    act: Callable[[Cluster], None]
    """Called at the beginning of the run; returns when nothing more will happen."""
    num_hosts: int = 2
    num_cpus: int = 4
    """Of each host but the first, which has none."""
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    case: str
    what: str
    lost: list[str]
    """Parts of the run that were replaced."""
    seconds: float
    findings: list[str]


def lose_the_generator(cluster: Cluster) -> None:
    cluster.wait_for_stage("generate")
    cluster.host_of("engine core").lose()


def lose_a_rank(cluster: Cluster) -> None:
    cluster.wait_for_stage("score")
    cluster.host_of("learner").lose()


def lose_the_student(cluster: Cluster) -> None:
    cluster.wait_for_stage("generate")
    cluster.host_of("student worker").lose()


def cut_shortly(cluster: Cluster) -> None:
    cluster.wait_for_stage("generate")
    host = cluster.host_of("engine core")
    host.cut()
    cluster.wait(SHORT_CUT_S)
    host.heal()


def cut_for_long(cluster: Cluster) -> None:
    """Ray leaves a host that was given up; whatever supervises it starts it again."""
    cluster.wait_for_stage("generate")
    host = cluster.host_of("engine core")
    host.cut()
    cluster.wait(CUT_S)
    host.heal()
    while host.processes("raylet"):
        cluster.wait(0.5)
    cluster.join(host)


def join_late(cluster: Cluster) -> None:
    cluster.wait_for_stage("generate")
    cluster.hosts[0].lose()
    cluster.wait(40)
    cluster.join()


CASES = (
    Case(name="lost-generator", what="the generator's host is lost", act=lose_the_generator),
    Case(
        name="lost-rank",
        what="the host of one of two learner workers is lost; each part has a host of its own, and one is spare",
        act=lose_a_rank,
        num_hosts=6,
        num_cpus=1,
        settings={"learner.num_workers": 2, "scorer.num_actors": 1},
    ),
    Case(name="lost-student", what="the student's host is lost", act=lose_the_student),
    Case(name="short-cut", what=f"the generator's host is cut off for {SHORT_CUT_S:g} s", act=cut_shortly),
    Case(
        name="long-cut",
        what=f"the generator's host is cut off for {CUT_S:g} s, then joins again",
        act=cut_for_long,
    ),
    Case(
        name="late",
        what="the only host that computes is lost, another joins 40 s later",
        act=join_late,
        num_hosts=1,
        num_cpus=5,
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/hosts"))
    parser.add_argument("--cases", default=",".join(case.name for case in CASES))
    args = parser.parse_args()
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    outcomes = [Outcome(**row) for row in read_lines(out / "cases.jsonl")]
    chosen = [case for case in CASES if case.name in args.cases.split(",")]
    for case in chosen:
        if case.name in {outcome.case for outcome in outcomes}:
            continue
        outcome = suffer(case, out)
        with (out / "cases.jsonl").open("a") as lines:
            lines.write(json.dumps(asdict(outcome)) + "\n")
        outcomes.append(outcome)
        print(outcome, flush=True)
    print(table(outcomes))
    if any(outcome.findings for outcome in outcomes):
        raise SystemExit(1)


def suffer(case: Case, out: Path) -> Outcome:
    with bridge():
        cluster = Cluster(case, out)
        try:
            with suppress(EarlyEnd):
                case.act(cluster)
            cluster.wait_for_the_end()
            lost = [row["part"] for row in read_lines(cluster.directory / "incidents.jsonl")]
            findings = audit(cluster.directory, cluster.settings)
            return Outcome(case=case.name, what=case.what, lost=lost, seconds=cluster.seconds, findings=findings)
        finally:
            cluster.end()


@contextmanager
def bridge() -> Iterator[None]:
    """What joins the hosts; this machine itself has no address there."""
    ip(f"link add {BRIDGE} type bridge")
    try:
        ip(f"link set {BRIDGE} up")
        yield
    finally:
        ip(f"link del {BRIDGE}")


def table(outcomes: Sequence[Outcome]) -> str:
    lines = ["| what happens | parts replaced | whole run, s | findings |", "|---" * 4 + "|"]
    for outcome in outcomes:
        figures = [outcome.what, ", ".join(outcome.lost) or "none", f"{outcome.seconds:.0f}", len(outcome.findings)]
        lines.append("| " + " | ".join(map(str, figures)) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
