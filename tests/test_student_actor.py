"""The Ray Train student: repeatable, and back at work after its processes were killed."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import tiny_students
from safetensors.numpy import load_file
from tiny_students import labeled, make_encoder, sentiment

from actors.incidents import Incidents
from actors.student import RayStudent
from genal_ray.config import RunConfig, parse_config
from genal_ray.errors import RunError
from genal_ray.inference import StudentModel
from genal_ray.labels import Classes
from genal_ray.seeds import derive_seed
from genal_ray.student import evaluate, fit
from genal_ray.types import StudentFit

pytestmark = pytest.mark.ray
for module in (tiny_students, sys.modules[__name__]):  # Ray workers cannot import test modules
    ray.cloudpickle.register_pickle_by_value(module)

LABELS = ("bad", "good")
TRAIN = {"min_steps": 600, "epochs": 1, "learning_rate": 1e-3, "max_length": 32, "dtype": "float32"}
"""600 steps of the tiny encoder take a second or two: long enough to be interrupted."""
STOP_SET = sentiment(33, seed=2)[0]


@pytest.fixture
def folder(ray_session: None, tmp_path: Path) -> Path:
    """A folder with the tiny encoder in `encoder`."""
    make_encoder(tmp_path / "encoder")
    return tmp_path


def run_config(folder: Path, **student: Any) -> RunConfig:
    return parse_config(
        {
            "task": {"domain": "movie reviews"},
            "data": {"source": "unused"},
            "student": {"model": str(folder / "encoder"), **TRAIN, **student},
        },
        "test",
    )


def make_student(
    folder: Path, *, heartbeat_s: float = 60, incidents: Incidents | None = None, **student: Any
) -> RayStudent:
    config = run_config(folder, **student)
    config = config.model_copy(update={"cluster": config.cluster.model_copy(update={"heartbeat_s": heartbeat_s})})
    return RayStudent(config, Classes(LABELS), labeled(61, seed=1), folder / "train", STOP_SET, incidents)


def stop_predictions(path: str) -> tuple[int, ...]:
    """Of the student saved there."""
    return tuple(StudentModel.load(path, device="cpu").predict(STOP_SET).probs.argmax(1).tolist())


def assert_same(one: StudentFit, other: StudentFit) -> None:
    """The same to the last bit."""
    weights, others = (load_file(Path(fit.path) / "model.safetensors") for fit in (one, other))
    assert all(np.array_equal(weights[name], others[name]) for name in weights)
    assert one.metrics["al/loss"] == other.metrics["al/loss"]
    assert one.stop_predictions == other.stop_predictions


def once(action: Callable[[], None]) -> Callable[[int, int], None]:
    """A progress callback that acts in the middle of a fit."""
    acted = False

    def progress(done: int, total: int) -> None:
        nonlocal acted
        if not acted and 0 < done < total:
            acted = True
            action()

    return progress


async def killed(student: RayStudent, output_dir: Path) -> StudentFit:
    """A fit in the middle of which its worker process is killed."""
    pids = await student.worker_pids()
    result = await student.fit(labeled(40, seed=0), 0, output_dir, once(lambda: os.kill(pids[0], signal.SIGKILL)))
    assert pids != await student.worker_pids()
    return result


def num_reservations() -> int:
    return sum(group["state"] == "CREATED" for group in ray.util.placement_group_table().values())


def kill_train_controller() -> None:
    (controller,) = [one for one in psutil.Process().children(recursive=True) if "TrainController" in one.name()]
    controller.kill()


def test_same_student_again_after_a_worker_or_the_controller_died(folder: Path) -> None:
    async def scenario() -> tuple[StudentFit, StudentFit, StudentFit]:
        student = make_student(folder, max_failures=1)
        await student.start()
        try:
            steps: list[int] = []
            whole = await student.fit(labeled(40, seed=0), 0, folder / "whole", lambda done, _: steps.append(done))
            assert steps == sorted(steps)
            assert steps[-1] == TRAIN["min_steps"]
            crashed = await killed(student, folder / "crashed")
            orphaned = await student.fit(labeled(40, seed=0), 0, folder / "orphaned", once(kill_train_controller))
            assert num_reservations() == 1, "what the lost Ray Train run held is free"
            student._student = student._student.model_copy(update={"timeout_s": 0.05})
            with pytest.raises(RunError, match=r"longer than student\.timeout_s \(0\.05 s\)(.|\n)*lost 2 times"):
                await student.fit(labeled(40, seed=0), 1, folder / "late")
            assert num_reservations() == 0
        finally:
            await student.stop()
        return whole, crashed, orphaned

    whole, crashed, orphaned = asyncio.run(scenario())
    assert whole.metrics["al/accuracy"] > 0.9
    assert whole.metrics["student/restarts"] == 0
    assert crashed.metrics["student/restarts"] == 1
    assert_same(crashed, whole)
    assert_same(orphaned, whole)
    assert whole.stop_predictions == stop_predictions(whole.path)
    assert set(whole.stop_predictions) == {0, 1}
    saved = StudentModel.load(whole.path, device="cpu")
    assert saved.label_names == LABELS
    assert saved.predict(["the film was superb"]).probs[0, 1] > 0.5
    assert not (folder / "train").exists()


class Driver:
    """Uses the student as the run's driver does: from an async actor."""

    async def two_workers(self, name: str) -> tuple[StudentFit, StudentFit, dict[int, int], list[str]]:
        """A fit by two workers, then one in the middle of which a worker stops answering, then one that is lost; what
        the user is told."""
        folder, told = Path(name), list[str]()
        heard = Incidents(folder, told.append)
        student = make_student(folder, num_workers=2, max_failures=1, heartbeat_s=6, incidents=heard)
        await student.start()
        pids = await student.worker_pids()
        whole = await student.fit(labeled(40, seed=0), 0, folder / "two")
        hung = await student.fit(
            labeled(40, seed=0), 0, folder / "hung", once(lambda: os.kill(pids[1], signal.SIGSTOP))
        )
        with pytest.raises(RunError, match=r"failed more than 1 times \(student\.max_failures\)"):
            await killed(student, folder / "lost")
        await student.stop()
        return whole, hung, pids, told


def test_two_workers_train_as_one_and_one_that_hangs_is_replaced(folder: Path) -> None:
    driver = ray.remote(Driver).options(num_cpus=0).remote()
    two, hung, pids, told = ray.get(driver.two_workers.remote(str(folder)))
    ray.kill(driver)
    assert sorted(pids) == [0, 1]
    _, alive = psutil.wait_procs([psutil.Process(p) for p in pids.values() if psutil.pid_exists(p)], timeout=30)
    assert not alive
    assert told == ["student worker lost: Ray Train began group 2 for this student"]
    assert hung.metrics["student/restarts"] == 1
    assert_same(hung, two)
    stacks = [path.read_text() for path in (folder / "stacks").iterdir()]
    assert any(f"process {pids[1]} " in text and ": stopped" in text for text in stacks)

    assert two.stop_predictions == stop_predictions(two.path)
    seed = derive_seed(0, "student", 0)
    one = fit(run_config(folder).student, *sentiment(40, seed=0), Classes(LABELS), seed=seed, device="cpu")
    metrics = evaluate(StudentModel(one.model, one.tokenizer), *sentiment(61, seed=1))
    assert two.metrics["al/accuracy"] == pytest.approx(metrics["al/accuracy"], abs=0.02)
    assert two.metrics["al/loss"] == pytest.approx(metrics["al/loss"], rel=0.05)
    assert two.metrics["student/loss"] == pytest.approx(one.metrics["student/loss"], rel=0.05)
