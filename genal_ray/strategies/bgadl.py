"""BGADL (Tran et al. 2019) on texts: the pool is queried, and variants of what was queried are written."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from genal_ray.acquisition import Acquisition
from genal_ray.acquisition.bald import Bald
from genal_ray.strategies._functions import AnyFunction
from genal_ray.strategies.signal import Signal, Source
from genal_ray.types import LabeledInstance

if TYPE_CHECKING:
    from genal_ray.pools import Pools
    from genal_ray.tasks import Task


class Bgadl(Signal):
    """Prompts show the real instances that were labeled last, and ask for one like them with the same label.

    Tran et al. 2019 query the pool by BALD and train on each queried image and on a variant of it, which a VAE-ACGAN
    draws from its encoding and its label; the variant has its label for free. Here every label is paid for, by one
    budget: variants of a round's queries stand for choice in the next round, beside the real pool and by the same
    score. `selection.mix=fixed` with `synthetic_share` 0.5 labels a variant for each query, as in the paper. Each
    query of the last round with any is shown in its turn, with others of that round and of its label behind it. The
    student and the generator are two models here, and the reward is the score that queries, not a GAN's loss.
    """

    name: str = "bgadl"
    condition_on_label: bool = True
    """Whether the examples of a prompt have one label, which the prompt names, as in the paper."""
    query: AnyFunction = Field(default_factory=Bald)
    """Selects and rewards, in place of the run's `acquisition`; a learner needs a pointwise one."""

    def selector(self, configured: Acquisition) -> Acquisition:
        return self.query

    def sources(self, pools: Pools, task: Task, label_names: Sequence[str], count: int) -> list[Source]:
        bought = [item for item in pools.labeled if item.instance.origin == "real"]
        last = max(item.round for item in bought)
        queries = sorted((item for item in bought if item.round == last), key=lambda item: item.instance.id)
        shown = itertools.islice(itertools.cycle(queries), count)
        return [self._source(query, queries, label_names) for query in shown]

    def _source(self, query: LabeledInstance, queries: Sequence[LabeledInstance], label_names: Sequence[str]) -> Source:
        """The query, and the others like it."""
        named = self.condition_on_label
        return Source(
            instances=[q.instance for q in queries if q is not query and (q.label == query.label or not named)],
            shown=(query.instance,),
            label=label_names[query.label] if named and isinstance(query.label, int) else None,
        )
