from __future__ import annotations

import pytest

from guardrail.model.shares import within_share


def filled(places, *clients):
    """How many each client holds when all of them always want more."""
    held = dict.fromkeys(clients, 0)
    grew = True
    while grew:
        grew = False
        for client in clients:
            if within_share(client, held[client], places - sum(held.values())):
                held[client] += 1
                grew = True
    return list(held.values())


@pytest.mark.parametrize(
    ("places", "clients", "held"),
    [
        (64, ["a"], [48]),
        (64, ["a", "b"], [28, 27]),
        (64, ["a", "b", "c", "d"], [15, 15, 15, 15]),
        (1, ["a"], [1]),
        (64, [None], [64]),
    ],
)
def test_greedy_clients_hold_equal_shares_within_one_and_leave_room(places, clients, held):
    assert filled(places, *clients) == held
    if clients != [None] and places > 1:
        assert within_share("new", 0, places - sum(held))
