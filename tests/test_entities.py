"""Entities: spans and tags are the same thing twice, wordings are found or counted, F1 is seqeval's."""

from __future__ import annotations

import math
import warnings
from itertools import pairwise

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genal_ray.entities import Span, locate, spans_of, split_words, tag_names, tags_of, words_of
from genal_ray.evaluation import entity_metrics
from genal_ray.labels import MAX_ENTITY_CHARACTERS, Classes, EntityLabels

TYPES = ("person", "location", "group")


@st.composite
def spans_in(draw: st.DrawFn) -> tuple[list[Span], int]:
    """Spans that do not overlap, some of them side by side and of one type, in so many words."""
    cuts = sorted(draw(st.sets(st.integers(0, 12), min_size=2, max_size=8)))
    pairs = [(a, b) for a, b in pairwise(cuts) if draw(st.booleans())]
    return [Span(a, b, draw(st.integers(0, 2))) for a, b in pairs], cuts[-1] + draw(st.integers(0, 3))


@given(spans_in())
def test_spans_come_back_from_their_tags(case: tuple[list[Span], int]) -> None:
    spans, num_words = case
    assert spans_of(tags_of(spans, num_words)) == spans


def test_inside_tags_without_a_beginning_begin_an_entity() -> None:
    """O I-person I-person I-location B-location, as IOB1 data and untrained students have them."""
    assert spans_of([0, 2, 2, 4, 3]) == [Span(1, 3, 0), Span(3, 4, 1), Span(4, 5, 1)]


@pytest.mark.parametrize("spans", [[Span(0, 2, 0), Span(1, 3, 0)], [Span(2, 4, 0)], [Span(1, 1, 0)]])
def test_overlapping_or_outer_spans_have_no_tags(spans: list[Span]) -> None:
    with pytest.raises(ValueError, match="overlaps"):
        tags_of(spans, 3)


TEXTS = st.text(
    st.one_of(
        st.sampled_from(["a", "B", "é", "ß", "中", "न", "ि", "7", " ", " ", "\u200b", "\u0301", "😀"]),
        st.sampled_from(list(".,'’-@#:/!&()")),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=40,
)


@settings(max_examples=1000)
@given(TEXTS)
def test_splitting_words_again_changes_nothing(text: str) -> None:
    words = split_words(text)
    assert split_words(" ".join(words)) == words
    assert all(word and not any(c.isspace() for c in word) for word in words)
    kept = "".join(c for c in text if c.isalnum())
    assert "".join(c for word in words for c in word if c.isalnum()) == kept


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("I live in New York.", "I|live|in|New|York|."),
        ("John's car, isn't it?!", "John|'s|car|,|isn't|it|?|!"),
        ("see https://t.co/a1b2. @you #WNUT", "see|https://t.co/a1b2|.|@you|#WNUT"),
        ("U.S. stocks fell 1,000.5 points...", "U.S.|stocks|fell|1,000.5|points|..."),
        ("São-Tomé (“Príncipe”)", "São-Tomé|(|“|Príncipe|”|)"),
        ("हिन्दी में", "हिन्दी|में"),
        ("Coca-Cola's and AT&T’s rock'n'roll isn't", "Coca-Cola|'s|and|AT&T|’s|rock'n'roll|isn't"),
        ("O'Neil's Jean-Luc", "O'Neil|'s|Jean-Luc"),
        ("我住在北京。", "我|住|在|北|京|。"),
        ("東京に住むBob's", "東|京|に|住|む|Bob|'s"),
    ],
)
def test_punctuation_stands_apart(text: str, words: str) -> None:
    assert split_words(text) == words.split("|")


def located(text: str, *named: tuple[str, str]) -> tuple[list[tuple[str, str]], int, int]:
    words = words_of(text)
    found = locate(words, [(wording, TYPES.index(type)) for wording, type in named])
    spans = [(" ".join(words[s.start : s.end]), TYPES[s.type]) for s in found.spans]
    return spans, found.num_missing, found.num_overlapping


def test_entities_are_found_by_their_wording() -> None:
    text = "Anna and anna met Bad  Homburg 's mayor in Bad Homburg".replace("  ", " ")
    spans, missing, overlapping = located(
        text, ("Bad Homburg", "location"), ("ANNA", "person"), ("Bad Homburg", "group"), ("Anna", "person")
    )
    assert spans == [("Anna", "person"), ("Bad Homburg", "location"), ("Bad Homburg", "group")]
    assert (missing, overlapping) == (1, 0)  # "Anna" stands there as written once, and "ANNA" has taken it


