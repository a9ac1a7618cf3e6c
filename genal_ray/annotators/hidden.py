"""The labels that the data set came with, hidden until they are paid for: how active learning is simulated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from genal_ray.annotators import Annotator, Labeler, Setting
from genal_ray.types import Instance, Label

if TYPE_CHECKING:
    from genal_ray.corpus import Corpus


@dataclass(frozen=True)
class HiddenLabeler:
    labels: Mapping[str, Label]
    accuracy: float | None = 1.0

    async def annotate(self, instances: Sequence[Instance]) -> list[Label | None]:
        return [self.labels[instance.id] for instance in instances]


class Hidden(Annotator):
    """Reveals the data set's own labels; knows real instances only."""

    name: str = "hidden"
    knows_written: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = True

    def check(self, corpus: Corpus) -> None:
        """Every pool instance has its label by construction of the corpus."""

    def load(self, corpus: Corpus, setting: Setting) -> Labeler:
        return HiddenLabeler(corpus.hidden_labels)
