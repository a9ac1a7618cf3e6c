"""Looking at processes from outside."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest
import ray

from actors.liveness import REACH_TIMEOUT_S, Place, stacks


@pytest.mark.parametrize("alive", [True, False])
def test_a_process_on_a_node_that_vanished_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, alive: bool) -> None:
    with socket.socket() as listening, socket.socket() as pending:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        pending.connect(listening.getsockname())  # its queue is full now: like a cut network, it answers no other
        address, port = listening.getsockname()
        node = {"NodeID": "a node", "Alive": alive, "NodeManagerAddress": address, "NodeManagerPort": port}
        monkeypatch.setattr(ray, "nodes", lambda: [node])
        begun = time.monotonic()
        text = asyncio.run(stacks(Place(pid=1, node_id="a node")))
    assert text == "process 1 could not be looked at: node a node cannot be reached\n"
    assert time.monotonic() - begun < 2 * REACH_TIMEOUT_S
