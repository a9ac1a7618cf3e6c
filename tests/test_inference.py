"""The student's fast path gives what a plain fp32 forward pass gives, for every architecture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_students import WORDS, make_tokenizer
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    ModernBertConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    RobertaConfig,
)

from genal_ray.batching import length_sorted_batches, tokenize
from genal_ray.errors import UserError
from genal_ray.inference import StudentModel
from genal_ray.precision import cpu_has_bf16

SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
CONFIGS = {
    "bert": BertConfig(**SMALL, num_labels=3),
    "roberta": RobertaConfig(**SMALL, num_labels=3, pad_token_id=0, max_position_embeddings=64, type_vocab_size=1),
    "distilbert": DistilBertConfig(vocab_size=64, dim=32, n_layers=2, n_heads=2, hidden_dim=48, num_labels=3),
    "modernbert": ModernBertConfig(**SMALL, num_labels=3, pad_token_id=0, cls_token_id=1, sep_token_id=2),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other are slow on a busy machine, and these models are tiny."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("student") / request.param
    torch.manual_seed(0)
    config = CONFIGS[request.param]
    config.initializer_range = 0.5
    AutoModelForSequenceClassification.from_config(config).save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return path


def random_texts(n: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=rng.integers(1, 20))) for _ in range(n)]


def reference(folder: Path, texts: list[str], encoding: str) -> tuple[np.ndarray, np.ndarray]:
    """One text at a time, float64, nothing padded."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float64).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    probs, encodings = [], []
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            states = model.base_model(input_ids=ids).last_hidden_state[0]
            probs.append(model(input_ids=ids).logits[0].softmax(-1).numpy())
        encodings.append((states[0] if encoding == "cls" else states.mean(0)).numpy())
    return np.stack(probs), np.stack(encodings)


@pytest.mark.parametrize("encoding", ["cls", "mean"])
def test_features_equal_unpadded_float64_forward(folder: Path, encoding: str) -> None:
    texts = random_texts(40)
    student = StudentModel.load(
        str(folder), dtype="float32", device="cpu", encoding=encoding, max_batch_tokens=96  # type: ignore[arg-type]
    )
    features = student.predict(texts)
    probs, encodings = reference(folder, texts, encoding)
    assert features.probs.dtype == features.encodings.dtype == np.float32
    np.testing.assert_allclose(features.probs, probs, atol=2e-5)
    np.testing.assert_allclose(features.encodings, encodings, atol=1e-4)


def test_pooler_where_there_is_one_and_a_clear_error_elsewhere(folder: Path) -> None:
    student = StudentModel.load(str(folder), dtype="float32", device="cpu", encoding="pooler")
    if folder.name != "bert":
        with pytest.raises(UserError, match="has no pooler; use 'cls' or 'mean'"):
            student.predict(["a great film"])
        return
    features = student.predict(["a great film", "dull"])
    ids = torch.tensor([student.tokenizer("a great film")["input_ids"]])
    with torch.no_grad():
        expected = student.model.base_model(input_ids=ids).pooler_output[0].numpy()
    np.testing.assert_allclose(features.encodings[0], expected, atol=1e-5)


DECODER = Qwen2Config(**SMALL, num_key_value_heads=2, num_labels=3, pad_token_id=0)


