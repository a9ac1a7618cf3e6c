"""Tagging on real actors: two training workers, a pool of scorers, and the figures of both."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_students import make_encoder, tagged

from actors.scorer import ScorerPool
from actors.student import RayStudent
from genal_ray import registry
from genal_ray.acquisition import Acquisition
from genal_ray.config import RunConfig, parse_config
from genal_ray.labels import EntityLabels
from genal_ray.registry import build
from genal_ray.seeds import derive_seed
from genal_ray.student import evaluate
from genal_ray.student import fit as train
from genal_ray.tagger import TaggerModel
from genal_ray.types import Instance, LabeledInstance, Scores, StudentFit

pytestmark = pytest.mark.ray

PACKAGE = "genal_ray.acquisition"
SPACE = EntityLabels(("blame", "praise"))


def items(n: int, seed: int) -> list[LabeledInstance]:
    return [
        LabeledInstance(instance=Instance(id=f"r-{seed}-{i}", text=text), label=label, annotator="hidden", round=0)
        for i, (text, label) in enumerate(zip(*tagged(n, seed), strict=True))
    ]


def run_config(folder: Path) -> RunConfig:
    return parse_config(
        {
            "task": {"kind": "ner", "domain": "film reviews"},
            "data": {"source": "unused"},
            "acquisition": "mnlp",
            "student": {
                "model": str(make_encoder(folder / "encoder")),
                "num_workers": 2,
                "num_cpus": 0.5,
                "min_steps": 150,
                "learning_rate": 3e-3,
                "max_length": 32,
                "dtype": "float32",
            },
            "scorer": {"num_actors": 2, "num_cpus": 0.5, "piece_size": 16, "dtype": "float32", "encoding": "mean"},
        },
        "test",
    )


def test_a_tagger_is_trained_by_two_workers_as_by_one_evaluated_and_scores(ray_session: None, tmp_path: Path) -> None:
    config, held_out, stop_set = run_config(tmp_path), items(41, 1), [item.instance.text for item in items(7, 2)]
    candidates = [item.instance for item in items(50, 3)]

    async def work() -> tuple[StudentFit, dict[str, Scores], list[Any]]:
        student, pool = RayStudent(config, SPACE, held_out, tmp_path / "train", stop_set), ScorerPool(config)
        await asyncio.gather(student.start(), pool.start())
        try:
            fit = await student.fit(items(200, 0), 1, tmp_path / "student")
            functions = [build(PACKAGE, Acquisition, name) for name in registry.names(PACKAGE)]
            scores = {
                function.name: await pool.score(candidates, items(5, 4), fit, function, budget=5)
                for function in functions
                if function.reads != "classes"
            }
            assert len(scores) == 5
            return fit, scores, await pool.predict(candidates, fit)
        finally:
            await asyncio.gather(student.stop(), pool.stop())

    fit, scores, predictions = asyncio.run(work())
    seed = derive_seed(config.seed, "student", 1)
    texts_and_labels = [i.instance.text for i in items(200, 0)], [i.label for i in items(200, 0)]
    alone = train(config.student, *texts_and_labels, SPACE, seed=seed, device="cpu")
    assert fit.metrics["student/loss"] == pytest.approx(alone.metrics["student/loss"], rel=0.02)

    model = TaggerModel.load(fit.path, dtype="float32", device="cpu", encoding="mean", max_length=32)
    texts, labels = [item.instance.text for item in held_out], [item.label for item in held_out]
    measured = {name: value for name, value in fit.metrics.items() if name.startswith("al/")}
    assert measured == pytest.approx(evaluate(model, texts, labels), rel=1e-4)
    assert measured["al/entity_f1"] > 0.8
    assert len(fit.stop_predictions) == sum(len(text.split()) for text in stop_set)

    features = model.predict([candidate.text for candidate in candidates])
    assert features.words is not None
    np.testing.assert_allclose(scores["mnlp"].values, -features.words.mean_log_prob, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(scores["token_entropy"].values, features.words.mean_entropy, rtol=1e-4, atol=1e-6)
    for name in ("coreset", "bertkm"):
        assert sorted(scores[name].values, reverse=True)[:6] == [5, 4, 3, 2, 1, 0]
    expected = [SPACE.predict(probs).label for probs in model.probabilities([c.text for c in candidates])]
    assert [prediction.label for prediction in predictions] == expected
