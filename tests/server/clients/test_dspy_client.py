"""DSPy's language model, by LiteLLM, against a running server."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import pytest

from guardrail.types import Action

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KEY = "a-key-for-tests-0123"


@pytest.fixture(scope="module")
def dspy() -> Iterator[Any]:
    """The package, imported without a look at the network."""
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        patch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        import dspy

        yield dspy


@pytest.fixture
def lm_of(dspy: Any) -> Callable[..., Any]:
    def make(server: Any, tokens: int = 4) -> Any:
        return dspy.LM(
            "openai/guarded",
            api_base=server.api,
            api_key=KEY,
            cache=False,
            num_retries=0,
            max_tokens=tokens,
            temperature=None,
        )

    return make


def test_an_answer_is_the_models(lm_of, server):
    expected = server.guard.generate("hello", max_new_tokens=4).text
    assert lm_of(server)("hello") == [expected]


def test_a_flagged_prompt_is_refused(lm_of, server_of):
    lm = lm_of(server_of(Action.FLAG, refusal_message="No."))
    assert lm("hello") == ["No."]
    assert repr(lm.history[-1]) == 1
