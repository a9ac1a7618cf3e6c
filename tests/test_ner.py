"""Tagging words: data in, a student that learns them, acquisition functions, and what a configuration may ask for."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_students import make_encoder, tagged

from genal_ray.acquisition import Features, Neighbours, WordUncertainty
from genal_ray.acquisition.mnlp import Mnlp
from genal_ray.acquisition.token_entropy import TokenEntropy
from genal_ray.batching import tokenize_words
from genal_ray.config import RunConfig, StudentConfig, load_config, parse_config
from genal_ray.corpus import load_corpus
from genal_ray.entities import spans_of, tags_of
from genal_ray.errors import UserError
from genal_ray.labels import EntityLabels
from genal_ray.ledger import Ledger
from genal_ray.pretrained import Pretrained
from genal_ray.student import evaluate, fit, save
from genal_ray.tagger import TaggerModel
from genal_ray.targets import TagTargets
from genal_ray.types import Instance, LabeledInstance

SPACE = EntityLabels(("blame", "praise"))
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("models") / "encoder")


def student_config(encoder: Path, **changes: Any) -> StudentConfig:
    values = {"model": str(encoder), "learning_rate": 3e-3, "batch_size": 16, "min_steps": 200, "max_length": 48}
    return StudentConfig(**values | changes)


def test_a_tagger_learns_is_saved_and_comes_back(encoder: Path, tmp_path: Path) -> None:
    trained = fit(student_config(encoder), *tagged(200, seed=0), SPACE, seed=0, device="cpu")
    texts, labels = tagged(60, seed=1)
    metrics = evaluate(TaggerModel(trained.model, trained.tokenizer), texts, labels)
    assert metrics["al/entity_f1"] > 0.85
    assert metrics["al/accuracy"] > 0.9
    save(trained.model, trained.tokenizer, tmp_path / "saved")
    again = TaggerModel.load(str(tmp_path / "saved"), dtype="float32", device="cpu")
    assert again.labels == SPACE
    assert again.label_names == ("O", "B-blame", "I-blame", "B-praise", "I-praise")
    assert evaluate(again, texts, labels) == pytest.approx(metrics, abs=1e-6)


def test_the_loss_is_a_mean_over_words(encoder: Path) -> None:
    """Against the cross-entropy of each word's first token, one text at a time."""
    base = Pretrained.load(student_config(encoder), SPACE, CPU)
    model = base.reset(0).eval()
    texts, labels = tagged(6, seed=2)
    tokens = tokenize_words(base.tokenizer, [text.split(" ") for text in texts], 48)
    targets, rows = TagTargets(tokens, labels, CPU), np.array([4, 0, 3])
    with torch.inference_mode():
        loss = float(targets.loss(model(**tokens.batch(rows, CPU)).logits, rows))
        expected = 0.0
        for row in rows:
            probs = TaggerModel(model, base.tokenizer).probabilities([texts[row]])[0]
            expected -= sum(math.log(p[tag]) for p, tag in zip(probs, labels[row], strict=True))
    assert loss == pytest.approx(expected, rel=1e-4)
    assert targets.count(rows) == sum(len(labels[row]) for row in rows)


