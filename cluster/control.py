"""Reading and stopping a run from another terminal, through its driver or, when none lives, its directory."""

from __future__ import annotations

from cluster.contact import connected, read_contact
from genal_ray.errors import UserError
from genal_ray.status import RunStatus, State
from genal_ray.store import RunDirectory
from genal_ray.working_copy import holder

_ANSWER_S = 30.0


def read_status(store: RunDirectory) -> RunStatus:
    """The driver's own status, or what the directory tells: where no driver lives, and where its cluster is not to be
    trusted. Raises UserError when it is no run directory."""
    config = store.load_config()
    contact = read_contact(store)
    if contact is not None and contact.is_trusted:
        with connected(contact) as driver:
            import ray  # not earlier: Ray reads RAY_AUTH_MODE, which `connected` sets, when it is imported

            if driver is not None:
                live: RunStatus = ray.get(driver.status.remote(), timeout=_ANSWER_S)
                return live
    worker = holder(store)
    reports = tuple(store.reports())
    bought = int(reports[-1].metrics.get("al/num_labels", 0)) if reports else 0
    budget = store.record("budget.json")
    total = int(budget.get("total", 0))
    reason = store.outcome()
    return RunStatus(
        state=State.DONE if reason is not None else State.STOPPED if worker is None else State.RUNNING,
        round=max(len(reports) - 1, 0),
        num_rounds=int(budget.get("num_rounds", config.budget.max_rounds or 0)),
        num_labels=bought,
        budget=total,
        reports=reports,
        reason=reason or (None if worker is None else f"{worker} works on it, which cannot be reached from here"),
    )


def ask_to_stop(store: RunDirectory, *, now: bool) -> str:
    """Ask the driver to end; returns what was done. Raises UserError when nothing works on the run."""
    store.load_config()
    contact = read_contact(store)
    if contact is not None and not contact.is_trusted:
        raise UserError(
            f"the driver of {store.path} is on the Ray cluster at {contact.address}, which is not on this machine: if "
            f"you trust it, set RAY_ADDRESS={contact.address} and ask again"
        )
    if contact is not None:
        with connected(contact) as driver:
            import ray  # not earlier: Ray reads RAY_AUTH_MODE, which `connected` sets, when it is imported

            if driver is not None:
                ray.get(driver.stop.remote(now=now), timeout=_ANSWER_S)
                when = "now" if now else "after the stages in progress"
                return f"asked to stop {when}; go on later with: genal-ray resume {store.place}"
    place = store.place
    if (worker := holder(store)) is not None:
        raise UserError(f"{worker} works on {place}, which cannot be reached from here: run `genal-ray stop` there")
    raise UserError(f"nothing works on {place}, so there is nothing to stop; see `genal-ray status {place}`")
