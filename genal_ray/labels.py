"""What a label is: one class of a text, or the tags of its words.

    Classes       2                      names: negative, positive     the student has an output per name
    EntityLabels  (0, 0, 3, 4, 0)        names: person, location       the student has an output per tag, for each word
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from genal_ray.entities import locate, spans_of, tag_names, tags_of, words_of
from genal_ray.evaluation import classification_metrics, entity_metrics
from genal_ray.types import FloatArray, Label, Prediction

MAX_ENTITIES = 100
MAX_ENTITY_CHARACTERS = 128
"""What a chat model may name in one text; an endpoint that keeps to JSON schemas ends there. Each character more makes
such a schema slower to compile: 8 s at 200 for a vocabulary of 151,000 tokens, 5 s at 128."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What a chat model told."""

    label: Label
    num_entities: int = 0
    """Entities that it named, those that were not placed included."""
    num_missing: int = 0
    """Entities that are not in the text."""
    num_overlapping: int = 0
    """Entities that share words with an earlier one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """What several answers come to."""

    label: Label | None
    """None when they do not agree."""
    agreement: float
    """Share of the samples that say so; of entities, the mean over those that any sample named, of the samples that
    say what the vote decides of it, or where it decides nothing what most say."""


@dataclass(frozen=True, slots=True)
class LabelSpace(ABC):
    """All labels that the texts of a run may have."""

    names: tuple[str, ...]
    """Of the classes, or of the entity types."""

    tags_words: ClassVar[bool] = False
    """Whether a label is a tag for each word."""

    field: ClassVar[str] = "label"
    """Key of a label in what chat models answer."""

    @property
    @abstractmethod
    def outputs(self) -> tuple[str, ...]:
        """Names of the student's outputs."""

    @abstractmethod
    def kinds(self, label: Label) -> list[int]:
        """Indices into `names`, one for each thing that the label names."""

    @abstractmethod
    def encode(self, label: Label) -> Any:
        """The label as a JSON value that needs no further explanation."""

    @abstractmethod
    def decode(self, value: Any, text: str) -> Label:
        """The label of a text that `encode` wrote. Raises ValueError for anything else."""

    @abstractmethod
    def schema(
        self, text: str | None = None, abstention: str | None = None, *, bounded: bool = True
    ) -> dict[str, Any]:
        """JSON schema of a label as chat models tell it: of any text, or of this one. `abstention` is what they may say
        in its place. `bounded` ones bound lengths, where endless replies are possible."""

    @abstractmethod
    def told(self, label: Label, text: str) -> Any:
        """The label of a text as chat models tell it, and are told."""

    @abstractmethod
    def heard(self, value: Any, text: str) -> Heard:
        """The label that a chat model told of a text, by `schema`."""

    @abstractmethod
    def carried(self, label: Label, text: str, rephrased: str) -> Label | None:
        """The label that a text has in other words; None where something that it names is not in them, or more often
        than it names it."""

    @abstractmethod
    def vote(self, answers: Sequence[Label | None], num_samples: int, min_agreement: float) -> Vote:
        """What several answers about one text come to; None abstains, and those that could not be read are missing."""

    @abstractmethod
    def predict(self, probs: FloatArray) -> Prediction:
        """The label that a student's probabilities for one text amount to: [outputs], or [words, outputs]."""

    @abstractmethod
    def agreement(self, given: Sequence[Label], wanted: Sequence[Label]) -> float:
        """Share of the texts with the same class; or entity F1, 1 where neither side has an entity."""

    @abstractmethod
    def metrics(self, probs: Sequence[FloatArray], labels: Sequence[Label]) -> dict[str, float]:
        """`al/*` figures of a student's probabilities for texts with these labels."""


