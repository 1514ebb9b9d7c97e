"""The examples of doors, run on stand-ins: in the frameworks' own process, on random weights.

`make examples` runs them on the tiny VLM, whose verdicts mean something.
"""

from __future__ import annotations

import base64
import io
import runpy
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from guardrail import Guard, Policy
from guardrail.front.chats import RESULT_WITHHELD
from guardrail.inputs.messages import to_request
from guardrail.policy import REFUSAL, Thresholds
from guardrail.testing import FakeGuard, scripted, tiny_artefact
from guardrail.types import ImagePart, Modality
from tests.server.clients.conftest import listening

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TEXTS = ("1234567890" * 5, "the door is open and a threatening cat sits there")


class Threatened(FakeGuard):
    """Flags threats, in words and in the picture that stands for them here."""

    def __enter__(self) -> Threatened:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def check(self, value: Any, /, **options: Any) -> Any:
        messages = to_request(value, policy=self.policy).messages
        parts = [part for message in messages for part in message.parts]
        pictures = [part.image for part in parts if isinstance(part, ImagePart)]
        dark = any(picture.getpixel((0, 0)) == (0, 0, 0) for picture in pictures)
        return super().check("threatening" if dark else value, **options)


def shown(text: str) -> Image.Image:
    return Image.new("RGB", (40, 40), "black" if "threatening" in text else "white")


def data_url(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Callable[..., str]:
    """`run("15_litellm.py", served=...)`: what an example prints, with stand-ins."""

    def example(name: str, **stand_ins: Any) -> str:
        module = ModuleType("tiny_guard")
        common = {"HARMLESS": TEXTS[0], "HARMFUL": TEXTS[1], "screen": shown, "drawn": shown}
        vars(module).update({**common, "data_url": data_url, "FOLLOW": "do it", **stand_ins})
        monkeypatch.setitem(sys.modules, "tiny_guard", module)
        for setting in ("LITELLM_LOCAL_MODEL_COST_MAP", "HAYSTACK_TELEMETRY_ENABLED"):
            monkeypatch.setenv(setting, {"L": "True", "H": "False"}[setting[0]])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        said: str = capsys.readouterr().out
        return said

    return example


@pytest.mark.parametrize("name", ["11_agents_sdk.py", "12_pydantic_ai.py"])
def test_an_agent_never_gets_the_harmful_screen_or_question(run, name):
    guard = Threatened(["threatening"])
    harmless, screen, question = run(name, tiny_guard=lambda: guard).split(TEXTS[1])
    assert "the model gets the picture\n  it says 'I see.'" in harmless
    assert f"the model gets {RESULT_WITHHELD}\n  it says 'I see.'" in screen
    assert "flag" in question


@pytest.fixture
def served_at(llava: Any) -> Iterator[Callable[..., Any]]:
    """Servers on the tiny model whose thresholds lie between the scores of the two texts."""
    from guardrail.server import create_app

    with (
        Guard((llava.model, llava.processor), tiny_artefact(llava.model, llava.processor)) as guard,
        scripted(llava.model, llava.processor, lambda prompt: "Dear friend"),
    ):
        scores = [guard.check(text).score for text in TEXTS]
        middle = Thresholds(steer=sum(scores) / 2, flag=sum(scores) / 2)

        def served(**policy: Any) -> Any:
            rules = Policy(thresholds=dict.fromkeys(Modality, middle), **policy)
            return listening(create_app(guard.with_policy(rules)))

        assert abs(scores[0] - scores[1]) > 0.1
        yield lambda: (served, scores[0] < scores[1])


@pytest.mark.parametrize("name", ["13_haystack.py", "14_dspy.py", "15_litellm.py"])
def test_clients_of_the_server_get_answers_and_refusals(run, served_at, name):
    served, ascending = served_at()
    texts = {"HARMLESS": TEXTS[not ascending], "HARMFUL": TEXTS[ascending]}
    said = run(name, served=served, **texts)
    assert "Dear friend" in said
    assert REFUSAL in said
    assert "content_filter" in said
