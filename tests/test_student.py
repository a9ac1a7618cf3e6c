"""The student's training loop: deterministic, from fresh weights, over all the data, into a plain folder."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from tiny_students import make_encoder, sentiment
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from actors.student_mailbox import JobState
from genal_ray.batching import tokenize
from genal_ray.config import StudentConfig
from genal_ray.errors import RunError, UserError
from genal_ray.evaluation import classification_metrics
from genal_ray.inference import StudentModel
from genal_ray.labels import Classes
from genal_ray.pretrained import Pretrained
from genal_ray.student import (
    TrainedStudent,
    _Loop,
    epoch_batches,
    evaluate,
    fit,
    learning_rate_factor,
    num_steps,
    save,
)
from genal_ray.targets import ClassTargets
from genal_ray.vocabulary import used_vocabulary

LABELS = ("bad", "good")
SPACE = Classes(LABELS)
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other are slow on a busy machine, and these models are tiny."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("student") / "encoder", dropout=0.1)


def make_config(encoder: Path, **values: Any) -> StudentConfig:
    defaults = {"min_steps": 60, "epochs": 1, "learning_rate": 3e-3, "max_length": 32, "dtype": "float32"}
    return StudentConfig(model=str(encoder), **{**defaults, **values})


def train(encoder: Path, *, seed: int = 0, pretrained: Pretrained | None = None, **values: Any) -> TrainedStudent:
    config = make_config(encoder, **values)
    return fit(config, *sentiment(40, seed=0), SPACE, seed=seed, pretrained=pretrained, device="cpu")


def snapshot(trained: TrainedStudent) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trained.model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_it_learns_and_is_saved_as_a_plain_folder(encoder: Path, tmp_path: Path) -> None:
    trained = train(encoder, min_steps=150)
    test = sentiment(80, seed=1)
    metrics = evaluate(StudentModel(trained.model, trained.tokenizer), *test)
    assert metrics["al/accuracy"] > 0.9
    assert trained.metrics["student/num_steps"] == 150
    save(trained.model, trained.tokenizer, tmp_path / "saved")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert plain.config.id2label == {0: "bad", 1: "good"}
    assert plain.config.label2id == {"bad": 0, "good": 1}
    assert (tmp_path / "saved" / "model.safetensors").is_file()
    inputs = AutoTokenizer.from_pretrained(tmp_path / "saved")(test[0][:4], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = plain(**inputs).logits.softmax(-1).numpy()
    found = StudentModel.load(str(tmp_path / "saved"), dtype="float32", device="cpu").predict(test[0][:4]).probs
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_same_seed_same_weights_from_the_kept_pretrained_state(encoder: Path) -> None:
    kept = Pretrained.load(make_config(encoder), SPACE, CPU)
    first = snapshot(train(encoder, pretrained=kept))
    other = snapshot(train(encoder, pretrained=kept, seed=1))
    again = snapshot(train(encoder, pretrained=kept))
    assert same(first, again)
    assert same(first, snapshot(train(encoder)))
    assert not same(first, other)


def test_a_reset_model_differs_from_the_checkpoint_in_its_head_only(encoder: Path) -> None:
    kept = Pretrained.load(make_config(encoder), SPACE, CPU)
    before = {name: tensor.clone() for name, tensor in kept.reset(0).state_dict().items()}
    changed = {name: tensor.clone() for name, tensor in kept.reset(1).state_dict().items()}
    assert [name for name in before if not torch.equal(before[name], changed[name])] == ["classifier.weight"]
    assert same(before, dict(kept.reset(0).state_dict()))


def test_training_leaves_the_callers_random_state_alone(encoder: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(encoder, min_steps=2)
    assert torch.equal(torch.rand(3), expected)


def test_warm_start_goes_on_from_the_saved_student(encoder: Path, tmp_path: Path) -> None:
    first = train(encoder, min_steps=150)
    save(first.model, first.tokenizer, tmp_path)
    loss = first.metrics["student/loss"]
    config = make_config(encoder, min_steps=3, learning_rate=1e-6)
    warm = fit(config, *sentiment(40, seed=0), SPACE, seed=1, warm_start_path=str(tmp_path), device="cpu")
    cold = fit(config, *sentiment(40, seed=0), SPACE, seed=1, device="cpu")
    assert warm.metrics["student/loss"] < loss + 0.2 < cold.metrics["student/loss"]
    with pytest.raises(UserError, match="cannot start from the student"):
        fit(config, *sentiment(4, seed=0), SPACE, seed=1, warm_start_path=str(tmp_path / "none"), device="cpu")


def test_training_used_rows_equals_training_the_whole_table(encoder: Path) -> None:
    """The same gradients reach the same rows; the others stay as they were."""
    kept = Pretrained.load(make_config(encoder), SPACE, CPU)
    tokens = tokenize(kept.tokenizer, ["a great film", "dull"], 32)
    model = kept.reset(0).eval()
    batch, labels = tokens.batch([0, 1], CPU), torch.tensor([1, 0])
    loss = model(**batch, labels=labels).loss
    torch.autograd.backward(loss)
    table = model.get_input_embeddings()
    expected = table.weight.detach() - 0.1 * table.weight.grad
    model.zero_grad()
    with used_vocabulary(model, tokens):
        rows = model.get_input_embeddings()
        assert len(rows.weight) == 7  # padding, start, separator and four words
        small = model(**batch, labels=labels).loss
        torch.autograd.backward(small)
        with torch.no_grad():
            rows.weight -= 0.1 * rows.weight.grad
    assert small.item() == pytest.approx(loss.item(), rel=1e-6)
    assert model.get_input_embeddings() is table
    torch.testing.assert_close(table.weight.detach(), expected)


@pytest.mark.parametrize(("n", "size"), [(67, 16), (5, 16), (500, 16), (16, 16), (17, 16)])
def test_an_epoch_holds_every_row_once_in_even_batches(n: int, size: int) -> None:
    lengths = np.random.default_rng(n).integers(1, 40, size=n)
    batches = epoch_batches(lengths, size, np.random.default_rng(0))
    assert sorted(np.concatenate(batches)) == list(range(n))
    sizes = {len(rows) for rows in batches}
    assert max(sizes) <= size
    assert max(sizes) - min(sizes) <= 1


def test_batches_of_similar_length_waste_less_padding() -> None:
    lengths = np.random.default_rng(0).integers(3, 50, size=1000)
    batches = epoch_batches(lengths, 16, np.random.default_rng(0))
    padded = sum(len(rows) * lengths[rows].max() for rows in batches)
    assert padded < 1.15 * lengths.sum()
    again = epoch_batches(lengths, 16, np.random.default_rng(1))
    assert {tuple(sorted(rows)) for rows in batches}.isdisjoint(tuple(sorted(rows)) for rows in again)


def test_steps_and_learning_rate(encoder: Path) -> None:
    config = make_config(encoder, min_steps=200, epochs=3, batch_size=16, warmup_ratio=0.1)
    assert num_steps(config, 67) == 200
    assert num_steps(config, 6700) == 3 * 419
    factors = [learning_rate_factor(config, step, 200) for step in range(200)]
    assert max(factors) == factors[20] == 1.0
    assert factors[0] == pytest.approx(1 / 21)
    assert factors[-1] == pytest.approx(1 / 180)


def test_metrics_agree_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(5), size=50).astype(np.float32)
    labels = rng.integers(0, 4, size=50)  # class 4 never occurs, yet it is predicted
    metrics = classification_metrics(probs, labels.tolist())
    assert metrics["al/accuracy"] == pytest.approx((probs.argmax(1) == labels).mean())
    assert metrics["al/macro_f1"] == pytest.approx(f1_score(labels, probs.argmax(1), average="macro"))
    assert metrics["al/loss"] == pytest.approx(-np.log(probs[np.arange(50), labels]).mean(), rel=1e-5)


def test_a_loss_that_is_not_finite_ends_in_an_error(encoder: Path) -> None:
    with pytest.raises(RunError, match=r"lower student\.learning_rate"):
        train(encoder, learning_rate=1e30, min_steps=5)


def test_a_step_whose_loss_is_not_finite_is_skipped_and_counted(
    encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One text's loss is infinite: each epoch's step with it changes nothing, neither weights nor Adam's state."""
    changed: list[bool] = []
    loss, step = ClassTargets.loss, _Loop._step

    def bad_loss(self: ClassTargets, logits: torch.Tensor, rows: Any) -> torch.Tensor:
        return loss(self, logits, rows) + (torch.inf if 7 in rows else 0)

    def watched(self: _Loop, tokens: Any, targets: Any, rows: Any) -> torch.Tensor:
        before = [p.detach().clone() for p in self.parameters]
        counts = [int(state["step"]) for state in self.optimizer.state.values()]
        result = step(self, tokens, targets, rows)
        moved = any(not torch.equal(a, b) for a, b in zip(before, self.parameters, strict=True))
        assert moved == ([int(state["step"]) for state in self.optimizer.state.values()] != counts) == (7 not in rows)
        changed.append(moved)
        return result

    monkeypatch.setattr(ClassTargets, "loss", bad_loss)
    monkeypatch.setattr(_Loop, "_step", watched)
    trained = train(encoder, min_steps=50, batch_size=2)  # 20 steps an epoch
    assert (len(changed), changed.count(False)) == (50, trained.metrics["student/num_skipped"])
    assert changed.count(False) in (2, 3)
    assert np.isfinite(trained.metrics["student/loss"])
    with pytest.raises(RunError, match=r"in 3 of 20 optimiser steps.*guards\.max_error_rate.*student\.learning_rate"):
        train(encoder, min_steps=20, batch_size=10)


