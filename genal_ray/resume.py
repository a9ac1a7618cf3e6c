"""Where a run goes on: its state after the last committed round, from the run directory alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from genal_ray.config import RunConfig
from genal_ray.corpus import Corpus
from genal_ray.ledger import Ledger
from genal_ray.pools import Pools
from genal_ray.stages import CandidateCodec, ChosenCodec, ScoresCodec, policy_codec
from genal_ray.store import RunDirectory
from genal_ray.types import Instance, PolicyUpdate


def restore_pools(config: RunConfig, store: RunDirectory, corpus: Corpus, ledger: Ledger) -> Pools:
    """The pools as the last committed round left them."""
    committed = store.committed_rounds()
    if not committed:
        return Pools(corpus.pool)
    oldest = max(1, committed[-1] - config.strategy.retention_rounds + 1)
    synthetic = [i for number in range(oldest, len(committed)) for i in _kept(config, store, number)]
    return Pools.restored(corpus, ledger.until(committed[-1]), synthetic)


def _kept(config: RunConfig, store: RunDirectory, number: int) -> list[Instance]:
    """Synthetic instances of a committed round that its strategy did not give up."""
    round = store.round(number)
    if not round.is_complete("generate"):
        return []
    written = {c.instance.id: c.instance for c in round.load("generate", CandidateCodec()) if c.instance is not None}
    scores = round.load("score", ScoresCodec())
    of_round = {id: value for id, value in zip(scores.ids, scores.values.tolist(), strict=True) if id in written}
    budget = len(round.load("annotate", ChosenCodec()))
    discarded = config.strategy.discard(of_round, budget)
    return [instance for id, instance in written.items() if id not in discarded]


@dataclass(frozen=True, slots=True, kw_only=True)
class LastPolicies:
    """Policies that a resumed run goes on with; None is the pretrained one."""

    served: PolicyUpdate | None
    """That of the last committed round: the generator's."""
    learned: Path | None
    """Folder of the last one that was learned: the learner's state. The round in progress may have got that far."""


def last_policies(store: RunDirectory) -> LastPolicies:
    committed = store.committed_rounds()
    learned = [number for number in range(1, len(committed) + 1) if store.round(number).is_complete("learn")]
    served = [number for number in learned if number < len(committed)]
    return LastPolicies(
        served=store.round(served[-1]).load("learn", policy_codec(store.path)) if served else None,
        learned=store.round(learned[-1]).folder / "policy" if learned else None,
    )
