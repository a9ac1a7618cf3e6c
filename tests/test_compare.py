"""Comparisons: what is planned, how many runs may go on at once, and one that is killed and started again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from cluster import compare, contact
from cluster.comparison import Job, plan
from cluster.machine import GIB, Machine
from cluster.resources import requirements, totals
from cluster.room import Room
from cluster.runtime_env import runtime_env
from genal_ray.comparison.curves import read_curves
from genal_ray.config import load_config
from genal_ray.errors import RunError, UserError
from genal_ray.files import write_json
from genal_ray.store import RunDirectory

GENAL_RAY = Path(sys.executable).with_name("genal-ray")


ROOM = Room(Machine(cores=2, memory=64 * GIB, shared_memory=GIB, disk=GIB), None, None)


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    """A configuration of 24 reviews with a small student."""
    words = {"good": "lovely", "bad": "dull"}
    for name, count in (("train", 24), ("test", 8)):
        labels = [("good", "bad")[i % 2] for i in range(count)]
        rows = [{"text": f"{name} film {i} is {words[label]}", "label": label} for i, label in enumerate(labels)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = tmp_path / "reviews.yaml"
    config.write_text(
        f"""
seed: 3
task: {{domain: movie reviews}}
data: {{source: {tmp_path}, train: train.jsonl, evaluation: test.jsonl, initial_labeled: 6, initial_method: stratified}}
budget: {{per_round: 9, total: 2.0}}
student: {{model: minilm, min_steps: 4, epochs: 1, batch_size: 4, max_length: 16}}
scorer: {{num_cpus: 0.5}}
""",
        encoding="utf-8",
    )
    return config


def job(**settings: Any) -> Job:
    config = load_config("demo", [f"{key}={value}" for key, value in settings.items()])
    return Job(method="m", seed=0, config=config, store=RunDirectory(Path("nowhere")))


def test_plan_gives_every_method_the_same_seeds_and_its_own_folder(reviews: Path, tmp_path: Path) -> None:
    planned = plan(str(reviews), ["random", "mine:acquisition.k=3"], 2, tmp_path / "out", ["student.epochs=2"])
    assert [(j.method, j.seed) for j in planned.jobs] == [("random", 3), ("random", 4), ("mine", 3), ("mine", 4)]
    assert planned.jobs[0].store.path == tmp_path / "out" / "runs" / "random" / "seed-3"
    assert {j.config.student.epochs for j in planned.jobs} == {2}
    assert planned.jobs[2].config.acquisition.model_dump()["k"] == 3
    assert planned.budgets["random", 3].total == 24
    assert any("the run ends with the pool" in note for note in planned.notes)
    command = planned.description.command
    assert command[:3] == ("genal-ray", "compare", str(reviews))
    assert command[command.index("--method") + 1] == "mine:acquisition.k=3"


def test_the_command_that_goes_on_asks_for_the_same_cluster(reviews: Path, tmp_path: Path) -> None:
    plain = plan(str(reviews), ["random"], 1, tmp_path / "out").description.command
    assert not {"--address", "--parallel"} & set(plain)
    planned = plan(str(reviews), ["random"], 1, tmp_path / "out", address="auto", parallel=2)
    command = planned.description.command
    assert command[command.index("--address") + 1] == "auto"
    assert command[command.index("--parallel") + 1] == "2"
    assert (planned.address, planned.parallel) == ("auto", 2)


def test_a_comparison_that_runs_already_is_refused_with_what_can_be_done(
    reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """compare names its runs itself, after method and seed: another name would not help."""
    planned = plan(str(reviews), ["random"], 1, tmp_path / "out", address="127.0.0.1:1")
    monkeypatch.setattr(compare, "_session", lambda *_: nullcontext(SimpleNamespace(address="127.0.0.1:1")))
    monkeypatch.setattr("ray.get_actor", lambda *_, **__: "the other driver")
    with pytest.raises(UserError, match=r"wait for it, or compare other seeds \(--set seed=\.\.\.\)"):
        compare.run(planned)


def test_a_joined_cluster_tells_whether_runs_go_on_and_must_see_their_directory(
    reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get_actor(name: str, namespace: str) -> None:
        raise ValueError(name)

    seen: list[Path] = []
    planned = plan(str(reviews), ["random"], 1, tmp_path / "out", address="127.0.0.1:1")
    store = planned.jobs[0].store
    store.path.mkdir(parents=True)
    contact.announce(store, address="127.0.0.1:1", namespace="n", actor="a")
    monkeypatch.setattr("cluster.contact.is_listening", lambda address: True)
    monkeypatch.setattr("ray.get_actor", get_actor)
    monkeypatch.setattr("cluster.shared_directory.check_seen_everywhere", seen.append)
    monkeypatch.setattr(compare, "_session", lambda *_: nullcontext(SimpleNamespace(address="127.0.0.1:1")))
    monkeypatch.setattr(compare, "run_all", lambda *_: None)
    with pytest.raises(RunError, match="runs not done"):
        compare.run(planned)
    assert not store.driver_file.exists(), "its launcher was lost"
    assert seen == [tmp_path / "out"]


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (["rando"], "unknown method 'rando'.*random"),
        ([], "no methods"),
        (["mine:acquisition.k=3", "mine:acquisition.k=4"], "twice: mine"),
        (["mine:acquisition.q=3"], "method mine: .*acquisition.q"),
    ],
)
def test_what_cannot_be_compared_is_refused_at_once(
    reviews: Path, tmp_path: Path, methods: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        plan(str(reviews), methods, 1, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_methods_and_seeds_may_be_added_to_a_comparison(reviews: Path, tmp_path: Path) -> None:
    """Whatever is asked for later, all of it is written of, and the command goes on with all of it."""
    out, own = tmp_path / "out", "mine:acquisition=margin,generator=null"
    first = plan(str(reviews), ["random", own], 1, out, ["seed=4"])
    for one in first.jobs:
        one.store.create(one.config)
    write_json(out / "comparison.json", asdict(first.description))
    again = plan(str(reviews), ["entropy"], 2, out)
    assert [(j.method, j.seed) for j in again.jobs] == [("entropy", 3), ("entropy", 4)]
    assert [method.name for method in again.description.methods] == ["random", "mine", "entropy"]
    assert again.description.seeds == (3, 4)
    words = again.description.command
    assert words[:7] == ("genal-ray", "compare", str(reviews), "--methods", "random,entropy", "--method", own)
    assert words[words.index("--seeds") + 1] == "2"
    earlier = plan(str(reviews), ["random"], 1, out, ["seed=5"]).description
    assert earlier.seeds == (4, 5)
    assert earlier.command[-4:] == ("--set", "seed=4", "--out", str(out))
    with pytest.raises(UserError, match=r"random/seed-4 holds a run of another configuration"):
        plan(str(reviews), ["entropy"], 1, out, ["student.epochs=2"])
    shutil.rmtree(out / "runs" / "mine")
    assert [m.name for m in plan(str(reviews), ["entropy"], 1, out).description.methods] == ["random", "entropy"]


def test_a_method_that_writes_needs_a_generator(reviews: Path, tmp_path: Path) -> None:
    """It would run as something else, under its own name."""
    for name in ("signal", "signal-no-ppo", "best-of-n", "gaal", "asal"):
        with pytest.raises(UserError, match=rf"method {name} writes with a generator, and the configuration has none"):
            plan(str(reviews), ["random", name], 1, tmp_path / "out")


def test_a_directory_of_other_runs_is_refused(reviews: Path, tmp_path: Path) -> None:
    planned = plan(str(reviews), ["random"], 1, tmp_path / "out")
    planned.jobs[0].store.create(planned.jobs[0].config)
    plan(str(reviews), ["random", "entropy"], 2, tmp_path / "out")  # more methods and seeds may join
    with pytest.raises(UserError, match="holds a run of another configuration"):
        plan(str(reviews), ["random"], 1, tmp_path / "out", ["student.epochs=2"])


def test_runs_share_a_joined_cluster_while_all_of_them_fit_into_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that has just started has taken nothing yet, and what is free may be another user's soon."""
    config = job(generator="null").config
    need = totals(requirements(config)).num_cpus
    room = Room(Machine(cores=1, memory=GIB, shared_memory=GIB, disk=GIB), None, "head:6379")
    free = {"CPU": 3 * need}
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 3 * need})
    monkeypatch.setattr("ray.available_resources", lambda: free)
    assert room.has(config, [config] * 2)
    assert not room.has(config, [config] * 3), "nothing of it is taken yet, but it does not hold four"
    free["CPU"] = 2 * need
    assert room.has(config, [config], starting=[config])
    free["CPU"] = need
    assert room.has(config, [config])
    assert not room.has(config, [config], starting=[config]), "somebody else has a third of it"


