from __future__ import annotations

import threading

import pytest

from guardrail.guard import Guard
from guardrail.testing import tiny_artefact
from tests.waiting import LONG_S, at_rest, auntil, passes_of, until


def test_what_does_not_come_is_not_waited_for_for_ever():
    with pytest.raises(AssertionError, match="did not become true"):
        until(lambda: False, seconds=0.01)


async def test_the_loop_runs_on_and_the_same_holds_there():
    with pytest.raises(AssertionError, match="did not become true"):
        await auntil(lambda: [], seconds=0.01)

    async def asked():
        return "found"

    assert await auntil(asked) == await auntil(lambda: "found") == "found"


def test_a_model_stands_still_while_its_passes_are_held(llava):
    artefact = tiny_artefact(llava.model, llava.processor, tau_steer=1e9, tau_flag=1e9)
    with Guard((llava.model, llava.processor), artefact) as guard, passes_of(llava.model) as passes:
        passes.hold()
        asking = threading.Thread(
            target=guard.generate, args=("hello",), kwargs={"max_new_tokens": 3}
        )
        asking.start()
        until(passes.held)
        assert (passes.begun, at_rest(guard)) == (1, False)
        passes.go_on()
        asking.join(LONG_S)
        until(lambda: at_rest(guard))
    assert passes.begun == 3
    assert not passes.held()


def test_every_test_has_a_limit_that_one_wait_does_not_reach(request):
    assert float(request.config.getini("timeout")) > 2 * LONG_S