class Classes(LabelSpace):
    """One class per text: a label is an index into the names."""

    @property
    def outputs(self) -> tuple[str, ...]:
        return self.names

    def kinds(self, label: Label) -> list[int]:
        assert isinstance(label, int)
        return [label]

    def encode(self, label: Label) -> str:
        assert isinstance(label, int)
        return self.names[label]

    def decode(self, value: Any, text: str) -> int:
        if value not in self.names:
            raise ValueError(f"{value!r:.80} is none of the labels {', '.join(self.names)}")
        return self.names.index(value)

    def schema(
        self, text: str | None = None, abstention: str | None = None, *, bounded: bool = True
    ) -> dict[str, Any]:
        return {"type": "string", "enum": [*self.names, *([] if abstention is None else [abstention])]}

    def told(self, label: Label, text: str) -> str:
        return self.encode(label)

    def heard(self, value: Any, text: str) -> Heard:
        return Heard(label=self.names.index(value))

    def carried(self, label: Label, text: str, rephrased: str) -> Label:
        return label

    def vote(self, answers: Sequence[Label | None], num_samples: int, min_agreement: float) -> Vote:
        """The class with the most votes, if it has enough of all samples and no other has as many."""
        ranked = Counter(answers).most_common(2)
        if not ranked:
            return Vote(label=None, agreement=0.0)
        label, number = ranked[0]
        tied = len(ranked) == 2 and ranked[1][1] == number
        decided = not tied and number >= _needed(min_agreement, num_samples)
        return Vote(label=label if decided else None, agreement=number / num_samples)

    def predict(self, probs: FloatArray) -> Prediction:
        return Prediction(label=int(probs.argmax()), confidence=float(probs.max()))

    def agreement(self, given: Sequence[Label], wanted: Sequence[Label]) -> float:
        return float(np.mean([one == other for one, other in zip(given, wanted, strict=True)]))

    def metrics(self, probs: Sequence[FloatArray], labels: Sequence[Label]) -> dict[str, float]:
        return classification_metrics(np.stack(probs), labels)  # type: ignore[arg-type]