@pytest.mark.parametrize("config", [*CONFIGS.values(), DECODER], ids=lambda config: config.model_type)
def test_inputs_of_the_last_layer_give_its_gradients(config: PreTrainedConfig) -> None:
    """BADGE's: of the loss of the label that the student would give, to the weights of that layer, by autograd."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    student = StudentModel(model, make_tokenizer(), normalize=True, max_batch_tokens=96)
    texts = random_texts(12)
    features = student.predict(texts, last_layer=True)
    layer = [module for module in student.model.modules() if isinstance(module, torch.nn.Linear)][-1]
    np.testing.assert_array_equal(features.probs, student.predict(texts).probs)
    for text, probs, given in zip(texts, features.probs, features.encodings, strict=True):
        logits = student.model(torch.tensor([student.tokenizer(text)["input_ids"]])).logits
        (gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, logits.argmax(1)), layer.weight)
        errors = probs - np.eye(len(probs))[probs.argmax()]
        np.testing.assert_allclose(np.outer(errors, given), gradient.numpy(), atol=1e-4)


def test_a_student_without_a_linear_last_layer_is_told(folder: Path) -> None:
    student = StudentModel.load(str(folder), dtype="float32", device="cpu")
    student.model.config.num_labels = 7
    with pytest.raises(UserError, match=r"no linear layer with 7 outputs, whose gradients badge needs"):
        student.predict(["dull"], last_layer=True)


def test_normalised_encodings_have_unit_length(folder: Path) -> None:
    student = StudentModel.load(str(folder), dtype="float32", device="cpu", normalize=True)
    norms = np.linalg.norm(student.predict(random_texts(9)).encodings, axis=1)
    np.testing.assert_allclose(norms, 1, atol=1e-5)


def test_pairs_keep_their_segments(folder: Path) -> None:
    student = StudentModel.load(str(folder), dtype="float32", device="cpu")
    pairs = [("a great film", "its cast"), ("dull", "the story never finds charm and was dull")]
    features = student.predict(pairs)
    for row, (a, b) in enumerate(pairs):
        inputs = {k: torch.tensor([v]) for k, v in student.tokenizer(a, b).items()}
        with torch.no_grad():
            expected = student.model(**inputs).logits[0].softmax(-1).numpy()
        np.testing.assert_allclose(features.probs[row], expected, atol=2e-5)


def test_nothing_in_nothing_out(folder: Path) -> None:
    features = StudentModel.load(str(folder), dtype="float32", device="cpu").predict([])
    assert features.probs.shape == (0, 3)
    assert features.encodings.shape == (0, 32)


def test_a_folder_that_is_no_classifier_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot load a student"):
        StudentModel.load(str(tmp_path))


@pytest.mark.parametrize("bound", [8, 50, 10_000])
def test_batches_hold_every_row_once_within_the_token_bound(bound: int) -> None:
    lengths = np.random.default_rng(bound).integers(1, 40, size=300)
    batches = list(length_sorted_batches(lengths, bound))
    assert sorted(np.concatenate(batches)) == list(range(300))
    assert all(len(rows) == 1 or len(rows) * lengths[rows].max() <= bound for rows in batches)


def test_texts_are_cut_to_the_maximal_length() -> None:
    tokens = tokenize(make_tokenizer(), ["film " * 30, "film"], max_length=10)
    assert tokens.lengths.tolist() == [10, 3]


def test_a_tokenizer_without_padding_is_refused() -> None:
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None
    with pytest.raises(UserError, match="no padding token"):
        tokenize(tokenizer, ["film"], max_length=10)


@pytest.mark.skipif(not cpu_has_bf16(), reason="this processor has no bfloat16 arithmetic")
def test_bfloat16_moves_probabilities_little(minilm: Path) -> None:
    texts = random_texts(64)
    torch.manual_seed(0)
    exact = StudentModel.load(str(minilm), dtype="float32", device="cpu").predict(texts)
    torch.manual_seed(0)
    fast = StudentModel.load(str(minilm), dtype="auto", device="cpu").predict(texts)
    assert np.abs(exact.probs - fast.probs).max() < 0.02


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_agrees_with_cpu(minilm: Path) -> None:
    texts = random_texts(64)
    torch.manual_seed(0)
    cpu = StudentModel.load(str(minilm), dtype="float32", device="cpu").predict(texts)
    torch.manual_seed(0)
    gpu = StudentModel.load(str(minilm), dtype="auto", device="cuda").predict(texts)
    assert np.abs(cpu.probs - gpu.probs).max() < 0.02
