from __future__ import annotations

import threading

from guardrail.online.places import Places
from tests.waiting import LONG_S


def test_one_client_leaves_places_to_the_others():
    places = Places(4)
    assert [places.take("a") for _ in range(4)] == [True, True, True, False]
    assert places.take("b")
    assert not places.take("b")
    places.give_back("a")
    assert places.take("b")


def test_who_names_no_client_may_have_all_of_them():
    places = Places(2)
    assert [places.take(None) for _ in range(3)] == [True, True, False]


def test_waiting_ends_with_a_place_or_with_the_time():
    places = Places(1)
    places.take("a")
    assert not places.take("b", timeout=0.01)
    waiter = threading.Thread(target=places.take, args=("b",), kwargs={"timeout": None})
    waiter.start()
    places.give_back("a")
    waiter.join(LONG_S)
    assert not waiter.is_alive()
    assert not places.take("a")