def test_byte_level_tokenizers_see_words_as_in_a_text(tmp_path: Path) -> None:
    """Without a space before it a word would be taken for the continuation of the one before."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaConfig, RobertaModel, RobertaTokenizerFast

    trained = ByteLevelBPETokenizer()
    corpus = ["they live in Bad Homburg and in Rome"] * 8
    trained.train_from_iterator(corpus, vocab_size=400, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    trained.save_model(str(tmp_path))
    RobertaTokenizerFast.from_pretrained(tmp_path).save_pretrained(tmp_path)
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    RobertaModel(RobertaConfig(vocab_size=400, **size)).save_pretrained(tmp_path)
    base = Pretrained.load(student_config(tmp_path), SPACE, CPU)
    text = "they live in Bad Homburg"
    (ids,) = tokenize_words(base.tokenizer, [text.split(" ")], 48).input_ids
    assert ids.tolist() == base.tokenizer(text)["input_ids"]


@pytest.mark.parametrize("first", [None, "sentence parts"])
def test_byte_level_tokenizers_of_no_class_of_their_own_do_so_too(tmp_path: Path, first: str | None) -> None:
    """They ignore `add_prefix_space`."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=first is None)
    parts = pre_tokenizers.Split(Regex(r"\s?\w+"), "isolated")
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = bytes_ if first is None else pre_tokenizers.Sequence([parts, bytes_])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<pad>"], initial_alphabet=alphabet)
    trained.train_from_iterator(["and they live in Bad Homburg and in Rome"] * 8, trainer)
    PreTrainedTokenizerFast(tokenizer_object=trained, pad_token="<pad>").save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, **TaggerModel.tokenizer_options)
    text = " they live in Bad Homburg"
    found = tokenize_words(tokenizer, [text.split()], 48)
    assert found.input_ids[0].tolist() == tokenizer(text)["input_ids"]
    begins = tokenizer.convert_ids_to_tokens(found.input_ids[0][found.first_tokens[0]])
    assert [begin[0] for begin in begins] == ["Ġ"] * 5, "a space, as bytes are written"


def test_a_foreign_order_of_outputs_is_understood(encoder: Path) -> None:
    base = Pretrained.load(student_config(encoder), SPACE, CPU)
    model = base.reset(0).eval()
    model.config.id2label = dict(enumerate(["B-blame", "B-praise", "I-blame", "I-praise", "O"]))
    (probs,) = TaggerModel(model, base.tokenizer, max_length=4).probabilities(["great great great great"])
    assert probs[-1].tolist() == [0, 0, 0, 0, 1]


def test_every_word_is_judged_by_its_first_token(encoder: Path) -> None:
    """Against the model called on one text at a time, with words of several tokens and words that have none."""
    base = Pretrained.load(student_config(encoder), SPACE, CPU)
    model = TaggerModel(base.reset(0).eval(), base.tokenizer, encoding="mean", max_batch_tokens=64)
    texts = ["the great film", "story", "its dull-weak cast , and charm", "\u200b in it", "a " * 19 + "a"]
    found = model.probabilities(texts)
    for text, probs in zip(texts, found, strict=True):
        words = text.split(" ")
        encoded = base.tokenizer(words, is_split_into_words=True, return_tensors="pt")
        with torch.inference_mode():
            expected = model.model(**encoded).logits[0].softmax(-1).numpy()
        first = [encoded.word_ids(0).index(i) if i in encoded.word_ids(0) else None for i in range(len(words))]
        for word, position in enumerate(first):
            wanted = np.eye(5)[0] if position is None else expected[position]
            np.testing.assert_allclose(probs[word], wanted, atol=1e-5)
    encodings = model.predict(texts).encodings
    assert encodings.shape == (5, 32)
    assert np.isfinite(encodings).all()
    assert model.probabilities([]) == []


def test_words_beyond_the_longest_text_are_outside(encoder: Path) -> None:
    base = Pretrained.load(student_config(encoder), SPACE, CPU)
    model = TaggerModel(base.reset(0).eval(), base.tokenizer, max_length=6)
    (probs,) = model.probabilities([" ".join(["great"] * 9)])
    assert probs.shape == (9, 5)
    assert (probs[4:] == np.eye(5, dtype=np.float32)[0]).all()
    assert (probs[:4].max(axis=1) < 1).all()
    tokens = tokenize_words(base.tokenizer, [["great"] * 9], 6)
    assert TagTargets(tokens, [(1,) * 9], CPU).count(np.arange(1)) == 4


def test_words_that_were_not_read_do_not_make_a_text_look_certain(encoder: Path) -> None:
    base = Pretrained.load(student_config(encoder), SPACE, CPU)
    model = TaggerModel(base.reset(0).eval(), base.tokenizer, max_length=6)
    of_length = [" ".join(["great"] * number) for number in (4, 9, 40)]
    words = model.predict(of_length).words
    assert words is not None
    for figures in (words.mean_entropy, words.max_entropy, words.mean_log_prob):
        np.testing.assert_allclose(figures, figures[0], rtol=1e-5)
        assert figures[0] != 0


