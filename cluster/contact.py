"""How another terminal reaches the driver of a run: the file driver.json in the run directory, there while it lives."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from cluster.machine import is_listening, is_local_host, is_same_address
from genal_ray.errors import GenalRayError, RunError, UserError
from genal_ray.files import remove, write_json
from genal_ray.processes import may_run
from genal_ray.store import RunDirectory


class NoAnswer(RunError):
    """The driver of a run could not be asked; the text goes on from "the driver"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contact:
    """Where a driver can be reached."""

    address: str
    """Of the Ray cluster, host:port."""
    namespace: str
    actor: str
    host: str
    pid: int
    """Of the launcher, on `host`."""
    auth_mode: str | None
    """RAY_AUTH_MODE of the launcher: a cluster that wants a token refuses those who come without."""

    @property
    def is_trusted(self) -> bool:
        """Whether the cluster may be joined unasked: on this machine, or the one that RAY_ADDRESS names.

        What a cluster answers is unpickled, and a run directory may be somebody else's.
        """
        return is_local_host(self.address.rpartition(":")[0]) or self.address == os.environ.get("RAY_ADDRESS")


def announce(store: RunDirectory, *, address: str, namespace: str, actor: str) -> None:
    contact = Contact(
        address=address,
        namespace=namespace,
        actor=actor,
        host=socket.gethostname(),
        pid=os.getpid(),
        auth_mode=os.environ.get("RAY_AUTH_MODE"),
    )
    write_json(store.driver_file, asdict(contact))
    store.mirror.push(store.driver_file)


def withdraw(store: RunDirectory) -> None:
    """What cannot be taken back does no harm: nobody answers there."""
    with suppress(GenalRayError):
        remove(store.driver_file)
        store.mirror.remove(store.driver_file)


def read_contact(store: RunDirectory) -> Contact | None:
    """The contact of a driver that seems to be alive: its file is there, its launcher runs, its cluster answers."""
    try:
        contact = TypeAdapter(Contact).validate_json(store.driver_file.read_bytes(), strict=True)
    except (OSError, ValidationError):
        return None
    return contact if may_run(contact.host, contact.pid) and is_listening(contact.address) else None


def check_idle(store: RunDirectory, joined: str | None = None) -> None:
    """Raise UserError when a driver seems to work on the run.

    `joined` is the address of the cluster that this process has joined. A contact that names a driver of that cluster
    which is not there was left behind, as by a launcher that was lost with its machine, and is withdrawn.
    """
    contact = read_contact(store)
    if contact is None:
        return
    if joined is not None and is_same_address(contact.address, joined) and not _is_there(contact):
        withdraw(store)
        return
    raise UserError(
        f"{store.place} is being worked on: see `genal-ray status`, end it with `genal-ray stop`. If the machine that "
        f"it was started on ({contact.host}) is lost: `--address {contact.address}` goes on as soon as that cluster "
        f"has given the driver up; without that cluster, remove {store.driver_file} first"
    )


def _is_there(contact: Contact) -> bool:
    """Whether the cluster that was joined has the driver."""
    import ray

    try:
        ray.get_actor(contact.actor, namespace=contact.namespace)
    except ValueError:
        return False
    return True


def ask(contact: Contact, question: Callable[[Any], Any], *, timeout_s: float) -> Any:
    """What the driver answers to `question`, which makes a call of its actor.

    Raises NoAnswer when it is gone, dies, hangs or is too busy, and when its cluster lets nobody in.
    """
    if contact.auth_mode is not None:
        os.environ.setdefault("RAY_AUTH_MODE", contact.auth_mode)
    import ray  # not earlier: Ray reads RAY_AUTH_MODE when it is imported
    from ray.exceptions import GetTimeoutError, RayError, RayTaskError

    try:
        return ray.get(question(_find(contact)), timeout=timeout_s)
    except RayTaskError:  # it did answer, with a fault of ours
        raise
    except GetTimeoutError as error:
        raise NoAnswer(f"did not answer within {timeout_s:g} s") from error
    except RayError as error:
        what = str(error).partition("\n")[0].rstrip(".")  # the rest is about Ray
        raise NoAnswer(f"could not be asked: {what}") from error
    finally:
        ray.shutdown()


def _find(contact: Contact) -> Any:
    """The handle of the driver actor."""
    import ray

    try:
        ray.init(address=contact.address, namespace=contact.namespace, logging_level="ERROR", log_to_driver=False)
    except ConnectionError as error:
        raise NoAnswer(f"is on a cluster, {contact.address}, that cannot be joined from here: {error}") from error
    try:
        return ray.get_actor(contact.actor, namespace=contact.namespace)
    except ValueError as error:
        raise NoAnswer(
            "is not there: it has just ended, is about to be started again, or was lost with its machine "
            f"({contact.host}); then `genal-ray resume` with --address {contact.address} goes on"
        ) from error
