"""The scorer pool, on real actors and a real student: sharded equals unsharded, lost scorers are replaced."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
import pytest
from ray import cloudpickle
from ray.exceptions import ObjectLostError

from actors import backoff
from actors.incidents import Incidents
from actors.scorer import ScorerPool
from actors.scorer_worker import Known, LabeledSet, Pick, Scorer
from genal_ray.acquisition import Acquisition, Features, Needs, Pointwise, Rows
from genal_ray.acquisition.coreset import Coreset
from genal_ray.acquisition.signal import Signal
from genal_ray.config import RunConfig
from genal_ray.errors import GenalRayError, RunError
from genal_ray.inference import StudentModel
from genal_ray.interfaces import Progress
from genal_ray.knn import LabeledIndex
from genal_ray.scoring import Piece, PieceScores, finite
from genal_ray.seeds import derive_seed
from genal_ray.types import Instance, LabeledInstance, Scores, StudentFit

pytestmark = pytest.mark.ray
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not see the tests

T = TypeVar("T")

WORDS = ["the", "battery", "never", "really", "works", "arrived", "broken", "but", "quiet", "refund", "please"]


def config(**scorer: Any) -> RunConfig:
    acquisition, heartbeat_s = scorer.pop("acquisition", "signal"), scorer.pop("heartbeat_s", 60)
    scorer = {"dtype": "float32", "piece_size": 24, "num_cpus": 0.5} | scorer
    return RunConfig.model_validate(
        {
            "seed": 7,
            "task": {"domain": "messages"},
            "data": {"source": "."},
            "student": {"model": "minilm", "max_length": 48},
            "scorer": scorer,
            "acquisition": acquisition,
            "cluster": {"heartbeat_s": heartbeat_s},
        }
    )


@pytest.fixture(scope="module")
def student(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> StudentFit:
    """MiniLM with a random head of three classes."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    path = tmp_path_factory.mktemp("student")
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(minilm, num_labels=3)
    torch.nn.init.normal_(model.classifier.weight, std=2.0)
    model.save_pretrained(path)
    AutoTokenizer.from_pretrained(minilm).save_pretrained(path)
    return StudentFit(version=2, path=str(path), metrics={})


def instances(n: int, *, pairs: bool = False, prefix: str = "r") -> list[Instance]:
    rng = np.random.default_rng(len(prefix) * 1000 + n)

    def text() -> str:
        return " ".join(rng.choice(WORDS, size=rng.integers(2, 30)))

    return [Instance(id=f"{prefix}-{i:06d}", text=text(), text_pair=text() if pairs else None) for i in range(n)]


def labels(items: Sequence[Instance]) -> list[LabeledInstance]:
    return [LabeledInstance(instance=item, label=0, annotator="hidden", round=0) for item in items]


def student_model(student: StudentFit) -> StudentModel:
    return StudentModel.load(student.path, dtype="float32", device="cpu", max_length=48)