def test_token_functions_are_their_definitions() -> None:
    rng = np.random.default_rng(0)
    probs = [rng.dirichlet(np.ones(5), size=n).astype(np.float32) for n in (1, 4, 9, 30)]
    probs.append(np.eye(5, dtype=np.float32)[[0, 1]])
    words = WordUncertainty.of(probs)
    features = Features(probs=np.zeros((5, 0), np.float32), encodings=np.zeros((5, 0), np.float32), words=words)
    for row, p in enumerate(probs):
        entropies = [-sum(float(q) * math.log(q) for q in word if q > 0) for word in p]
        likeliest = [math.log(max(word)) for word in p]
        scores = {
            TokenEntropy(): sum(entropies) / len(entropies),
            TokenEntropy(reduce="max"): max(entropies),
            Mnlp(): -sum(likeliest) / len(likeliest),
        }
        for function, expected in scores.items():
            score = function.score(features, Neighbours(), np.zeros(5, np.uint64))
            assert score.dtype == np.float32
            assert score[row] == pytest.approx(expected, rel=1e-5, abs=1e-7)
    both = Features.concatenate([features.take(np.array([3, 1])), features.take(np.array([0]))])
    assert both.words is not None
    np.testing.assert_array_equal(both.words.max_entropy, words.max_entropy[[3, 1, 0]])


CONLL = """-DOCSTART-

Anna NNP B-NP B-PER
lives VBZ B-VP O
in IN B-PP O
Bad NNP B-NP B-LOC
Homburg NNP I-NP I-LOC
. . O O

"""
ROWS = [
    {"tokens": ["Bo", "met", "Cy"], "ner_tags": ["B-PER", "O", "B-PER"]},
    {"tokens": ["Rome", "fell"], "ner_tags": ["B-LOC", "O"]},
    {"tokens": ["It", "rained"], "ner_tags": ["O", "O"]},
    {"tokens": ["#", "Oslo", "http://t.co"], "ner_tags": ["O", "B-LOC", "O"]},
]


def config(folder: Path, *settings: str, **data: Any) -> RunConfig:
    columns = {"text_column": "tokens", "label_column": "ner_tags", "source": str(folder), "initial_labeled": 1}
    values = {
        "task": {"kind": "ner", "domain": "news"},
        "data": {**columns, **data},
        "acquisition": "mnlp",
        "student": {"model": "minilm"},
    }
    return parse_config(values, "test")


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        sentences = ["".join(f"{t}\t{g}\n" for t, g in zip(r["tokens"], r["ner_tags"], strict=True)) for r in rows]
        path.write_text("\n".join(sentences))


@pytest.mark.parametrize("suffix", [".jsonl", ".conll"])
def test_words_and_tags_of_a_file(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / f"train{suffix}", ROWS)
    (tmp_path / "test.conll").write_text(CONLL)
    corpus = load_corpus(config(tmp_path))
    assert corpus.labels == EntityLabels(("LOC", "PER"))
    assert [i.text for i in corpus.pool] == [" ".join(row["tokens"]) for row in ROWS]  # type: ignore[arg-type]
    assert [corpus.hidden_labels[i.id] for i in corpus.pool] == [(3, 0, 3), (1, 0), (0, 0), (0, 1, 0)]
    (held_out,) = corpus.evaluation
    assert held_out.instance.text == "Anna lives in Bad Homburg ."
    assert corpus.labels.told(held_out.label, held_out.instance.text) == [
        {"text": "Anna", "type": "PER"},
        {"text": "Bad Homburg", "type": "LOC"},
    ]


