"""A scorer: the student and an index of the labeled encodings, in a process of its own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from genal_ray.acquisition import Features, Neighbours
from genal_ray.config import RunConfig
from genal_ray.errors import RunError
from genal_ray.scoring import Piece, PieceScores, score_piece
from genal_ray.types import StudentFit, Text

if TYPE_CHECKING:
    from genal_ray.inference import StudentModel


class Scorer:
    """Every call says which student and which labeled set it is about; both are kept until a call names others.

    So a scorer that was just started to replace a dead one needs no more introduction than its first piece.
    Torch, transformers and FAISS are imported in here only: the process that hands out the work never needs them.
    """

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._student: StudentModel | None = None
        self._student_key: tuple[int, str] | None = None
        self._labeled = Neighbours()
        self._labeled_key: int | None = None

    def prepare(self) -> int:
        """Import what scoring needs, so that the first piece does not wait for it; returns the process id."""
        if self._config.acquisition.needs_student:
            import faiss
            import torch

            import genal_ray.inference  # noqa: F401

            torch.set_num_threads(self._config.scorer.threads)
            faiss.omp_set_num_threads(self._config.scorer.threads)
        return os.getpid()

    def encode(self, texts: Sequence[Text], student: StudentFit) -> Features:
        """Features of labeled texts. Raises RunError when the student cannot be loaded."""
        return self._load(student).predict(texts)

    def score(
        self, piece: Piece, student: StudentFit, labeled_key: int | None, labeled: Features | None
    ) -> PieceScores:
        """Scores of a piece; `labeled` is None when the acquisition function needs no neighbours.

        `labeled_key` changes when `labeled` does. Raises RunError when the student cannot be loaded.
        """
        acquisition = self._config.acquisition
        model = self._load(student) if acquisition.needs_student else None
        if labeled is not None and labeled_key != self._labeled_key:
            self._index(labeled)
            self._labeled_key = labeled_key
        return score_piece(piece, acquisition, model, self._labeled)

    def _load(self, student: StudentFit) -> StudentModel:
        key = (student.version, student.path)
        if self._student is None or key != self._student_key:
            from genal_ray.inference import StudentModel

            if not Path(student.path).is_dir():
                raise RunError(f"no student of version {student.version}: the folder {student.path} does not exist")
            scorer, settings = self._config.scorer, self._config.student
            self._student = None  # frees the old student's memory first
            self._student = StudentModel.load(
                student.path,
                dtype=scorer.dtype,
                device="cuda" if scorer.num_gpus > 0 else "cpu",
                encoding=scorer.encoding,
                normalize=scorer.normalize,
                max_length=settings.max_length,
                max_batch_tokens=scorer.max_batch_tokens,
                trust_remote_code=settings.trust_remote_code,
            )
            self._student_key = key
        return self._student

    def _index(self, labeled: Features) -> None:
        from genal_ray.knn import LabeledIndex

        self._labeled = LabeledIndex(labeled, gpu=self._config.scorer.num_gpus > 0)
