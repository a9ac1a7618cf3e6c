"""What a bad disk left of the round that a run goes on with: damaged stages are done again where that is safe."""

from __future__ import annotations

import json

from genal_ray.errors import UserError
from genal_ray.files import whole_lines
from genal_ray.stages import STAGES
from genal_ray.store import RunDirectory


def repair(store: RunDirectory) -> list[str]:
    """Forget the first damaged stage of the uncommitted round and those after it; returns what was done, in sentences.

    Raises UserError as `damaged_stage` does.
    """
    number = len(store.committed_rounds())
    damaged = damaged_stage(store)
    if damaged is None:
        return []
    name, error = damaged
    for later in STAGES[STAGES.index(name) :]:
        store.round(number).forget(later)
    return [f"{error}; round {number} goes on from {name}, which is done again"]


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
            if bought and STAGES.index(name) < STAGES.index("annotate"):
                raise UserError(f"{error}: {bought} labels were bought by what it held") from error
            return name, error
    return None