@pytest.mark.parametrize(
    ("named", "counts"),
    [
        ([("Hamburg", "location")], (1, 0)),
        ([("Hom", "location")], (1, 0)),
        ([("", "location")], (1, 0)),
        ([("Bad Homburg", "location"), ("Homburg", "location")], (0, 1)),
        ([("Bad Homburg", "location"), ("Bad Homburg", "group")], (0, 1)),
        ([("Bad Homburg", "location"), ("Bad Homburg", "location")], (1, 0)),
        ([("BadHomburg", "location")], (0, 0)),
    ],
)
def test_what_cannot_be_placed_is_counted(named: list[tuple[str, str]], counts: tuple[int, int]) -> None:
    spans, *found = located("the mayor of Bad Homburg", *named)
    assert tuple(found) == counts
    assert len(spans) + sum(counts) == len(named)


@settings(max_examples=500)
@given(st.lists(st.tuples(TEXTS.filter(lambda t: bool(split_words(t))), st.integers(-1, 2)), min_size=1, max_size=8))
def test_entities_told_in_words_come_back(parts: list[tuple[str, int]]) -> None:
    """Entities -> wordings -> entities: the same words have the tags, where no wording stands twice in the text."""
    words, spans = [], []
    for text, type in parts:
        piece = split_words(text)
        if type >= 0:
            spans.append(Span(len(words), len(words) + len(piece), type))
        words += piece
    labels, text = EntityLabels(TYPES), " ".join(words)
    tags = tags_of(spans, len(words))
    told = labels.told(tags, text)
    if all(len(entity["text"]) <= MAX_ENTITY_CHARACTERS for entity in told):
        jsonschema.validate(told, labels.schema(text))
    heard = labels.heard(told, text)
    assert len(spans_of(heard.label)) + heard.num_missing + heard.num_overlapping == heard.num_entities == len(spans)
    if all(text.replace(" ", "").count(entity["text"].replace(" ", "")) == 1 for entity in told):
        assert heard.label == tags
    assert labels.decode(labels.encode(tags), text) == tags


def test_of_a_text_no_more_is_asked_for_than_it_can_hold() -> None:
    """A model that repeats itself ends with the text, not with the reply's tokens."""
    schema = EntityLabels(TYPES).schema("to Bad Homburg")
    assert schema["maxItems"] == 3
    assert schema["items"]["properties"]["text"]["maxLength"] == 14


def test_what_an_endpoint_does_not_keep_to_is_located_all_the_same() -> None:
    """Unbounded: an entity that is not in a text may be longer than it."""
    labels = EntityLabels(TYPES)
    told = [{"text": "Barack Obama", "type": "person"}, {"text": "", "type": "person"}] * 2
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(told, labels.schema("Obama"))
    jsonschema.validate(told, labels.schema("Obama", bounded=False))
    heard = labels.heard(told, "Obama")
    assert (heard.label, heard.num_missing) == ((0,), 4)


def test_words_that_are_certain_make_no_text_look_sure() -> None:
    """Those beyond the student's `max_length` are O with a probability of 1."""
    read = np.array([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1]], dtype=np.float32)
    labels = EntityLabels(("person",))
    told = labels.predict(read)
    assert told.confidence == pytest.approx(math.sqrt(0.5 * 0.8))
    assert told.label == (0, 1)
    longer = labels.predict(np.concatenate([read, np.eye(3, dtype=np.float32)[[0] * 30]]))
    assert longer.confidence == pytest.approx(told.confidence)
    assert longer.label == (0, 1, *[0] * 30)
    assert labels.predict(np.eye(3, dtype=np.float32)[[0]]).confidence == 1.0


@pytest.mark.parametrize("value", [["O"], "O O", ["O", "B-place"], None])
def test_labels_of_other_texts_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"tag"):
        EntityLabels(TYPES).decode(value, "two words")


def test_entity_f1_is_seqevals() -> None:
    from seqeval.metrics import f1_score, precision_score, recall_score

    names, rng = tag_names(TYPES), np.random.default_rng(0)
    for case in range(30):
        labels = [rng.integers(0, len(names) if case % 3 else 3, size=rng.integers(1, 15)) for _ in range(8)]
        labels = [np.asarray(tags_of(spans_of(tags.tolist()), len(tags))) for tags in labels]
        probs = [0.1 * rng.random((len(tags), len(names))).astype(np.float32) for tags in labels]
        for p, tags in zip(probs, labels, strict=True):
            right = rng.random(len(tags)) < 0.7
            p[np.flatnonzero(right), tags[right]] += 1
        said = [[names[tag] for tag in p.argmax(axis=1)] for p in probs]
        truth = [[names[tag] for tag in tags] for tags in labels]
        metrics = entity_metrics(probs, [tags.tolist() for tags in labels])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wanted = {
                "al/entity_f1": f1_score(truth, said, zero_division=0),
                "al/entity_precision": precision_score(truth, said, zero_division=0),
                "al/entity_recall": recall_score(truth, said, zero_division=0),
                "al/macro_f1": f1_score(truth, said, average="macro", zero_division=0),
            }
        assert metrics == pytest.approx(metrics | wanted, abs=1e-12)


