"""What a bad disk left of the round that a run goes on with: damaged stages are done again where that is safe."""

from __future__ import annotations

import json

from genal_ray.errors import UserError
from genal_ray.files import whole_lines
from genal_ray.stages import STAGES, Round
from genal_ray.store import RunDirectory

STAGES_REWARD_LAST = (*(name for name in STAGES if name not in ("reward", "learn")), "reward", "learn")


def repair(store: RunDirectory) -> list[str]:
    """Forget the damaged stages of the uncommitted round and what came of them; returns what was done, in sentences.

    Raises UserError as `damaged_stage` does.
    """
    number, done = len(store.committed_rounds()), list[str]()
    while (damaged := damaged_stage(store)) is not None:
        name, error = damaged
        for later in _made_of(name, post=store.load_config().reward.timing == "post"):
            store.round(number).forget(later)
        done.append(f"{error}; round {number} goes on from {name}, which is done again")
    return done


def damaged_stage(store: RunDirectory) -> tuple[str, UserError] | None:
    """The first damaged stage of the uncommitted round, and what is wrong with it.

    Raises UserError when labels of that round were bought already: they belong to what the damaged stage held.
    """
    number = len(store.committed_rounds())
    if not (store.path / "rounds" / f"{number:04d}").is_dir():
        return None
    folder = store.round(number)
    for name in (name for name in STAGES if folder.is_complete(name)):
        try:
            folder.read(name)
        except UserError as error:
            bought = sum(json.loads(line)["round"] == number for line in whole_lines(store.ledger_file))
            if bought and _is_chosen_by(name, folder, store):
                raise UserError(f"{error}: {bought} labels were bought by what it held") from error
            return name, error
    return None


def _made_of(name: str, *, post: bool) -> tuple[str, ...]:
    """A stage and those that follow from it. A reward that comes `post` follows from the student; from any reward the
    policy does, and nothing else."""
    order = STAGES_REWARD_LAST if post or name == "reward" else STAGES
    return order[order.index(name) :]


def _is_chosen_by(name: str, folder: Round, store: RunDirectory) -> bool:
    """Whether the labels of the round were chosen by what the stage held. A reward keeps out texts that it could not
    score, until the choice is on disk."""
    if name == "reward":
        return store.load_config().reward.timing == "pre" and not folder.is_complete("annotate")
    return STAGES.index(name) < STAGES.index("annotate")
