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