class EntityLabels(LabelSpace):
    """Entities in a text of the task `ner`: a label has a tag for each word (`genal_ray.entities`)."""

    tags_words: ClassVar[bool] = True
    field: ClassVar[str] = "entities"

    @property
    def outputs(self) -> tuple[str, ...]:
        return tag_names(self.names)

    def kinds(self, label: Label) -> list[int]:
        return [span.type for span in spans_of(_tags(label))]

    def encode(self, label: Label) -> list[str]:
        names = self.outputs
        return [names[tag] for tag in _tags(label)]

    def decode(self, value: Any, text: str) -> tuple[int, ...]:
        names, num_words = self.outputs, len(words_of(text))
        if not isinstance(value, list) or len(value) != num_words:
            raise ValueError(f"expected a list of {num_words} tags, one for each word, found {value!r:.80}")
        if unknown := [tag for tag in value if tag not in names]:
            raise ValueError(f"{unknown[0]!r:.80} is none of the tags {', '.join(names)}")
        return tags_of(spans_of([names.index(tag) for tag in value]), num_words)  # IOB1 has no B- after an O

    def predict(self, probs: FloatArray) -> Prediction:
        """The likeliest tag of each word; the confidence is their probabilities' geometric mean, over the words that
        are not wholly certain: those that the student never read are, and would make long texts look sure."""
        best = np.maximum(probs.max(axis=1), np.finfo(np.float32).tiny)
        doubted = best[best < 1]
        confidence = float(np.exp(np.log(doubted).mean())) if len(doubted) else 1.0
        tags = tuple(probs.argmax(axis=1).tolist())
        return Prediction(label=tags_of(spans_of(tags), len(tags)), confidence=confidence)

    def agreement(self, given: Sequence[Label], wanted: Sequence[Label]) -> float:
        pairs = [(set(spans_of(_tags(a))), set(spans_of(_tags(b)))) for a, b in zip(given, wanted, strict=True)]
        total = sum(len(a) + len(b) for a, b in pairs)
        return 2 * sum(len(a & b) for a, b in pairs) / total if total else 1.0

    def metrics(self, probs: Sequence[FloatArray], labels: Sequence[Label]) -> dict[str, float]:
        return entity_metrics(probs, [_tags(label) for label in labels])

    def schema(
        self, text: str | None = None, abstention: str | None = None, *, bounded: bool = True
    ) -> dict[str, Any]:
        """Bounded, no wording of a given text is longer than the text, and there are no more entities than words: a
        model that loses its way would otherwise go on to the end of the reply. Of an endpoint that does not keep to
        that, entities that are not in the text are no worse for being long, or many."""
        wording: dict[str, Any] = {"type": "string"}
        bounds: dict[str, Any] = {}
        if bounded:
            most_characters, most = MAX_ENTITY_CHARACTERS, MAX_ENTITIES
            if text is not None:
                most_characters, most = min(most_characters, len(text)), min(most, len(words_of(text)))
            wording |= {"minLength": 1, "maxLength": most_characters}
            bounds = {"maxItems": most}
        entity = {
            "type": "object",
            "properties": {
                "text": wording,
                "type": {"type": "string", "enum": list(self.names)},
            },
            "required": ["text", "type"],
            "additionalProperties": False,
        }
        return {"type": "array", "items": entity, **bounds}

    def told(self, label: Label, text: str) -> list[dict[str, str]]:
        """Wording and type of each entity, in the order of the text."""
        words = words_of(text)
        return [
            {"text": " ".join(words[span.start : span.end]), "type": self.names[span.type]}
            for span in spans_of(_tags(label))
        ]

    def heard(self, value: Any, text: str) -> Heard:
        """The entities that are found in the text; the others are counted."""
        words = words_of(text)
        found = locate(words, [(entity["text"], self.names.index(entity["type"])) for entity in value])
        return Heard(
            label=tags_of(found.spans, len(words)),
            num_entities=len(value),
            num_missing=found.num_missing,
            num_overlapping=found.num_overlapping,
        )

    def carried(self, label: Label, text: str, rephrased: str) -> Label | None:
        """Nor where a wording stands for two things: with two types, or in the text as no entity besides."""
        words, others, told = words_of(text), words_of(rephrased), spans_of(_tags(label))
        wordings = [(" ".join(words[span.start : span.end]), span.type) for span in told]
        if len({wording for wording, _ in wordings}) < len(set(wordings)):
            return None
        found, *twice = (
            locate(where, named, any_case=False).spans
            for where, named in ((others, wordings), (others, wordings * 2), (words, wordings * 2))
        )
        carried = all(len(spans) == len(told) for spans in (found, *twice))
        return tags_of(found, len(others)) if carried else None

    def vote(self, answers: Sequence[Label | None], num_samples: int, min_agreement: float) -> Vote:
        """The entities that more than half of the samples name, `min_agreement` of them at least. There is no label
        when fewer are known not to name another one, nor when so many name some entity at a word where they agree on
        none; an answer that is missing is on neither side."""
        read = [_tags(answer) for answer in answers if answer is not None]
        needed = max(_needed(min_agreement, num_samples), num_samples / 2)
        if not read or len(read) < needed:
            return Vote(label=None, agreement=0.0)
        votes = Counter(span for tags in read for span in spans_of(tags))
        kept = [span for span, number in votes.items() if number >= needed and 2 * number > num_samples]
        disputed = any(len(read) - number < needed for span, number in votes.items() if span not in kept)
        named = Counter(word for tags in read for span in spans_of(tags) for word in range(span.start, span.end))
        settled = {word for span in kept for word in range(span.start, span.end)}
        disputed |= any(n >= needed and 2 * n > num_samples for word, n in named.items() if word not in settled)
        sides = [max(number, len(read) - number) for number in votes.values()] or [len(read)]
        agreement = float(np.mean(sides)) / num_samples
        return Vote(label=None if disputed else tags_of(kept, len(read[0])), agreement=agreement)


def _needed(min_agreement: float, num_samples: int) -> float:
    """Samples that have to agree; 14 of 25 are a share of 0.56, though 0.56 * 25 is a little more than 14."""
    return min_agreement * num_samples - 1e-9


def _tags(label: Label) -> tuple[int, ...]:
    assert isinstance(label, tuple)
    return label
