"""The real, synthetic and labeled sets: the only mutable state of a run.

    real pool R ──┐
                  ├─► unlabeled U ─── label() ──► labeled L
    synthetic ────┘   (synthetic instances leave U when they expire, and any instance that no work can be done on)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from genal_ray.corpus import Corpus
from genal_ray.text import normalized
from genal_ray.types import Instance, LabeledInstance


class Pools:
    """Instances by id, in the order in which they came."""

    def __init__(self, real: Sequence[Instance]) -> None:
        self.real: tuple[Instance, ...] = tuple(real)
        """The whole real pool, labeled or not: in-context examples come from here."""
        self.real_texts: frozenset[str] = frozenset(normalized(i.student_input) for i in self.real)
        """Normalised texts of the whole real pool."""
        self._unlabeled: dict[str, Instance] = {i.id: i for i in self.real}
        self._labeled: dict[str, LabeledInstance] = {}
        self.set_aside: set[str] = set()
        """Ids that left U for good since they could not be scored, or no annotator had an answer."""
        self.unanswered: set[str] = set()
        """Ids that an annotator failed on in an earlier round."""

    @classmethod
    def restored(
        cls, corpus: Corpus, asked: Iterable[str], labels: Iterable[LabeledInstance], synthetic: Iterable[Instance]
    ) -> Pools:
        """Pools as they were after the labels of the instances `asked` about were bought; `synthetic` are the
        unexpired ones, labeled or not. What failed is told to them afterwards."""
        pools = cls(corpus.pool)
        asked = set(asked)
        pools.add(i for i in synthetic if i.id not in asked)
        pools.label(labels, asked)
        return pools

    @property
    def unlabeled(self) -> list[Instance]:
        return list(self._unlabeled.values())

    @property
    def labeled(self) -> list[LabeledInstance]:
        return list(self._labeled.values())

    @property
    def num_labels(self) -> int:
        return len(self._labeled)

    @property
    def num_synthetic_labels(self) -> int:
        return sum(item.instance.origin == "synthetic" for item in self._labeled.values())

    def find(self, ids: Iterable[str]) -> list[Instance]:
        """Unlabeled instances by id; KeyError for an id that is not in U."""
        return [self._unlabeled[id] for id in ids]

    def add(self, instances: Iterable[Instance]) -> None:
        """New synthetic instances join U."""
        for instance in instances:
            assert instance.id not in self._labeled, f"{instance.id} is already labeled"
            self._unlabeled[instance.id] = instance

    def label(self, items: Iterable[LabeledInstance], asked: Iterable[str] = ()) -> None:
        """Labels were paid for: the instances leave U and join L. Those that were `asked` about without success leave
        U as well."""
        for item in items:
            assert item.instance.id not in self._labeled, f"{item.instance.id} is labeled twice"
            self._unlabeled.pop(item.instance.id, None)
            self._labeled[item.instance.id] = item
        for id in asked:
            self._unlabeled.pop(id, None)

    def discard(self, ids: Iterable[str]) -> None:
        """Instances leave U unlabeled, those that are still there."""
        for id in ids:
            self._unlabeled.pop(id, None)

    def put_aside(self, ids: Iterable[str]) -> None:
        """Instances on which work failed leave U for good."""
        ids = set(ids)
        self.set_aside |= ids
        self.discard(ids)

    def fail(self, ids: Iterable[str]) -> None:
        """An annotator failed on these instances: they stay in U and may be asked about once more, in another round."""
        ids = set(ids)
        self.put_aside(ids & self.unanswered)
        self.unanswered |= ids

    def expire(self, *, born_before: int) -> None:
        """Synthetic instances of rounds before `born_before` leave U."""
        self._unlabeled = {
            id: i for id, i in self._unlabeled.items() if i.origin == "real" or i.round >= born_before
        }

    def synthetic_texts(self) -> set[str]:
        """Normalised texts of all synthetic instances, labeled or waiting."""
        labeled = (item.instance for item in self._labeled.values())
        return {
            normalized(i.student_input) for i in (*labeled, *self._unlabeled.values()) if i.origin == "synthetic"
        }