def unsharded(candidates: Sequence[Instance], labeled: Sequence[Instance], student: StudentFit) -> np.ndarray:
    """All candidates at once in this process."""
    model = student_model(student)
    index = LabeledIndex(model.predict([item.student_input for item in labeled]))
    features = model.predict([item.student_input for item in candidates])
    return Signal().score(features, index, np.zeros(len(candidates), np.uint64))


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a lost scorer is replaced."""
    monkeypatch.setattr(backoff, "FIRST_S", 0.05)


class WatchedScorer(Scorer):
    """Writes down what it is asked, and misbehaves on request: all through files, which every process sees."""

    def prepare(self) -> None:
        if Path(f"{self._config.output_dir}/die at the start").exists() and self._first("begun"):
            os.kill(os.getpid(), signal.SIGKILL)
        super().prepare()

    def featurize(self, piece: Piece, student: StudentFit | None, needs: Needs) -> tuple[Known, Features]:
        self._note("featurize", len(piece.texts))
        known, features = super().featurize(piece, student, needs)
        features.encodings[[text == "nan" for text in piece.texts]] = np.nan
        return replace(known, finite=finite(features)), features

    def score(
        self, piece: Piece, student: StudentFit | None, acquisition: Pointwise, labeled: LabeledSet | None
    ) -> PieceScores:
        self._note("score", len(piece.texts))
        for text in piece.texts:
            if text == "raise":
                raise ValueError("no such word")
            if text == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if text == "die once" and self._first("died"):
                os.kill(os.getpid(), signal.SIGKILL)
            if text == "hang once" and self._first("hung"):
                signal.pause()
        scores = super().score(piece, student, acquisition, labeled)
        scores.values[[text == "nan" for text in piece.texts]] = np.nan
        return scores

    def pick(self, job: Pick) -> tuple[Rows, float]:
        if job.budget == 13 and self._first("lost"):
            lost = job.parts[0]
            raise ObjectLostError(lost.hex(), lost.owner_address(), "")  # what ray.get says of it
        return super().pick(job)

    def _note(self, what: str, size: int) -> None:
        with open(f"{self._config.output_dir}/calls", "a") as file:
            file.write(f"{what} {size} {os.getpid()}\n")

    def _first(self, what: str) -> bool:
        path = Path(f"{self._config.output_dir}/{what}")
        first = not path.exists()
        path.touch()
        return first


class Running:
    """A started pool of watched scorers, driven from a synchronous test."""

    def __init__(self, folder: Path, incidents: Incidents | None = None, **scorer: Any) -> None:
        self.folder = folder
        self._acquisition = config(**scorer).acquisition
        settings = config(**scorer).model_copy(update={"output_dir": str(folder)})
        self.pool = ScorerPool(settings, WatchedScorer, incidents)
        self._runner = asyncio.Runner()

    def __enter__(self) -> Running:
        self._do(self.pool.start)
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self.pool.stop)
        self._runner.close()

    def score(
        self,
        candidates: Sequence[Instance],
        labeled: Sequence[Instance],
        by: StudentFit | None,
        progress: Progress | None = None,
        *,
        acquisition: Acquisition | None = None,
        budget: int = 0,
    ) -> Scores:
        (self.folder / "calls").unlink(missing_ok=True)
        function = acquisition or self._acquisition
        return self._do(
            lambda: self.pool.score(candidates, labels(labeled), by, function, budget=budget, progress=progress)
        )

    @property
    def pids(self) -> list[int]:
        return self._do(self.pool.pids)

    def calls(self, what: str) -> list[tuple[int, int]]:
        """(number of texts, process id) of each call of the last `score`."""
        lines = [line.split() for line in (self.folder / "calls").read_text().splitlines()]
        return [(int(size), int(pid)) for name, size, pid in lines if name == what]

    def _do(self, call: Callable[[], Awaitable[T]]) -> T:
        async def go() -> T:
            return await call()

        return self._runner.run(go())


@pytest.fixture(scope="module")
def three(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with Running(tmp_path_factory.mktemp("three"), num_actors=3) as running:
        yield running


def replace_text(items: list[Instance], index: int, text: str) -> list[Instance]:
    return [*items[:index], Instance(id=items[index].id, text=text), *items[index + 1 :]]


def test_sharded_equals_unsharded(three: Running, student: StudentFit, monkeypatch: pytest.MonkeyPatch) -> None:
    candidates, labeled = instances(150), instances(40, prefix="labeled")
    progress: list[tuple[int, int]] = []
    scores: list[Scores] = []
    actors = three.pool._actors
    for num_actors in (3, 2, 1):
        monkeypatch.setattr(three.pool, "_actors", actors[:num_actors])
        scores.append(three.score(candidates, labeled, student, lambda *done: progress.append(done)))
        assert len({pid for _, pid in three.calls("score")}) == num_actors
    np.testing.assert_allclose(scores[0].values, unsharded(candidates, labeled, student), rtol=1e-4)
    for other in scores[1:]:
        np.testing.assert_array_equal(scores[0].values, other.values)
    assert scores[0].ids == tuple(item.id for item in candidates)
    assert scores[0].student_version == 2
    assert progress[-1] == (150, 150)
    metrics = scores[0].metrics
    assert metrics["score/num_candidates"] == 150
    assert metrics["score/num_pieces"] >= 7
    assert metrics["score/retries"] == 0
    assert metrics["score/max"] == scores[0].values.max()
    assert metrics["score/mean"] == pytest.approx(scores[0].values.mean(), rel=1e-6)
    for name in ("instances_per_s", "neighbour_distance", "student_s", "acquisition_s"):
        assert metrics[f"score/{name}"] > 0


def test_text_pairs(three: Running, student: StudentFit) -> None:
    candidates, labeled = instances(70, pairs=True), instances(20, pairs=True, prefix="labeled")
    scores = three.score(candidates, labeled, student)
    np.testing.assert_allclose(scores.values, unsharded(candidates, labeled, student), rtol=1e-4)


def test_labeled_set_is_encoded_once(three: Running, student: StudentFit) -> None:
    candidates, labeled = instances(60), instances(80, prefix="labeled")

    def encoded(of: Sequence[Instance], by: StudentFit) -> int:
        three.score(candidates, of, by)
        return sum(size for size, _ in three.calls("featurize"))

    assert encoded(labeled, student) == 80
    assert len({pid for _, pid in three.calls("featurize")}) > 1  # shared out
    assert encoded(labeled, student) == 0
    assert encoded(labeled[:30], student) == 30
    assert encoded(labeled[:30], StudentFit(version=3, path=student.path, metrics={})) == 30


def test_piece_of_a_killed_scorer_is_scored_elsewhere(three: Running, student: StudentFit) -> None:
    candidates, labeled = replace_text(instances(120), 17, "die once"), instances(20, prefix="labeled")
    before = three.pids
    scores = three.score(candidates, labeled, student)
    np.testing.assert_allclose(scores.values, unsharded(candidates, labeled, student), rtol=1e-4)
    assert scores.metrics["score/retries"] == 1
    after = three.pids
    assert len(after) == 3
    assert len(set(before) & set(after)) == 2
    np.testing.assert_array_equal(three.score(candidates, labeled, student).values, scores.values)


def test_texts_without_a_finite_score_are_set_aside(three: Running, student: StudentFit) -> None:
    candidates, labeled = replace_text(instances(60), 3, "nan"), instances(20, prefix="labeled")
    scores = three.score(candidates, labeled, student)
    assert scores.failed == {"r-000003": "its score is nan"}
    assert scores.ids == tuple(item.id for item in candidates if item.id != "r-000003")
    np.testing.assert_allclose(scores.values, unsharded(candidates, labeled, student)[np.arange(60) != 3], rtol=1e-4)
    assert scores.neighbours is not None
    assert len(scores.neighbours.rows) == len(scores.neighbours.distances) == 59
    assert (scores.metrics["score/num_candidates"], scores.metrics["score/num_failed"]) == (60, 1)
    picks = three.score(candidates, labeled, student, acquisition=Coreset(), budget=59)
    assert picks.ids == scores.ids
    assert sorted(picks.values) == list(range(1, 60)), "all others are chosen"
    (why,) = picks.failed.values()
    assert why.startswith("what student version 2")


def test_features_that_went_with_their_node_are_computed_again(three: Running, student: StudentFit) -> None:
    candidates, labeled = instances(60), instances(10, prefix="labeled")
    after_a_loss = three.score(candidates, labeled, student, acquisition=Coreset(), budget=13)
    undisturbed = three.score(candidates, labeled, student, acquisition=Coreset(), budget=13)
    np.testing.assert_array_equal(after_a_loss.values, undisturbed.values)
    assert sorted(undisturbed.values)[-13:] == list(range(1, 14))
    assert (after_a_loss.metrics["score/retries"], undisturbed.metrics["score/retries"]) == (1, 0)


def test_errors_say_what_is_wrong(three: Running, student: StudentFit, tmp_path: Path) -> None:
    candidates, labeled = instances(30), instances(5, prefix="labeled")
    (tmp_path / "empty").mkdir()
    missing, empty = (StudentFit(version=1, path=str(tmp_path / name), metrics={}) for name in ("missing", "empty"))
    with pytest.raises(RunError, match=r"encodings .* not finite for 1 of 5 .* student version 2 .*: labeled-000003$"):
        three.score(candidates, replace_text(labeled, 3, "nan"), student)
    with pytest.raises(RunError, match=f"the folder {tmp_path}/missing does not exist"):
        three.score(candidates, labeled, missing)
    with pytest.raises(GenalRayError, match=f"{tmp_path}/empty"):
        three.score(candidates, labeled, empty)
    with pytest.raises(RunError, match="needs labeled instances"):
        three.score(candidates, [], student)


def test_entropy_encodes_no_labeled_instances(ray_session: None, student: StudentFit, tmp_path: Path) -> None:
    candidates = instances(30)
    with Running(tmp_path, acquisition="entropy") as running:
        scores = running.score(candidates, instances(5, prefix="labeled"), student)
        assert running.calls("featurize") == []
    features = student_model(student).predict([item.student_input for item in candidates])
    expected = -(features.probs * np.log(features.probs)).sum(axis=1)
    np.testing.assert_allclose(scores.values, expected, rtol=1e-4, atol=1e-6)


NOWHERE = StudentFit(version=4, path="/nowhere", metrics={})


def test_random_needs_no_student_and_depends_on_seed_version_and_id_only(ray_session: None, tmp_path: Path) -> None:
    candidates = instances(30)
    with Running(tmp_path, acquisition="random", num_actors=2) as running:
        scores = running.score(candidates, [], NOWHERE)
        np.testing.assert_array_equal(running.score(candidates[::-1], [], NOWHERE).values[::-1], scores.values)
        np.testing.assert_array_equal(running.score(candidates[:4], [], NOWHERE).values, scores.values[:4])
        none = running.score([], [], NOWHERE)
    seed = derive_seed(7, "score", 4, candidates[0].id)
    assert scores.values[0] == np.float32((seed % 2**24) / 2**24)
    assert none.ids == ()
    assert none.values.shape == (0,)


def test_hanging_scorer_is_replaced(ray_session: None, tmp_path: Path) -> None:
    candidates = replace_text(instances(30), 3, "hang once")
    with Running(tmp_path, acquisition="random", timeout_s=8) as running:
        before = running.pids
        scores = running.score(candidates, [], NOWHERE)
        assert running.pids != before
    assert scores.metrics["score/retries"] == 1
    assert np.isfinite(scores.values).all()


def test_stopped_scorer_is_replaced_and_its_stack_kept(ray_session: None, tmp_path: Path) -> None:
    told: list[str] = []
    with Running(tmp_path, acquisition="random", heartbeat_s=4, incidents=Incidents(tmp_path, told.append)) as running:
        (stopped,) = running.pids
        os.kill(stopped, signal.SIGSTOP)
        assert np.isfinite(running.score(instances(30), [], NOWHERE).values).all()
        assert running.pids != [stopped]
    assert len(told) == 1
    assert "scorer lost: no sign of life for 4 s (cluster.heartbeat_s) (stacks: stacks/" in told[0]
    (stacks,) = (tmp_path / "stacks").iterdir()
    assert f"process {stopped} ray::WatchedScorer" in stacks.read_text()
    assert "stopped" in stacks.read_text()


def test_scorer_that_died_between_stages_is_replaced(ray_session: None, tmp_path: Path) -> None:
    told: list[str] = []
    with Running(tmp_path, acquisition="random", incidents=Incidents(tmp_path, told.append)) as running:
        (died,) = running.pids
        os.kill(died, signal.SIGKILL)
        psutil.Process(died).wait(30)
        scores = running.score(instances(30), [], NOWHERE)
        assert running.pids != [died]
    assert np.isfinite(scores.values).all()
    assert scores.metrics["score/retries"] == 1
    assert len(told) == 1
    assert "scorer lost" in told[0]


def test_scorer_that_dies_at_its_start_is_replaced(ray_session: None, tmp_path: Path) -> None:
    told: list[str] = []
    (tmp_path / "die at the start").touch()
    with Running(tmp_path, acquisition="random", incidents=Incidents(tmp_path, told.append)) as running:
        assert len(running.score(instances(30), [], NOWHERE).values) == 30
    assert len(told) == 1
    assert "scorer lost: it died at its start" in told[0]


def test_texts_that_crash_every_scorer_are_set_aside(ray_session: None, tmp_path: Path) -> None:
    candidates = replace_text(replace_text(instances(12), 5, "die"), 9, "raise")
    progress: list[tuple[int, int]] = []
    with Running(tmp_path, acquisition="random", num_actors=2) as running:
        healthy = running.score(instances(12), [], NOWHERE)
        scores = running.score(candidates, [], NOWHERE, lambda *done: progress.append(done))
        assert len(running.score(instances(12), [], NOWHERE).values) == 12  # the pool lives on
    assert list(scores.failed) == ["r-000005", "r-000009"]
    assert "died" in scores.failed["r-000005"]
    assert scores.failed["r-000009"] == "ValueError('no such word')"
    kept = [n for n in range(12) if n not in (5, 9)]
    assert scores.ids == tuple(candidates[n].id for n in kept)
    np.testing.assert_array_equal(scores.values, healthy.values[kept])
    assert progress[-1] == (12, 12)
    assert scores.metrics["score/retries"] <= 2 * (3 + 4 + 1)
