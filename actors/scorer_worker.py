"""A scorer: the student and an index of the labeled encodings, in a process of its own."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import ray

from actors.liveness import Place, here
from genal_ray.acquisition import Batchwise, Features, Needs, Neighbours, Pointwise, Rows
from genal_ray.config import RunConfig
from genal_ray.errors import RunError
from genal_ray.paths import resolve_model
from genal_ray.scoring import Piece, PieceScores, PieceTimes, featurize, finite, normalized, score_piece
from genal_ray.tasks import build_task
from genal_ray.types import Prediction, StudentFit

if TYPE_CHECKING:
    from genal_ray.inference import StudentModel


@dataclass(frozen=True, slots=True, kw_only=True)
class LabeledSet:
    """Features of the labeled set, the same for all pieces of a stage."""

    key: int
    """Changes when the features do."""
    features: Any
    """Reference of the Features."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the driver is told of features that stay in the object store."""

    times: PieceTimes
    finite: npt.NDArray[np.bool_]
    """[n], of each text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pick:
    """A batch to be chosen from the features of all pieces."""

    acquisition: Batchwise
    parts: Sequence[Any]
    """References of the pieces' Features."""
    order: Rows
    """[n], position among the rows of the parts of each candidate that may be chosen."""
    synthetic: npt.NDArray[np.bool_]
    """[n], in the order of the candidates."""
    labeled: Any | None
    """Reference of the labeled set's Features."""
    budget: int
    seed: int


class Scorer:
    """Every call says which student and which labeled set it is about; both are kept until a call names others.

    So a scorer that was just started to replace a dead one needs no more introduction than its first piece.
    Torch, transformers and FAISS are imported in here only: the process that hands out the work never needs them.
    """

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._student: StudentModel | None = None
        self._student_key: tuple[int, str] | None = None
        self._pretrained: StudentModel | None = None
        self._labeled: Neighbours | None = None
        self._labeled_key: tuple[int, bool] | None = None

    def place(self) -> Place:
        """Answered beside the work: a sign of life."""
        return here()

    def prepare(self) -> None:
        """Import what scoring needs, so that the first piece does not wait for it."""
        if self._config.uses_models_for_scoring:
            import faiss
            import torch

            import genal_ray.tagger  # noqa: F401

            torch.set_num_threads(self._config.scorer.threads)
            faiss.omp_set_num_threads(self._config.scorer.threads)

    def featurize(self, piece: Piece, student: StudentFit | None, needs: Needs) -> tuple[Known, Features]:
        """Features of texts. Raises RunError when the student cannot be loaded."""
        features, times = featurize(piece, needs, self._model(student, needs))
        return Known(times=times, finite=finite(features)), features

    def score(
        self, piece: Piece, student: StudentFit | None, acquisition: Pointwise, labeled: LabeledSet | None
    ) -> PieceScores:
        """Scores of a piece; `labeled` is None when the acquisition function needs none.

        Raises RunError when the student cannot be loaded.
        """
        needs = acquisition.needs
        index = None if labeled is None else self._index(labeled, needs.normalized)
        return score_piece(piece, acquisition, self._model(student, needs), index)

    def predict(self, piece: Piece, student: StudentFit) -> list[Prediction]:
        """What the student says of a piece. Raises RunError when the student cannot be loaded."""
        model = self._load_student(student)
        return [model.labels.predict(probs) for probs in model.probabilities(piece.texts)]

    def pick(self, job: Pick) -> tuple[Rows, float]:
        """Row numbers of the chosen candidates, best first, and the seconds that choosing took."""
        features = Features.concatenate(ray.get(list(job.parts))).take(job.order)
        features = replace(features, synthetic=job.synthetic)
        labeled = features.take(np.zeros(0, np.int64)) if job.labeled is None else ray.get(job.labeled)
        if job.acquisition.needs.normalized:
            labeled = normalized(labeled)
        started = time.perf_counter()
        rows = job.acquisition.pick(features, labeled, job.budget, np.random.default_rng(job.seed))
        return rows, time.perf_counter() - started

    def _model(self, student: StudentFit | None, needs: Needs) -> StudentModel | None:
        if needs.pretrained:
            return self._load_pretrained()
        if not needs.student:
            return None
        assert student is not None, "only functions that do without can choose before there is a student"
        return self._load_student(student)

    def _load_student(self, student: StudentFit) -> StudentModel:
        key = (student.version, student.path)
        if self._student is None or key != self._student_key:
            if not Path(student.path).is_dir():
                raise RunError(f"no student of version {student.version}: the folder {student.path} does not exist")
            self._student = None  # frees the old student's memory first
            self._student = self._load(student.path, tags_words=build_task(self._config.task).tags_words)
            self._student_key = key
        return self._student

    def _load_pretrained(self) -> StudentModel:
        if self._pretrained is None:
            student = self._config.student
            self._pretrained = self._load(resolve_model(student.model), student.revision)
        return self._pretrained

    def _load(self, path: str, revision: str | None = None, *, tags_words: bool = False) -> StudentModel:
        from genal_ray.tagger import student_class

        scorer, settings = self._config.scorer, self._config.student
        return student_class(tags_words=tags_words).load(
            path,
            revision=revision,
            dtype=scorer.dtype,
            device="cuda" if scorer.num_gpus > 0 else "cpu",
            encoding=scorer.encoding,
            normalize=scorer.normalize,
            max_length=settings.max_length,
            max_batch_tokens=scorer.max_batch_tokens,
            trust_remote_code=settings.trust_remote_code,
        )

    def _index(self, labeled: LabeledSet, normalize: bool) -> Neighbours:
        key = (labeled.key, normalize)
        if self._labeled is None or key != self._labeled_key:
            from genal_ray.knn import LabeledIndex

            features: Features = ray.get(labeled.features)
            self._labeled = None
            self._labeled = LabeledIndex(
                normalized(features) if normalize else features, gpu=self._config.scorer.num_gpus > 0
            )
            self._labeled_key = key
        return self._labeled
