from __future__ import annotations

import pytest
from pydantic import ValidationError

from guardrail.policy import Policy


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fps": 9}, r"max_fps \(8.0\) must not lie below fps \(9.0\)"),
        ({"fps": 0}, "greater than 0"),
        ({"window": 0}, "greater than 0"),
        ({"answer_frames": 257}, "less than or equal to 256"),
    ],
)
def test_a_sampling_that_cannot_hold_is_refused(change, words):
    with pytest.raises(ValidationError, match=words):
        Policy(video=change)


@pytest.mark.parametrize("entry", ["https://example.com", "example.com:443", "*.example.com", ""])
def test_a_host_that_can_never_match_is_refused_when_the_policy_is_made(entry):
    with pytest.raises(ValidationError, match=r"bare host, e\.g\. 'example\.com'"):
        Policy(allowed_hosts={"example.org", entry})


@pytest.mark.parametrize(
    "entry", ["example.org", "Example.ORG.", "[2001:db8::1]", "bücher.example"]
)
def test_a_host_in_any_usual_form_is_kept_as_written(entry):
    assert Policy(allowed_hosts={entry}).allowed_hosts == {entry}


@pytest.mark.parametrize(
    ("judge", "roles"),
    [
        (None, {"user", "tool"}),
        ([], set()),
        (["turns"], {"user"}),
        (["tools"], {"tool"}),
        (["system", "answers"], {"system", "assistant"}),
        (["turns", "tools", "system", "answers"], {"user", "tool", "system", "assistant"}),
    ],
)
def test_the_parts_that_are_judged_are_messages_of_these_roles(judge, roles):
    policy = Policy() if judge is None else Policy(judge=judge)
    assert policy.judged_roles == roles
    assert Policy.model_validate_json(policy.model_dump_json()) == policy


def test_a_part_that_nothing_is_called_is_refused():
    with pytest.raises(ValidationError, match="'turns', 'tools', 'system' or 'answers'"):
        Policy(judge={"user"})


def test_what_is_judged_is_written_in_one_order():
    assert Policy(judge={"tools", "answers", "turns"}).model_dump(mode="json")["judge"] == [
        "answers",
        "tools",
        "turns",
    ]
