"""What becomes of a readout of answers when the model changes: never used on another one unseen."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from guardrail.drift.run import answering, renamed
from guardrail.drift.transport import SignedPermutation, moved
from guardrail.errors import ConfigurationError
from guardrail.policy import Policy
from guardrail.testing import tiny_artefact, tiny_model

RECORD = {"how": "fingerprint"}


@pytest.fixture(scope="module")
def watching() -> Any:
    return tiny_artefact(*tiny_model("llama"), tau_answer=9)


def other(artefact: Any) -> Any:
    return artefact.header.fingerprint.model_copy(update={"weights_digest": "another"})


def test_an_artefact_kept_for_another_model_watches_no_answers_until_it_is_fitted_again(
    watching: Any,
) -> None:
    kept = renamed(watching, other(watching), RECORD)
    made = answering(kept, watching)
    assert made.header.answers is None
    assert not [name for name in made.tensors if name.startswith("answer_")]
    assert made.header.parent == watching.artefact_id
    with pytest.raises(ConfigurationError, match="earlier model"):
        made.answer_threshold(Policy(watch="answer"))


def test_for_the_same_model_it_stays(watching: Any) -> None:
    assert answering(watching, watching) is watching


def test_without_one_nothing_is_said(watching: Any) -> None:
    bare = watching.without_answers("none")
    assert answering(renamed(bare, other(bare), RECORD), bare).header.answers is None


def test_a_change_of_basis_takes_it_along(watching: Any) -> None:
    width = watching.tensors["direction"].shape[1]
    places = torch.randperm(width, generator=torch.Generator().manual_seed(0))
    there = SignedPermutation(places, torch.ones(width).double())
    made = moved(watching, there)
    for name in ("answer_query", "answer_value"):
        assert torch.equal(made.tensors[name], watching.tensors[name][..., places])
    assert torch.equal(made.tensors["answer_bias"], watching.tensors["answer_bias"])
