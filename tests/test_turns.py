"""In which order processes take their turns."""

from __future__ import annotations

import random

from goodinit.processes.turns import Turns

A, B, C, D, E = ((number, 0, ()) for number in range(5))


def order(turns, *positions):
    return sorted(positions, key=lambda position: turns.turn(position, []))


def test_without_knowledge_as_registered():
    assert order(Turns(), C, A, B) == [A, B, C]


def test_as_seen_by_all_processes_together():
    turns = Turns()
    turns.learn([[E, C, A], [E, D, A], [C, D]])
    assert order(turns, A, C, D, E) == [E, C, D, A]


def test_a_single_operator_is_known_too():
    turns = Turns()
    turns.learn([[C], []])
    assert turns.turn(C, [])[0] == 0


def test_of_random_orders_each_keeps_its_own():
    everything = [(number, 0, ()) for number in range(30)]
    chance = random.Random(0)
    chance.shuffle(everything)
    sequences = [[p for p in everything if chance.random() < 0.4] for _ in range(5)]
    turns = Turns()
    turns.learn(sequences)
    for sequence in sequences:
        assert order(turns, *reversed(sequence)) == sequence


def test_an_unknown_one_comes_after_what_its_process_did_last():
    turns = Turns()
    turns.learn([[E, C, A]])
    assert turns.turn(C, []) < turns.turn(B, [E, C]) < turns.turn(A, [])
    assert turns.turn(B, []) < turns.turn(E, [])
    assert turns.turn(B, [E, D]) < turns.turn(C, [])  # the last known one


def test_later_passes_add_to_the_knowledge():
    turns = Turns()
    turns.learn([[C, A]])
    turns.learn([[E, C], [A, B]])
    assert order(turns, A, B, C, E) == [E, C, A, B]


def test_where_processes_contradict_each_other_as_registered():
    turns = Turns()
    turns.learn([[A, B], [B, A]])
    assert order(turns, B, A) == [A, B]
