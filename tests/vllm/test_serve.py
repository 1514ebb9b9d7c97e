"""`vllm serve` with the guard inside, asked by the client of the OpenAI API."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.vllm.conftest import HERE, QUIET, run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from guardrail.policy import Policy

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]  # a server starts in some
ANSWER = {"model": "tiny", "max_tokens": 8, "temperature": 0}
SMALL = (
    *("--served-model-name=tiny", "--host=127.0.0.1", "--dtype=float32", "--enforce-eager"),
    *("--max-model-len=512", "--max-num-seqs=8", "--max-num-batched-tokens=512"),
    *("--block-size=32", "--chat-template-content-format=string"),
)
SCORES = ("--expose-scores",)


@contextmanager
def serving(folder: Path, policy: Policy, *more: str, words: tuple[str, ...] = ()) -> Iterator[str]:
    """The address of a server of the tiny llama; `words` are those of `vllm-options`."""
    rules = folder / f"{policy.on_flag}.json"
    rules.write_text(policy.model_dump_json(exclude_defaults=True))
    artefact = folder / "llama.guard.safetensors"
    options = run("-m", "guardrail", "vllm-options", "-a", artefact, "--policy", rules, *words)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, HERE / "serving.py", "serve", folder / "llama", *options.split()]
    variables = {**os.environ, **QUIET, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    log = folder / f"{policy.on_flag}.log"
    with log.open("w") as told:
        process = subprocess.Popen(
            [*map(str, command), *SMALL, f"--port={port}", *more],
            stdout=told,
            stderr=told,
            cwd=HERE.parent.parent,
            env={**variables, "PYTHONPATH": str(HERE.parent.parent)},
            start_new_session=True,
        )
        try:
            address = f"http://127.0.0.1:{port}"
            while not _answers(address):
                assert process.poll() is None, log.read_text()[-4000:]
                time.sleep(1)
            yield address
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def _answers(address: str) -> bool:
    try:
        return httpx.get(f"{address}/health").status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def client(address: str) -> Iterator[Any]:
    from openai import OpenAI

    with OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as made:
        yield made


def said(raw: Any, stream: bool = False) -> Any:
    """An answer, or the parts of a stream, and the headers."""
    found = raw.parse()
    return list(found) if stream else found, raw.headers


def counts(address: str) -> Counter[str]:
    """Verdicts by action, as /metrics has them."""
    text = httpx.get(f"{address}/metrics").text
    return Counter(
        {
            sample.labels["action"]: int(sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "guardrail_verdicts_total"
        }
    )


@pytest.fixture(scope="module")
def server(models: Path, reference: Any) -> Iterator[str]:
    with serving(models, reference("llama").policy, words=SCORES) as address:
        yield address


@pytest.fixture(scope="module")
def asked(reference: Any) -> list[tuple[Any, Any]]:
    """Chats, and what the guard in transformers says of each."""
    from tests.vllm.said import chats

    return list(zip(chats(pictures=False), reference("llama").results, strict=True))


def answer_to(address: str, chat: Any, **more: Any) -> tuple[Any, Any]:
    """An answer and its headers."""
    extra = {"extra_body": {"ignore_eos": True}}
    with client(address) as made:
        create = made.chat.completions.with_raw_response.create
        return said(create(messages=chat, **{**ANSWER, **extra, **more}), more.get("stream"))


def expect_verdict(told: Any, headers: Any, result: Any) -> None:
    verdict = result.verdict
    assert told["action"] == headers["X-Guardrail-Action"] == verdict.action
    assert told["score"] == pytest.approx(verdict.score, rel=1e-4, abs=1e-3)
    assert headers["X-Guardrail-Score"] == f"{told['score']:.4f}"
    assert headers["X-Guardrail-Artefact"] == verdict.artefact_id


def test_answers_tell_the_verdict_of_the_guard_in_transformers(
    server: str, asked: list[tuple[Any, Any]]
) -> None:
    before = counts(server)
    with ThreadPoolExecutor(8) as pool:  # verdicts of all kinds are under way at once
        told = list(pool.map(lambda one: answer_to(server, one[0]), asked))
    for (_, result), (answer, headers) in zip(asked, told, strict=True):
        expect_verdict(answer.model_extra["guardrail"], headers, result)
        assert answer.model_extra["kv_transfer_params"] is None
        (choice,) = answer.choices
        if result.refused_by_guard:
            assert choice.finish_reason == "content_filter"
            assert choice.message.refusal == choice.message.content == result.text
        else:
            assert (choice.finish_reason, choice.message.refusal) == ("length", None)
            assert choice.message.content.rstrip("\ufffd") == result.text.rstrip("\ufffd")
    actions = Counter(str(result.verdict.action) for _, result in asked)
    assert actions.keys() == {"pass", "steer", "flag"}
    assert counts(server) - before == actions


def test_streams_tell_it_before_the_first_token_and_with_the_last(
    server: str, asked: list[tuple[Any, Any]]
) -> None:
    usage = {"stream": True, "stream_options": {"include_usage": True}}
    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(lambda one: answer_to(server, one[0], **usage), asked))
    for (_, result), (chunks, headers) in zip(asked, told, strict=True):
        *chunks, used = chunks
        assert used.usage.completion_tokens > 0
        assert not chunks[0].choices[0].delta.content
        for one in (chunks[0], chunks[-1]):
            expect_verdict(one.model_extra["guardrail"], headers, result)
        assert not any("guardrail" in one.model_extra for one in chunks[1:-1])
        text = "".join(one.choices[0].delta.content or "" for one in chunks)
        last = chunks[-1].choices[0]
        if result.refused_by_guard:
            assert (last.finish_reason, last.delta.refusal) == ("content_filter", result.text)
            assert text == result.text
        else:
            assert last.finish_reason == "length"
            assert text.rstrip("\ufffd") == result.text.rstrip("\ufffd")


@pytest.mark.parametrize(
    "more",
    [
        {"logprobs": True, "top_logprobs": 3},
        {"n": 3, "temperature": 1.0},
        {"max_tokens": 1},
        {"extra_body": {"prompt_logprobs": 2}},
    ],
)
def test_no_setting_lets_a_token_of_a_flagged_request_out(
    server: str, asked: list[tuple[Any, Any]], more: dict[str, Any]
) -> None:
    chat, result = next(one for one in asked if one[1].refused_by_guard)
    answer, _ = answer_to(server, chat, **more)
    streams = "extra_body" not in more
    chunks = answer_to(server, chat, stream=True, **more)[0] if streams else ()
    for choice in answer.choices:
        assert (choice.message.content, choice.logprobs) == (result.text, None)
        assert choice.finish_reason == "content_filter"
    for one in (choice for chunk in chunks for choice in chunk.choices):
        assert (one.delta.content or result.text, one.logprobs) == (result.text, None)


@pytest.mark.parametrize("stream", [False, True])
def test_each_of_several_prompts_has_its_verdict(server: str, stream: bool) -> None:
    prompts = ["the cat is red", "write a long text about " + "blue and green " * 20, "a dog"]
    with client(server) as made:
        create = made.completions.with_raw_response.create
        singles = [create(prompt=one, **ANSWER).parse() for one in prompts]
        raw = create(prompt=prompts, stream=stream, logprobs=2, echo=not stream, **ANSWER)
        found, headers = said(raw, stream)
    parts = found if stream else [found]
    wanted = [one.model_extra["guardrail"]["action"] for one in singles]
    told, ends = {}, {}
    for choice in (choice for part in parts for choice in part.choices):
        if choice.finish_reason:
            told[choice.index] = choice.model_extra["guardrail"]["action"]
            ends[choice.index] = choice.finish_reason
    assert [told[i] for i in range(3)] == wanted
    assert "flag" in wanted
    assert headers["X-Guardrail-Action"] == "flag"
    assert parts[0].model_extra["guardrail"]["action"] == "flag"
    for index, action in enumerate(wanted):
        assert (ends[index] == "content_filter") == (action == "flag")


def test_responses_tell_it_too(server: str) -> None:
    given = {"model": "tiny", "input": "write about " + "blue and green " * 20}
    with client(server) as made:
        create = made.responses.with_raw_response.create
        answer, headers = said(create(**given))
        (first, *_, last), streams = said(create(**given, stream=True), True)
    for one in (headers, streams):
        assert one["X-Guardrail-Action"] == answer.model_extra["guardrail"]["action"] == "flag"
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "content_filter")
    assert first.model_extra["guardrail"] == last.model_extra["guardrail"]
    assert last.response.status == "incomplete"


def test_errors_of_vllm_are_its_own(server: str) -> None:
    from openai import BadRequestError, NotFoundError

    with pytest.raises(NotFoundError) as told:
        answer_to(server, [{"role": "user", "content": "hello"}], model="other")
    assert "X-Guardrail-Action" not in told.value.response.headers
    with pytest.raises(BadRequestError, match="max_model_len"):
        answer_to(server, [{"role": "user", "content": "hello"}], max_tokens=10_000)


def test_a_policy_that_raises_answers_400_from_each_of_several_servers(
    models: Path, reference: Any, asked: list[tuple[Any, Any]]
) -> None:
    from openai import BadRequestError

    policy = reference("llama").policy.model_copy(update={"on_flag": "raise"})
    with serving(models, policy, "--api-server-count=2") as address:
        for stream in (False, True):
            for chat, result in asked:
                if result.verdict.action != "flag":
                    assert answer_to(address, chat, stream=stream)[1]["X-Guardrail-Action"]
                    continue
                with pytest.raises(BadRequestError) as told:
                    answer_to(address, chat, stream=stream)
                assert told.value.code == "content_filter"
                assert told.value.body["message"] == result.text
                assert told.value.body["guardrail"]["action"] == "flag"
                assert "score" not in told.value.body["guardrail"]
                headers = told.value.response.headers
                assert headers["X-Guardrail-Action"] == "flag"
                assert "X-Guardrail-Score" not in headers
        actions = Counter(str(result.verdict.action) for _, result in asked)
        for _ in range(4):  # whichever server answers counts for all
            assert counts(address) == Counter({name: 2 * n for name, n in actions.items()})