@pytest.mark.parametrize(
    ("tags", "read"),
    [
        (["I-PER", "I-PER", "O"], [("PER", 0, 2)]),
        (["S-PER", "B-LOC", "E-LOC"], [("PER", 0, 1), ("LOC", 1, 3)]),
        (["U-PER", "B-LOC", "L-LOC"], [("PER", 0, 1), ("LOC", 1, 3)]),
    ],
    ids=["IOB1", "IOBES", "BILOU"],
)
def test_other_schemes_are_read(tmp_path: Path, tags: list[str], read: list[tuple[str, int, int]]) -> None:
    write(tmp_path / "train.jsonl", [{"tokens": ["a", "b", "c"], "ner_tags": tags}, *ROWS])
    write(tmp_path / "test.jsonl", ROWS[:1])
    corpus = load_corpus(config(tmp_path))
    label = corpus.hidden_labels["r-000000"]
    assert isinstance(label, tuple)
    found = spans_of(label)
    assert tags_of(found, 3) == label, "one and the same tags for the same entities, whatever the scheme"
    assert [(corpus.label_names[s.type], s.start, s.end) for s in found] == read


def test_comments_before_a_sentence_are_no_words(tmp_path: Path) -> None:
    """As CoNLL-U has them; a sentence may begin with the word # all the same."""
    plain = "Anna\tB-PER\nleft\tO\n\n# NN I-NP O\nOslo NNP I-NP B-LOC\n"
    (tmp_path / "train.conll").write_text(f"# sent_id = 1\n# text = Anna left\n{plain}")
    (tmp_path / "test.conll").write_text("Bo B-PER\n")
    corpus = load_corpus(config(tmp_path))
    assert [instance.text for instance in corpus.pool] == ["Anna left", "# Oslo"]


def test_a_balanced_start_has_every_type(tmp_path: Path) -> None:
    rare = [{"tokens": ["Anna", str(i)], "ner_tags": ["B-PER", "O"]} for i in range(3)]
    often = [{"tokens": ["Rome", str(i)], "ner_tags": ["B-LOC", "O"]} for i in range(40)]
    none = [{"tokens": ["rain", str(i)], "ner_tags": ["O", "O"]} for i in range(40)]
    write(tmp_path / "train.jsonl", [*often, *none, *rare])
    write(tmp_path / "test.jsonl", ROWS[:1])
    for count, locations, persons in ((2, 1, 1), (6, 3, 3), (10, 7, 3), (50, 40, 3)):
        corpus = load_corpus(config(tmp_path, initial_labeled=count, initial_method="balanced"))
        kinds = [k for id in corpus.initial_ids for k in corpus.labels.kinds(corpus.hidden_labels[id])]
        assert (kinds.count(0), kinds.count(1)) == (locations, persons)
    spread = load_corpus(config(tmp_path, initial_labeled=20, initial_method="stratified"))
    first = [spread.hidden_labels[id][0] for id in spread.initial_ids]  # type: ignore[index]
    assert first.count(3) >= 1
    assert abs(first.count(0) - 20 * 40 / 83) < 2


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"tokens": ["a"], "ner_tags": ["O", "O"]}, "line 5: 1 words and 2 tags"),
        ({"tokens": "a b", "ner_tags": ["O", "O"]}, "line 5: column 'tokens' should hold a list"),
        ({"tokens": [], "ner_tags": []}, "line 5: column 'tokens' is empty: fill in words"),
        ({"tokens": ["a"], "ner_tags": []}, "line 5: column 'ner_tags' is empty: fill in tags"),
        ({"tokens": "['a', 'b']", "ner_tags": "['O', 'O']"}, "text is no list: write the rows as .jsonl, .parquet or"),
        ({"tokens": ["a b"], "ner_tags": ["O"]}, "line 5: column 'tokens' has the word 'a b'"),
        ({"tokens": [""], "ner_tags": ["O"]}, "line 5: column 'tokens' has the word ''"),
        ({"tokens": [7], "ner_tags": ["O"]}, "line 5: column 'tokens' should hold words, found 7"),
        ({"tokens": ["a"], "ner_tags": ["PER"]}, "line 5: the tag 'PER' is none of O, B-... and I-..."),
        ({"tokens": ["a"], "ner_tags": [1]}, "line 5: the tag '1' is none of O, B-..."),
        ({"tokens": ["a"], "ner_tags": ["B-"]}, "line 5: the tag 'B-' is none of O"),
        ({"tokens": ["a"], "ner_tags": [None]}, "line 5: column 'ner_tags' should hold tags, found None"),
        ({"tokens": ["a"], "tags": ["O"]}, "line 5: no column 'ner_tags'; did you mean 'tags'?"),
    ],
)
def test_rows_that_are_wrong_are_named(tmp_path: Path, row: dict[str, Any], complaint: str) -> None:
    write(tmp_path / "train.jsonl", ROWS)
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    write(tmp_path / "test.jsonl", ROWS)
    with pytest.raises(UserError) as caught:
        load_corpus(config(tmp_path))
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("Anna B-PER\nlives\n", "line 2: expected a token and its tag, found lives"),
        ("Anna B-PER\nlives VERB\n", "line 1: the tag 'VERB'"),
        ("\n\n", "holds no rows"),
        ("10\u00a0km O\n", "has the word '10\\xa0km'"),
        ("Anna O\n", "no word has an entity's tag"),
    ],
)
def test_conll_files_that_are_wrong_are_named(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "train.conll").write_text(text)
    write(tmp_path / "test.conll", ROWS)
    with pytest.raises(UserError) as caught:
        load_corpus(config(tmp_path))
    assert complaint in str(caught.value)


