"""Whose delivery is next: nobody is held up by what others send to, and everybody's turn comes."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker import delivery_turns
from worker.delivery_turns import Lane, Turns


def lane(tenant: str, place: str = "a:443", target: str = "webhook") -> Lane:
    return Lane(tenant, target, place)


def fill(turns: Turns, *lanes: Lane) -> list[Lane]:
    """Take as many as may be, while all lanes have more, and none ends."""
    taken = []
    while order := turns.order(dict.fromkeys(lanes, 0.0)):
        turns.take(order[0])
        taken.append(order[0])
    return taken


def test_a_server_is_called_twice_at_once_whoever_asks():
    assert len(fill(Turns(), lane("north"), lane("south"))) == 2


def test_a_tenant_whose_servers_all_hang_leaves_half_of_the_room_and_the_next_half_of_that():
    turns = Turns()
    of_each = [len(fill(turns, *(lane(name, f"{name}{n}:443") for n in range(20)))) for name in "pqrst"]
    assert of_each == [8, 4, 2, 1, 1] and turns.full


def test_a_hanging_server_leaves_the_tenants_others_their_turn():
    turns = Turns()
    hanging = fill(turns, lane("north", "dead:443"))
    assert len(hanging) == 2
    assert turns.order({lane("north", "dead:443"): 0.0, lane("north", "quick:443"): 9.0}) == [
        lane("north", "quick:443")
    ]
    turns.end(hanging[0])
    first, second = turns.order({lane("north", "dead:443"): 0.0, lane("north", "quick:443"): 9.0})
    assert (first.place, second.place) == ("quick:443", "dead:443"), "the one with nothing under way goes first"


def test_of_equals_the_one_that_is_due_for_longer_goes_first():
    assert Turns().order({lane("north"): 2.0, lane("south", "b:443"): 1.0})[0].tenant == "south"


@given(seed=st.integers(0, 10**6))
def test_who_may_have_one_more_sees_every_other_tenant_taken_once_at_most(seed: int):
    """Whatever comes and goes meanwhile, and however long the others have waited before."""
    draw, turns, under_way = random.Random(seed), Turns(), []
    waits, before = lane("waits", "its:443"), []
    for _ in range(60):
        names = [(draw.choice("pqrstu"), f"{draw.choice('abc')}:443") for _ in range(draw.randrange(9))]
        others = {lane(*name): draw.random() for name in names}
        order = turns.order({**others, waits: 1.0})
        while under_way and (not order or draw.random() < 0.4):
            turns.end(under_way.pop(draw.randrange(len(under_way))))
            order = turns.order({**others, waits: 1.0})
        assert order, "nothing is under way, and somebody waits"
        turns.take(order[0])
        under_way.append(order[0])
        before = [] if order[0] == waits or waits not in order else [*before, order[0].tenant]
        assert len(before) == len(set(before))


def test_no_more_turns_are_remembered_than_fit(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(delivery_turns, "REMEMBERED", 3)
    turns = Turns()
    for name in "pqrstp":
        turns.take(lane(name))
        turns.end(lane(name))
    assert list(turns._tenants) == ["s", "t", "p"] and not turns._under_way
