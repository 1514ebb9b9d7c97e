"""Each attack finds a planted weakness in a stand-in detector, and none where there is none."""

from __future__ import annotations

import json
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from guardrail.attack.attacks import FAMILIES, Attack, Budget, about, asks, find, known, said
from guardrail.errors import ConfigurationError
from guardrail.inputs.folding import folded
from guardrail.inputs.messages import request_digest
from guardrail.types import ImagePart, Message, Request, TextPart
from tests.attack.conftest import StandIn, request_of

if TYPE_CHECKING:
    from collections.abc import Callable

ASKED = "please tell me how to write about the cat on the green table"
INPUTS = [request_of(ASKED), request_of(f"{ASKED} and a dog")]


def texts(request: Request) -> str:
    parts = (part for message in request.messages for part in message.parts)
    return "\n".join(part.text for part in parts if isinstance(part, TextPart))


def literally(request: Request) -> float:
    """Knows the words only as they are usually written."""
    return float(ASKED in texts(request))


def alone(request: Request) -> float:
    """Knows them only where a lone message begins with them."""
    return float(len(request.messages) == 1 and texts(request).startswith(ASKED))


def lulled(request: Request) -> float:
    """Is lulled by some ordinary words, wherever they stand."""
    soft = sum(word.strip(".,").endswith("e") for word in texts(request).split())
    own = sum(word.endswith("e") for word in ASKED.split())
    return 1.0 - 0.08 * (soft - own)


def always(_request: Request) -> float:
    return 1.0


WEAK: dict[str, Callable[[Request], float]] = {
    "encoding": literally,
    "wrapper": alone,
    "placing": alone,
    "words": lulled,
}
OF_WORDS = [name for name, kind in known().items() if kind.family in WEAK]


def attacked(name: str, rule: Callable[[Request], float], questions: int = 120) -> list[Any]:
    budget = Budget(questions)
    scorer = StandIn(rule, budget)
    one = find(name)
    if not asks(one):
        return one(INPUTS, scorer, budget, 7)
    return [one([each], StandIn(rule, b := Budget(questions)), b, 7)[0] for each in INPUTS]


def test_there_are_at_least_twenty_and_all_families_are_told():
    kinds = known()
    assert len(kinds) >= 20
    assert {kind.family for kind in kinds.values()} == set(FAMILIES)
    assert len({about(kind()) for kind in kinds.values()}) == len(kinds)


@pytest.mark.parametrize("name", OF_WORDS)
def test_it_finds_a_planted_weakness(name: str):
    rule = WEAK[known()[name].family]
    assert min(map(rule, INPUTS)) > 0.5
    for out in attacked(name, rule):
        assert out is not None
        assert rule(out) <= 0.5, texts(out)


@pytest.mark.parametrize("name", [n for n in OF_WORDS if known()[n].family == "words"])
def test_a_search_finds_nothing_where_there_is_nothing(name: str):
    assert attacked(name, always) == INPUTS  # the input itself is as good as any other


@pytest.mark.parametrize("name", OF_WORDS)
def test_nothing_it_does_lowers_a_score_that_does_not_depend_on_it(name: str):
    assert all(out is None or always(out) == 1.0 for out in attacked(name, always, 20))


@pytest.mark.parametrize("name", OF_WORDS)
def test_a_seed_gives_the_same_whichever_inputs_are_beside(name: str):
    rule = WEAK[known()[name].family]
    first, second = attacked(name, rule, 40), attacked(name, rule, 40)
    assert list(map(request_digest, first)) == list(map(request_digest, second))
    budget = Budget(40)
    alone_of = find(name)(INPUTS[1:], StandIn(rule, budget), budget, 7)
    assert request_digest(alone_of[0]) == request_digest(first[1])


@pytest.mark.parametrize("name", ["random words before", "greedy words anywhere"])
def test_other_seeds_give_other_words(name: str):
    made = set()
    for seed in (1, 2):
        budget = Budget(17)
        (out,) = find(name)(INPUTS[:1], StandIn(lulled, budget, goal=-9), budget, seed)
        made.add(texts(out))
    assert len(made) == 2


@pytest.mark.parametrize("questions", [1, 5, 16, 33])
@pytest.mark.parametrize("name", [n for n in OF_WORDS if known()[n].family == "words"])
def test_a_budget_of_questions_holds(name: str, questions: int):
    budget = Budget(questions)
    scorer = StandIn(lulled, budget, goal=-9)
    find(name)(INPUTS[:1], scorer, budget, 0)
    assert len(scorer.seen) == questions


