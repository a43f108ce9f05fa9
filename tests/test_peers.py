"""Which processes are still there."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from goodinit.errors import RankError
from goodinit.processes.peers import Address, Peers, is_lost_connection, own_address


class Store(dict):
    """What torch's stores do, for one process."""

    def set(self, key, value):
        self[key] = value.encode()

    def check(self, keys):
        return all(key in self for key in keys)

    def get(self, key):
        return self[key]


@pytest.fixture
def store(monkeypatch):
    store = Store()
    monkeypatch.setattr("goodinit.processes.peers._store", lambda: store)
    monkeypatch.setattr("goodinit.processes.peers._PATIENCE", 0.2)
    return store


def peers_of(rank, size, prefix="call"):
    peers = Peers(rank, size)
    peers._prefix = prefix
    return peers


ERROR = RuntimeError("[gloo] Connection closed by peer\nmore")


def test_a_failure_that_was_told(store):
    peers_of(2, 3).tell("ValueError: no")
    text = peers_of(0, 3).explain(ERROR)
    assert text == "process 2 failed: ValueError: no ([gloo] Connection closed by peer). All weights here are as before"


def test_one_s_own_failure_explains_nothing(store):
    peers = peers_of(0, 2)
    peers.tell("ValueError: no")
    assert peers.explain(ERROR).startswith("process 0 no longer reaches process 1, which died or waits for something else (")


def test_words_of_an_earlier_call_do_not_count(store):
    peers_of(1, 2, "before").tell("ValueError: no")
    assert "no longer reaches process 1" in peers_of(0, 2, "now").explain(ERROR)
    assert Peers(0, 2)._prefix != Peers(0, 2)._prefix


def test_those_that_answer_are_not_missing(store):
    for rank in (0, 2, 3):
        store.set(f"call/there/{rank}", "1")
    assert "no longer reaches process 1, which died or waits for something else" in peers_of(0, 4).explain(ERROR)
    store.set("call/there/1", "1")
    assert peers_of(0, 4).explain(ERROR).startswith("process 0 lost touch with the others")


def test_the_dead_are_known_on_this_machine(store):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    zombie = subprocess.Popen([sys.executable, "-c", ""])
    while os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT) is None:
        pass
    here = own_address()
    peers = peers_of(0, 5)
    peers.addresses = [
        here,
        Address(here.machine, gone.pid),
        Address(here.machine, zombie.pid),
        here,
        Address(("x", ""), gone.pid),
    ]
    assert peers.explain(ERROR).startswith("process 0 no longer reaches process 1, 2, which died (")
    zombie.wait()


def test_the_store_may_be_gone(monkeypatch):
    def broken():
        raise torch.distributed.DistNetworkError("gone")

    monkeypatch.setattr("goodinit.processes.peers._store", broken)
    peers = peers_of(1, 2)
    peers.tell("no one reads this")
    assert peers.explain(ERROR).startswith("process 1 no longer reaches process 0, or the launcher (")


@pytest.mark.parametrize(
    ("error", "yes"),
    [
        (RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer"), True),
        (RuntimeError("Timed out waiting 4000ms for recv operation to complete"), True),
        (torch.distributed.DistBackendError("NCCL communicator was aborted"), True),
        (RuntimeError("Application timeout caused pair closure"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("gloomy"), False),
        (RankError("another"), False),
    ],
)
def test_lost_connections(error, yes):
    assert is_lost_connection(error) == yes
