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
from safetensors.numpy import load_file

from actors.student import RayStudent
from genal_ray.config import RunConfig, parse_config
from genal_ray.errors import RunError, UserError
from genal_ray.inference import StudentModel
from genal_ray.types import Instance, LabeledInstance, StudentFit

pytestmark = pytest.mark.ray
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray workers cannot import test modules

GOOD = ["great", "lovely", "superb", "charming", "brilliant"]
BAD = ["awful", "dull", "boring", "terrible", "weak"]
FILLERS = ["the movie plot was", "acting in it is", "a film that feels", "this story is", "all of it seems"]


def labeled(n: int, seed: int) -> list[LabeledInstance]:
    rng = np.random.default_rng(seed)
    items = []
    for i in range(n):
        text = f"{rng.choice(FILLERS)} {rng.choice(GOOD if i % 2 else BAD)} {'and more ' * rng.integers(0, 4)}"
        instance = Instance(id=f"r-{i}", text=text)
        items.append(LabeledInstance(instance=instance, label=i % 2, annotator="hidden", round=0))
    return items


def run_config(**student: Any) -> RunConfig:
    return parse_config(
        {
            "task": {"domain": "movie reviews"},
            "data": {"source": "unused"},
            "student": {"model": "minilm", "min_steps": 24, "epochs": 1, "max_length": 32, **student},
        },
        "test",
    )


def make_student(tmp_path: Path, **student: Any) -> RayStudent:
    return RayStudent(run_config(**student), ["bad", "good"], labeled(60, seed=1), tmp_path / "train")


def weights(fit: StudentFit) -> dict[str, np.ndarray]:
    return dict(load_file(Path(fit.path) / "model.safetensors"))


def once(action: Callable[[], None], after: int) -> Callable[[int, int], None]:
    """A progress callback that acts when `after` steps are done, so in the middle of a fit."""
    acted = False

    def progress(done: int, total: int) -> None:
        nonlocal acted
        if not acted and after <= done < total:
            acted = True
            action()

    return progress


async def interrupted(student: RayStudent, folder: Path, number: int) -> StudentFit:
    """A fit in the middle of which its worker process gets the signal."""
    pids = await student.worker_pids()
    progress = once(lambda: os.kill(pids[0], number), after=1)
    fit = await student.fit(labeled(40, seed=0), 0, folder, progress)
    assert pids != await student.worker_pids()
    return fit


def test_same_student_again_after_crashes_until_they_are_too_many(ray_session: None, tmp_path: Path) -> None:
    async def scenario() -> tuple[StudentFit, StudentFit]:
        student = make_student(tmp_path, max_failures=1)
        await student.start()
        try:
            steps: list[int] = []
            whole = await student.fit(labeled(40, seed=0), 0, tmp_path / "whole", lambda done, _: steps.append(done))
            assert steps[-1] == 24
            crashed = await interrupted(student, tmp_path / "crashed", signal.SIGKILL)
            with pytest.raises(RunError, match=r"failed more than 1 times \(student\.max_failures\)"):
                await interrupted(student, tmp_path / "lost", signal.SIGKILL)
        finally:
            await student.stop()
        return whole, crashed

    whole, crashed = asyncio.run(scenario())
    assert whole.metrics["al/accuracy"] > 0.9
    assert whole.metrics["student/restarts"] == 0
    assert crashed.metrics["student/restarts"] == 1
    assert crashed.metrics["al/loss"] == whole.metrics["al/loss"]
    before, after = weights(whole), weights(crashed)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    saved = StudentModel.load(whole.path, device="cpu")
    assert saved.label_names == ("bad", "good")
    assert saved.predict(["the movie plot was superb"]).probs[0, 1] > 0.5
    assert not (tmp_path / "train").exists()


class Driver:
    """Uses the student as the run's driver does: from an async actor."""

    async def two_workers(self, folder: str) -> tuple[StudentFit, dict[int, int], str]:
        """A fit by two workers, then one whose worker hangs."""
        path = Path(folder)
        student = make_student(path, num_workers=2, timeout_s=40)
        await student.start()
        pids = await student.worker_pids()
        fit = await student.fit(labeled(40, seed=0), 0, path / "two")
        try:
            hang = once(lambda: os.kill(pids[1], signal.SIGSTOP), after=1)
            await student.fit(labeled(40, seed=0), 1, path / "hung", hang)
            message = "it did not hang"
        except RunError as error:
            message = str(error)
        await student.stop()
        return fit, pids, message


def test_two_workers_in_an_actor_and_a_hang_that_ends(ray_session: None, tmp_path: Path) -> None:
    driver = ray.remote(Driver).options(num_cpus=0).remote()
    fit, pids, message = ray.get(driver.two_workers.remote(str(tmp_path)))
    assert "student.timeout_s (40 s)" in message
    assert len(pids) == 2
    assert fit.metrics["al/accuracy"] > 0.9
    ray.kill(driver)
    _, alive = psutil.wait_procs([psutil.Process(p) for p in pids.values() if psutil.pid_exists(p)], timeout=20)
    assert not alive


def test_a_dead_mailbox_is_replaced_and_a_bad_model_is_told(ray_session: None, tmp_path: Path) -> None:
    async def scenario() -> StudentFit:
        student = make_student(tmp_path, max_failures=1)
        await student.start()
        try:
            progress = once(lambda: ray.kill(student._mailbox), after=1)
            return await student.fit(labeled(40, seed=0), 0, tmp_path / "fit", progress)
        finally:
            await student.stop()

    assert asyncio.run(scenario()).metrics["al/accuracy"] > 0.9

    async def bad_model() -> None:
        (tmp_path / "nothing").mkdir()
        await make_student(tmp_path, model=str(tmp_path / "nothing")).start()

    with pytest.raises(UserError, match=r"student\.model .* cannot be loaded"):
        asyncio.run(bad_model())