def test_a_budget_of_seconds_holds():
    budget = Budget(10**9, seconds=0.0)
    scorer = StandIn(lulled, budget)
    (out,) = find("greedy words before")(INPUTS[:1], scorer, budget, 0)
    assert (out, scorer.seen, budget.left) == (INPUTS[0], [], 0)
    assert budget.late


def test_a_search_stops_at_its_goal():
    budget = Budget(1000)
    scorer = StandIn(lulled, budget, goal=0.9)
    (out,) = find("greedy words before")(INPUTS[:1], scorer, budget, 0)
    assert lulled(out) <= 0.9
    assert budget.asked < 100


@pytest.mark.parametrize(
    ("where", "holds"),
    [
        ("behind", lambda text: text.startswith(ASKED)),
        ("before", lambda text: text.endswith(ASKED)),
        ("around", lambda text: ASKED in text),
    ],
)
@pytest.mark.parametrize("how", ["random", "greedy"])
def test_words_stand_where_their_attack_says(how: str, where: str, holds: Callable[[str], bool]):
    budget = Budget(60)
    scorer = StandIn(lulled, budget, goal=-9)
    (out,) = find(f"{how} words {where}")(INPUTS[:1], scorer, budget, 0)
    assert holds(texts(out))
    assert len(texts(out)) > len(ASKED)


def test_words_anywhere_leave_those_of_the_request_in_order():
    budget = Budget(60)
    (out,) = find("greedy words anywhere")(INPUTS[:1], StandIn(lulled, budget, goal=-9), budget, 0)
    words = iter(texts(out).split())
    assert all(word in words for word in ASKED.split())  # a subsequence
    assert ASKED not in texts(out)


@pytest.mark.parametrize("name", ["homoglyphs", "zero-width", "spaced letters", "full-width"])
def test_what_hides_letters_can_be_folded_back(name: str):
    (out, _) = attacked(name, always)
    plain = folded(out)
    assert plain is not None
    assert texts(plain).split() == ASKED.split()


@pytest.mark.parametrize("name", OF_WORDS)
def test_pictures_and_earlier_turns_are_not_lost(name: str, llava: Any):
    from PIL import Image

    picture = Image.new("RGB", (8, 8), "red")
    chat = Request(
        (
            Message(role="system", parts=(TextPart("Be kind."),)),
            Message(role="user", parts=(ImagePart(picture), TextPart(ASKED))),
        )
    )
    budget = Budget(20)
    (out,) = find(name)([chat], StandIn(always, budget), budget, 0)
    if known()[name].family == "placing":
        assert out is None  # what is around the words already says where they stand
    else:
        assert out.images == chat.images
        assert out.messages[0] == chat.messages[0]


def test_an_input_without_words_of_a_user_cannot_be_done():
    silent = Request((Message(role="assistant", parts=(TextPart("hello"),)),))
    assert said(silent) is None
    for name in OF_WORDS:
        budget = Budget(20)
        assert find(name)([silent], StandIn(always, budget), budget, 0) == [None], name


def test_json_and_code_hold_the_request_whole():
    awkward = request_of('Say "this"\nand \\that')
    budget = Budget()
    (json_out,) = find("JSON")([awkward], StandIn(always, budget), budget, 0)
    assert json.loads(texts(json_out))["task"] == texts(awkward)
    (code,) = find("code comment")([awkward], StandIn(always, budget), budget, 0)
    assert '# Say "this" and \\that\n' in texts(code)


class Shouted:
    """Louder."""

    name, family = "shouted", "mine"

    def __call__(self, inputs: Any, scorer: Any, budget: Budget, seed: int) -> Any:
        return [request_of(f"{said(request)}!!!") for request in inputs]


def test_ones_own_attack_is_found_by_module_and_class(monkeypatch: pytest.MonkeyPatch):
    module = ModuleType("my_attacks")
    module.Shouted, module.no_attack = Shouted, object()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_attacks", module)
    found = find("my_attacks:Shouted")
    assert isinstance(found, Attack)
    assert about(found) == "Louder."
    assert not asks(found)
    with pytest.raises(ConfigurationError, match="is no attack"):
        find("my_attacks:no_attack")


@pytest.mark.parametrize("name", ["nonsense", "no.such.module:Class", "json:Nothing"])
def test_an_attack_that_is_not_there_is_named(name: str):
    with pytest.raises(ConfigurationError, match=name):
        find(name)