def test_the_folder_of_every_run_is_looked_at_before_one_begins(reviews: Path, tmp_path: Path) -> None:
    odd = tmp_path / "out" / "runs" / "random" / "seed-5"
    odd.mkdir(parents=True)
    plan(str(reviews), ["random"], 3, tmp_path / "out")  # an empty one does no harm
    (odd / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match=r"seed-5 is neither .*: give another --out, or remove that folder"):
        plan(str(reviews), ["random"], 3, tmp_path / "out")


@pytest.mark.parametrize("order", [["random", "large"], ["large", "random"]])
def test_one_method_with_a_model_of_the_hub_lets_all_ask_it(
    order: list[str], reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The libraries of this process read the variable once, and all workers are given the same."""
    definitions = {"random": "random", "large": "large:student.model=bert-large-uncased"}
    asked: list[str | None] = []

    def look(*_: object, **__: object) -> SimpleNamespace:
        asked.append(os.environ.get("HF_HUB_OFFLINE"))
        return SimpleNamespace(notes=())

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr("genal_ray.preflight.check", look)
    planned = plan(str(reviews), [definitions[name] for name in order], 1, tmp_path / "out")
    assert asked == [None, None]
    first, second = (one.config for one in planned.jobs)
    assert "HF_HUB_OFFLINE" not in runtime_env(first, tmp_path, [second])["env_vars"]
    alone = runtime_env(planned.jobs[order.index("random")].config, tmp_path)
    assert alone["env_vars"]["HF_HUB_OFFLINE"] == "1"


def test_runs_go_side_by_side_while_cores_and_memory_last() -> None:
    pool, writing = job(generator="null").config, job().config
    machine = Machine(cores=2, memory=64 * GIB, shared_memory=GIB, disk=GIB)
    active = [pool]
    room = Room(machine, None, None)
    assert room.has(writing, [])
    assert room.has(pool, active)
    assert not room.has(pool, active * 2)
    assert not room.has(writing, active), "student and learner of a generative run keep both cores busy"
    assert Room(machine, 3, None).has(writing, active * 2)
    small = Machine(cores=2, memory=GIB, shared_memory=GIB, disk=GIB)
    assert not Room(small, None, None).has(pool, active)


@pytest.mark.parametrize("ended", [1, 2])
def test_a_comparison_has_succeeded_when_every_run_came_to_its_end(
    ended: int, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asked a run to stop: not the signal counts, but what is left."""
    planned = plan(str(reviews), ["random"], 2, tmp_path / "out")

    def run_all(*_: object) -> None:
        for one in planned.jobs:
            one.store.create(one.config)
        for one in planned.jobs[:ended]:
            one.store.record_outcome("the budget is spent")

    monkeypatch.setattr(compare, "run_all", run_all)
    monkeypatch.setattr(compare, "check_local", lambda *_: None)
    monkeypatch.setattr(compare, "_session", lambda *_: nullcontext(SimpleNamespace(address="127.0.0.1:1")))
    monkeypatch.setattr(compare, "write_outputs", lambda *_: "the summary")
    if ended == 2:
        assert compare.run(planned) == "the summary"
        return
    with pytest.raises(RunError, match=r"1 of 2 runs not done: random, seed 4\n.*genal-ray compare"):
        compare.run(planned)


def curves(directory: Path) -> list[dict[str, Any]]:
    """All columns but the seconds."""
    points = [asdict(point) for point in read_curves(directory / "curves.csv")]
    return [{key: value for key, value in point.items() if key != "seconds"} for point in points]


@pytest.mark.slow
@pytest.mark.ray
def test_a_killed_comparison_goes_on_to_the_same_curves(
    reviews: Path, tmp_path: Path, command_here: Callable[..., str]
) -> None:
    """The first run is cut off; the second, the same under another name, is not."""
    out = tmp_path / "out"
    run = out / "runs" / "random" / "seed-3"
    methods = ("--methods", "random", "--method", "again:acquisition=random,generator=null")
    command = ("compare", str(reviews), *methods, "--seeds", "1", "--parallel", "1", "--out", str(out))
    process = subprocess.Popen([str(GENAL_RAY), *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 240
    while not (run / "rounds" / "0001" / "COMMITTED").exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    processes = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in processes:
        try:
            os.kill(one.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.communicate(timeout=60)
    assert not (out / "runs" / "again").exists()
    output = command_here(*command)
    cut_off, whole = ([{**p, "method": ""} for p in curves(out) if p["method"] == m] for m in ("random", "again"))
    assert cut_off == whole
    assert [p["num_labels"] for p in whole] == [6, 15, 24]
    ledger = (run / "labels" / "ledger.jsonl").read_text().splitlines()
    assert len({json.loads(line)["id"] for line in ledger}) == len(ledger) == 24
    assert "the budget of 24 labels is spent" in output
    assert {"summary.csv", "figure.png", "figure.svg", "README.md"} <= {p.name for p in out.iterdir()}