def test_numbered_tags_have_names(tmp_path: Path) -> None:
    numbered = [{**row, "ner_tags": [{"O": 0, "B-PER": 1, "B-LOC": 2}[t] for t in row["ner_tags"]]} for row in ROWS]
    write(tmp_path / "train.jsonl", numbered)
    write(tmp_path / "test.jsonl", numbered[:1])
    names = {"0": "O", "1": "B-PER", "2": "B-LOC"}
    corpus = load_corpus(config(tmp_path, label_names=names))
    assert corpus.hidden_labels["r-000001"] == (1, 0)


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("acquisition=entropy", "acquisition: entropy reads a tag for each word"),
        ("acquisition=signal", "name one of bertkm, coreset, mnlp, random, token_entropy"),
    ],
)
def test_functions_of_classes_are_refused(setting: str, complaint: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config("wnut17-cpu", ["data.source=/data", setting])
    assert complaint.replace("a tag for each word", "one label for each text") in str(caught.value)


def test_functions_of_words_are_refused_for_classes() -> None:
    with pytest.raises(UserError, match=r"mnlp reads a tag for each word, which task\.kind single_text does not have"):
        load_config("sst2-cpu", ["data.source=/d", "generator=null", "annotators.synthetic=null", "acquisition=mnlp"])


def test_functions_within_a_strategy_are_looked_at() -> None:
    settings = ["strategy={name: asal, uncertainty: mnlp}", "learner.name=none"]
    with pytest.raises(UserError, match="strategy: nearest_real reads a tag for each word"):
        load_config("demo", settings)
    assert load_config("demo", [*settings, "task.kind=ner"]).strategy.name == "asal"


def test_prompts_of_one_label_are_refused() -> None:
    settings = ["task.kind=ner", "acquisition=mnlp", "strategy.condition_on_label=true"]
    with pytest.raises(UserError, match="are for classes"):
        load_config("demo", settings)


def test_a_label_is_kept_as_the_tags_of_its_words(tmp_path: Path) -> None:
    item = LabeledInstance(
        instance=Instance(id="r-1", text="a great film"), label=(0, 3, 0), annotator="hidden", round=0
    )
    Ledger(tmp_path / "ledger.jsonl", SPACE).open().record([item])
    assert json.loads((tmp_path / "ledger.jsonl").read_text())["label"] == ["O", "B-praise", "O"]
    assert Ledger(tmp_path / "ledger.jsonl", SPACE).open().of(["r-1"]) == [item]
