"""Reading and stopping a run from another terminal, through its driver or, when none answers, its directory."""

from __future__ import annotations

from cluster.contact import NoAnswer, ask, read_contact
from genal_ray.config import RunConfig
from genal_ray.errors import RunError, UserError
from genal_ray.status import RunStatus, State
from genal_ray.store import RunDirectory
from genal_ray.working_copy import holder

_ANSWER_S = 30.0


def read_status(store: RunDirectory) -> RunStatus:
    """The driver's own status, or what the directory tells: where no driver lives or answers, and where its cluster is
    not to be trusted. Raises UserError when it is no run directory."""
    config = store.load_config()
    contact, unasked = read_contact(store), None
    if contact is not None and contact.is_trusted:
        try:
            live: RunStatus = ask(contact, lambda driver: driver.status.remote(), timeout_s=_ANSWER_S)
            return live
        except NoAnswer as error:
            if read_contact(store) is not None:  # else the run has ended meanwhile
                unasked = f"the driver {error}; this is what the directory tells"
    elif contact is not None and store.mirror.url is None:
        unasked = (
            f"the driver is on the Ray cluster at {contact.address}, which is not on this machine: to ask it, set "
            f"RAY_ADDRESS={contact.address}"
        )
    if unasked is None and (worker := holder(store)) is not None:
        unasked = f"{worker} works on it, which cannot be reached from here"
    return _told_by_directory(store, config, unasked)


def ask_to_stop(store: RunDirectory, *, now: bool) -> str:
    """Ask the driver to end; returns what was done.

    Raises UserError when nothing works on the run, RunError when its driver does not answer.
    """
    store.load_config()
    place, contact = store.place, read_contact(store)
    if contact is not None and not contact.is_trusted:
        raise UserError(
            f"the driver of {store.path} is on the Ray cluster at {contact.address}, which is not on this machine: if "
            f"you trust it, set RAY_ADDRESS={contact.address} and ask again"
        )
    if contact is not None:
        try:
            ask(contact, lambda driver: driver.stop.remote(now=now), timeout_s=_ANSWER_S)
        except NoAnswer as error:
            if read_contact(store) is not None:  # else the run has ended meanwhile
                raise RunError(
                    f"the driver of {place} {error}. Ask again later, or send SIGTERM to its launcher (on "
                    f"{contact.host}: kill {contact.pid}), which ends all that it has started; go on later with: "
                    f"genal-ray resume {place}"
                ) from error
        else:
            when = "now" if now else "after the stages in progress"
            return f"asked to stop {when}; go on later with: genal-ray resume {place}"
    if (worker := holder(store)) is not None:
        raise UserError(f"{worker} works on {place}, which cannot be reached from here: run `genal-ray stop` there")
    raise UserError(f"nothing works on {place}, so there is nothing to stop; see `genal-ray status {place}`")


def _told_by_directory(store: RunDirectory, config: RunConfig, unasked: str | None) -> RunStatus:
    """`unasked` says why the driver was not asked, of a run that something seems to work on."""
    reports = tuple(store.reports())
    bought = int(reports[-1].metrics.get("al/num_labels", 0)) if reports else 0
    budget = store.record("budget.json")
    reason = store.outcome()
    return RunStatus(
        state=State.DONE if reason is not None else State.STOPPED if unasked is None else State.RUNNING,
        round=max(len(reports) - 1, 0),
        num_rounds=int(budget.get("num_rounds", config.budget.max_rounds or 0)),
        num_labels=bought,
        budget=int(budget.get("total", 0)),
        reports=reports,
        reason=reason or unasked,
    )
