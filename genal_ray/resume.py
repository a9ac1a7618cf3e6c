"""Where a run goes on: its state after the last committed round, from the run directory alone."""

from __future__ import annotations

from genal_ray.config import RunConfig
from genal_ray.corpus import Corpus
from genal_ray.ledger import Ledger
from genal_ray.pools import Pools
from genal_ray.stages import CandidateCodec
from genal_ray.store import RunDirectory
from genal_ray.types import Instance


def restore_pools(config: RunConfig, store: RunDirectory, corpus: Corpus, ledger: Ledger) -> Pools:
    """The pools as the last committed round left them."""
    committed = store.committed_rounds()
    if not committed:
        return Pools(corpus.pool)
    oldest = max(1, committed[-1] - config.strategy.retention_rounds + 1)
    synthetic = [instance for number in range(oldest, len(committed)) for instance in _kept(store, number)]
    return Pools.restored(corpus, ledger.until(committed[-1]), synthetic)


def _kept(store: RunDirectory, number: int) -> list[Instance]:
    round = store.round(number)
    if not round.is_complete("generate"):
        return []
    return [c.instance for c in round.load("generate", CandidateCodec()) if c.instance is not None]