def test_nothing_to_find_and_nothing_found_is_no_error() -> None:
    probs = np.eye(3, dtype=np.float32)[[0, 0]]
    metrics = entity_metrics([probs], [[0, 0]])
    assert (metrics["al/entity_f1"], metrics["al/macro_f1"], metrics["al/accuracy"]) == (0.0, 0.0, 1.0)


def test_entities_are_voted_on_one_by_one() -> None:
    """`Anna` in all three samples, `Bad Homburg` in two, once with another type."""
    labels = EntityLabels(TYPES)
    anna, place, group = Span(0, 1, 0), Span(2, 4, 1), Span(2, 4, 2)
    answers = [tags_of(spans, 4) for spans in ([anna, place], [anna, place], [anna, group])]
    vote = labels.vote(answers, 3, 0.5)
    assert vote.label == tags_of([anna, place], 4)
    assert vote.agreement == pytest.approx((3 + 2 + 2) / 9), "two of three say that there is no group"
    nothing = labels.vote([tags_of([], 4), tags_of([], 4), tags_of([place], 4)], 3, 0.5)
    assert nothing.label == tags_of([], 4)
    assert nothing.agreement == pytest.approx(2 / 3)
    assert labels.vote(answers, 3, 1.0).label is None, "two of three name a place: that is in dispute"
    assert labels.vote([answers[0]] * 3, 3, 1.0).label == answers[0]
    assert labels.vote(answers[:1], 3, 0.5).label is None, "two of three replies could not be read"
    assert labels.vote([answers[0], tags_of([anna], 4)], 3, 0.5).label is None, "one reply is lost"
    assert labels.vote([answers[0]] * 2, 3, 0.5).label == answers[0], "two of three are enough"
    assert labels.vote([tags_of([], 4)] * 2, 4, 0.5).agreement == 0.5
    assert labels.vote([tags_of([], 4)], 1, 0.5).label == (0, 0, 0, 0)
    assert labels.vote([answers[0], answers[2]], 2, 0.5).label is None, "an entity, but which?"
    types = [tags_of([Span(2, 4, type)], 4) for type in range(3)]
    assert labels.vote(types, 3, 0.5).label is None, "all name an entity there, each another one"
    ends = [tags_of([Span(0, end, 0)], 4) for end in (1, 2, 3)]
    assert labels.vote(ends, 3, 0.5).label is None


@pytest.mark.parametrize(("number", "samples"), [(14, 25), (7, 25), (28, 50), (55, 100)])
def test_an_exact_share_of_the_samples_is_enough(number: int, samples: int) -> None:
    """0.56 * 25 is 14.000000000000002."""
    share = number / samples
    votes = [0] * number + list(range(1, samples - number + 1))
    assert Classes(tuple(map(str, range(samples)))).vote(votes, samples, share).label == 0
    assert Classes(tuple(map(str, range(samples)))).vote(votes, samples, share + 0.01).label is None
    if 2 * number > samples:
        told = [tags_of([Span(0, 1, 0)], 1)] * number
        assert EntityLabels(TYPES).vote(told, samples, share).label == told[0]


def test_a_label_is_carried_to_other_words_as_written_only() -> None:
    labels = EntityLabels(TYPES)
    assert labels.carried((3, 0, 0), "US is big", "big is the US") == (0, 0, 0, 3)
    assert labels.carried((3, 0, 0), "US is big", "most of us know it is big") is None
    assert labels.carried((3, 0, 0), "US is big", "a big US is the US") is None, "which one is it?"
    assert labels.carried((3, 0, 3), "US and US", "US or US") == (3, 0, 3)
    assert labels.carried((3, 0, 3), "US and UK", "US or US") is None
    assert labels.carried((1, 0, 3), "May in May", "in May , May") is None, "which one is which?"
    assert labels.carried((1, 0, 0, 0), "May came in May", "In May May came") is None, "which one is none?"
