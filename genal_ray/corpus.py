"""The real data of a run: pool, hidden labels, initial labeled set and evaluation split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from genal_ray.types import Instance, LabeledInstance


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Real data, sampled as the configuration says."""

    label_names: tuple[str, ...]
    pool: tuple[Instance, ...]
    """The real pool R, the initial labeled set included."""
    hidden_labels: Mapping[str, int]
    """Instance id -> label of every pool instance: what the `hidden` annotator reveals."""
    initial_ids: tuple[str, ...]
    """Ids of the initial labeled set, in the order in which they are labeled."""
    evaluation: tuple[LabeledInstance, ...]
    """The evaluation split; never seen by training or model selection."""