def test_a_last_epoch_without_a_step_that_counts_has_no_loss(encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loss, calls = ClassTargets.loss, Counter[str]()

    def bad_at_the_end(self: ClassTargets, logits: torch.Tensor, rows: Any) -> torch.Tensor:
        calls["loss"] += 1
        return loss(self, logits, rows) + (torch.nan if calls["loss"] == 20 else 0)

    monkeypatch.setattr(ClassTargets, "loss", bad_at_the_end)
    trained = train(encoder, min_steps=20, batch_size=40)  # one step an epoch
    assert (trained.metrics["student/num_steps"], trained.metrics["student/num_skipped"]) == (20, 1)
    assert "student/loss" not in trained.metrics
    assert np.isfinite(list(trained.metrics.values())).all()


@pytest.mark.parametrize("labels", [[0, 2], [-1, 0], [0]])
def test_wrong_labels_are_refused(encoder: Path, labels: list[int]) -> None:
    with pytest.raises(UserError, match="label"):
        fit(make_config(encoder), ["a", "b"], labels, SPACE, seed=0, device="cpu")


def test_what_crosses_processes_survives_pickling() -> None:
    state = JobState(revision=3, done=5, total=9, error=RunError("broken"))
    copy = pickle.loads(pickle.dumps(state))
    assert (copy.revision, copy.done, copy.total) == (3, 5, 9)
    assert str(copy.error) == "broken"
    assert copy.ended


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_it_learns_on_a_gpu(encoder: Path) -> None:
    config = make_config(encoder, min_steps=150, dtype="auto")
    trained = fit(config, *sentiment(40, seed=0), SPACE, seed=0, device="cuda")
    metrics = evaluate(StudentModel(trained.model, trained.tokenizer), *sentiment(80, seed=1))
    assert metrics["al/accuracy"] > 0.9


def test_a_student_that_the_disk_does_not_take_is_told(tmp_path: Path) -> None:
    class Model:
        def save_pretrained(self, folder: Path) -> None:
            raise Exception("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(RunError, match=r"student could not be written: no space is left on the disk at /"):
        save(Model(), Model(), tmp_path / "student")  # type: ignore[arg-type]
