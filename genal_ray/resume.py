"""Where a run goes on: its state after the last committed round, from the run directory alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from genal_ray.config import RunConfig
from genal_ray.corpus import Corpus
from genal_ray.ledger import Ledger
from genal_ray.pools import Pools
from genal_ray.stages import AskedCodec, CandidateCodec, ScoresCodec, policy_codec
from genal_ray.store import RunDirectory
from genal_ray.types import Instance, PolicyUpdate

SCORED = ("initial", "score", "reward")
"""Stages that hold scores."""


def restore_pools(config: RunConfig, store: RunDirectory, corpus: Corpus, ledger: Ledger) -> Pools:
    """The pools as the last committed round left them, in the same order: a student sees its texts in that order."""
    committed = store.committed_rounds()
    if not committed:
        return Pools(corpus.pool)
    oldest = max(1, committed[-1] - config.strategy.retention_rounds + 1)
    synthetic = [i for number in range(oldest, len(committed)) for i in _kept(config, store, number)]
    rounds = [store.round(number) for number in committed]
    asked = [round.load("annotate", AskedCodec()) for round in rounds]
    ids = [id for found in asked for id in found.ids]
    pools = Pools.restored(corpus, ids, ledger.of(ids), synthetic)
    scored = [round.load(stage, ScoresCodec()) for round in rounds for stage in SCORED if round.is_complete(stage)]
    pools.put_aside(id for scores in scored for id in scores.failed)
    for found in asked:
        pools.fail(found.failed)
    return pools


def _kept(config: RunConfig, store: RunDirectory, number: int) -> list[Instance]:
    """Synthetic instances of a committed round that its strategy did not give up."""
    round = store.round(number)
    if not round.is_complete("generate"):
        return []
    written = {c.instance.id: c.instance for c in round.load("generate", CandidateCodec()) if c.instance is not None}
    scores = round.load("score", ScoresCodec())
    of_round = {id: value for id, value in zip(scores.ids, scores.values.tolist(), strict=True) if id in written}
    asked = round.load("annotate", AskedCodec())
    budget = len(asked.ids) + len(asked.failed)
    discarded = config.strategy.discard(of_round, budget)
    return [instance for id, instance in written.items() if id not in discarded]


@dataclass(frozen=True, slots=True, kw_only=True)
class LastPolicies:
    """Policies that a resumed run goes on with; None is the pretrained one."""

    served: PolicyUpdate | None
    """That of the last committed round: the generator's."""
    learned: Path | None
    """Folder of the newest one: the learner's state. The round in progress may have got that far."""


def last_policies(store: RunDirectory) -> LastPolicies:
    """A policy is newest by the round that learned or restored it."""
    committed = store.committed_rounds()
    rounds = [store.round(number) for number in range(1, len(committed) + 1)]
    policies = [round.load("learn", policy_codec(store.path)) for round in rounds if round.is_complete("learn")]
    served = [policy for policy in policies if policy.version < len(committed)]
    return LastPolicies(
        served=served[-1] if served else None,
        learned=_state_folder(store, policies[-1]) if policies else None,
    )


def _state_folder(store: RunDirectory, policy: PolicyUpdate) -> Path | None:
    """None for the pretrained policy, which a round may have restored."""
    model = Path(policy.path)
    return model.parent if model.is_relative_to(store.path / "rounds") else None
