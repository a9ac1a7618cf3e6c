"""Where a run goes on: its state after the last committed round, from the run directory alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from genal_ray.config import RunConfig
from genal_ray.corpus import Corpus
from genal_ray.errors import StorageError, UserError
from genal_ray.files import locked
from genal_ray.ledger import Ledger
from genal_ray.llm.journal import Journal
from genal_ray.model_files import check_weights
from genal_ray.pools import Pools
from genal_ray.repair import damaged_stage
from genal_ray.stages import AskedCodec, CandidateCodec, ScoresCodec, policy_codec, student_codec
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
    lost = [id for id in ids if id not in ledger]
    if lost:
        raise UserError(
            f"{store.ledger_file}: {lost[0]}, chosen in a committed round, is not in it: restore the file from a copy"
        )
    pools = Pools.restored(corpus, ids, ledger.of(ids), synthetic)
    scored = [round.load(stage, ScoresCodec()) for round in rounds for stage in SCORED if round.is_complete(stage)]
    pools.put_aside(id for scores in scored for id in scores.failed)
    for found in asked:
        pools.fail(found.failed)
    return pools


def check_state(config: RunConfig, store: RunDirectory, corpus: Corpus) -> None:
    """Raise UserError for what would keep the driver from going on with a run: another one at work, a ledger, journal
    or round that cannot be read, data that are no longer those of the run, weights that are gone."""
    try:
        with locked(store.lock_file):
            store.reports()
            ledger = Ledger(store.ledger_file, corpus.labels).open()
            _check_rounds(store, ledger)
            _check_real(store, corpus, ledger)
            damaged = damaged_stage(store)  # the driver has it done again, where that is safe
            restore_pools(config, store, corpus, ledger)
            if config.llm is not None:
                Journal(store.path / "llm" / "calls.jsonl").open()
            for folder in _needed_weights(store) if damaged is None else ():
                check_weights(folder, str(folder))
    except OSError as error:
        raise UserError(f"{error.filename or store.path} cannot be used ({error.strerror or error})") from error
    except StorageError as error:
        raise UserError(str(error)) from error


def _needed_weights(store: RunDirectory) -> list[Path]:
    """Folders of the newest student and, where one was learned, of the newest policy and its learner's state."""
    committed = store.committed_rounds()
    if not committed:
        return []
    student = store.round(committed[-1]).load("student", student_codec(store.path)).path
    learned = last_policies(store).learned
    return [Path(student), *([] if learned is None else [learned / "model", learned / "learner"])]


def _check_rounds(store: RunDirectory, ledger: Ledger) -> None:
    """Labels were bought in the committed rounds and the one after them, and in no later one."""
    committed = len(store.committed_rounds())
    newest = max((ledger.round_of(id) for id in ledger.ids), default=0)
    folder = store.path / "rounds"
    if newest > committed or (folder.exists() and not folder.is_dir()):
        raise UserError(
            f"{folder} has {committed} committed rounds, but {store.ledger_file} has labels of round {newest}: restore "
            "the folders of the rounds from a copy"
        )


def _check_real(store: RunDirectory, corpus: Corpus, ledger: Ledger) -> None:
    """The labeled texts of the pool are those that the data hold today."""
    today = {instance.id: instance.student_input for instance in corpus.pool}
    for item in ledger.of(ledger.ids):
        if item.instance.origin == "real" and today.get(item.instance.id) != item.instance.student_input:
            raise UserError(
                f"{store.ledger_file}: {item.instance.id} is another text in the training data of today: they were "
                "changed after the run began. Undo the change, or begin a new run"
            )


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
