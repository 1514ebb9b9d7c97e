"""Retrieved nodes behind a guard."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging

import pytest
from guardrail_llamaindex import GuardrailNodePostprocessor
from llama_index.core.schema import (
    ImageNode,
    MediaResource,
    MetadataMode,
    Node,
    NodeWithScore,
    TextNode,
)
from PIL import Image
from pydantic import ValidationError

from guardrail.errors import (
    ConfigurationError,
    DetectorError,
    GuardrailViolation,
    ImageDecodeError,
    UnsupportedContentError,
)
from guardrail.policy import CAUTION, Limits, Policy
from tests.waiting import auntil

WAYS = ("postprocess_nodes", "apostprocess_nodes")


def scored(*texts):
    return [NodeWithScore(node=TextNode(text=t), score=1 - i / 8) for i, t in enumerate(texts)]


def run(guard, way, nodes, **options):
    processor = GuardrailNodePostprocessor(guard=guard, **options)
    answer = getattr(processor, way)(nodes, query_str="what is this")
    return asyncio.run(answer) if way.startswith("a") else answer


def texts(nodes):
    return [node.node.get_content() for node in nodes]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("action", ["drop", "raise"])
def test_flagged_nodes_are_left_out_and_the_others_say_that_they_passed(word_guard, way, action):
    nodes = scored("a dog", "a cat") if action == "raise" else scored("a dog", "a cat", "bad")
    kept = run(word_guard(), way, nodes, action=action)
    assert [(node.node.node_id, node.score) for node in kept] == [
        (node.node.node_id, node.score) for node in nodes[:2]
    ]
    for node in kept:
        assert node.metadata == {"guardrail_action": "pass", "guardrail_score": 0.0}
        assert node.node.get_content(MetadataMode.LLM) == node.node.get_content(MetadataMode.EMBED)
    assert [node.metadata for node in nodes[:2]] == [{}, {}]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["image node", "node", "both ways"])
def test_a_picture_goes_on_as_data_in_the_form_that_was_judged(word_guard, way, kind, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned
    path = tmp_path / "a.jpg"
    Image.new("RGB", (20, 10), "red").save(path, exif=exif)
    node = {
        "image node": lambda: ImageNode(text="here", image_path=str(path)),
        "both ways": lambda: ImageNode(
            image=base64.b64encode(path.read_bytes()).decode(), image_path="elsewhere.jpg"
        ),
        "node": lambda: Node(image_resource=MediaResource(path=path)),
    }[kind]()
    guard = word_guard()
    (kept,) = run(guard, way, [NodeWithScore(node=node)])
    shown = kept.node
    if kind == "node":
        data, others = shown.image_resource.data.decode(), [shown.image_resource.path]
    else:
        data, others = shown.image, [shown.image_path, shown.image_url]
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    assert (picture.format, picture.size, set(others)) == ("PNG", (10, 20), {None})
    assert data in repr(guard.seen)
    shadow = word_guard(Policy(mode="shadow"))
    if kind != "both ways":
        assert run(shadow, way, [NodeWithScore(node=node)])[0].node is node


def test_settings_that_do_not_exist_are_refused(word_guard):
    with pytest.raises(ConfigurationError, match=r"'actoin' .* \(do you mean 'action'\?\)"):
        GuardrailNodePostprocessor(guard=word_guard(), actoin="raise")


@pytest.mark.parametrize("way", WAYS)
def test_marked_nodes_all_stay_and_tell_their_verdict_to_nobody_but_the_program(word_guard, way):
    nodes = scored("a dog", "bad")
    before = [node.model_dump() for node in nodes]
    kept = run(word_guard(), way, nodes, action="mark")
    assert [node.node.metadata for node in kept] == [
        {"guardrail_action": "pass", "guardrail_score": 0.0},
        {"guardrail_action": "flag", "guardrail_score": 1.0},
    ]
    assert [node.node.get_content(MetadataMode.LLM) for node in kept] == ["a dog", "bad"]
    assert [node.node.get_content(MetadataMode.EMBED) for node in kept] == ["a dog", "bad"]
    assert [node.score for node in kept] == [1, 0.875]
    assert [node.node_id for node in kept] == [node.node_id for node in nodes]
    assert [node.model_dump() for node in nodes] == before
    json.dumps([node.node.metadata for node in kept])


@pytest.mark.parametrize("way", WAYS)
def test_a_flagged_node_raises_where_told_to(word_guard, way):
    with pytest.raises(GuardrailViolation):
        run(word_guard(), way, scored("a dog", "bad"), action="raise")
    assert len(run(word_guard(), way, scored("a dog"), action="raise")) == 1


@pytest.mark.parametrize("on_flag", ["refuse", "raise", "annotate"])
def test_the_action_counts_whatever_the_policy_does_about_requests(word_guard, on_flag):
    guard = word_guard(Policy(on_flag=on_flag))
    assert texts(run(guard, WAYS[0], scored("a dog", "bad"))) == ["a dog"]


@pytest.mark.parametrize("way", WAYS)
def test_a_caution_is_read_before_the_text(word_guard, way):
    nodes = scored("odd")
    (kept,) = run(word_guard(), way, nodes)
    assert kept.node.get_content(MetadataMode.LLM) == f"guardrail_caution: {CAUTION}\n\nodd"
    assert kept.node.get_content(MetadataMode.EMBED) == "odd"
    assert nodes[0].node.metadata == {}
    (marked,) = run(word_guard(), way, nodes, action="mark")
    assert marked.node.metadata["guardrail_action"] == "steer"


UNCAUTIONED = {
    "a template without metadata": lambda _: TextNode(text="odd", text_template="{content}"),
    "a key that is hidden": lambda _: TextNode(
        text="odd", excluded_llm_metadata_keys=["guardrail_caution"]
    ),
    "a picture alone": lambda data: Node(image_resource=MediaResource(data=data)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("make", UNCAUTIONED.values(), ids=UNCAUTIONED)
def test_where_no_caution_would_be_read_the_node_counts_as_flagged(word_guard, way, make, png):
    lines = []
    audit = lambda verdict, facts: lines.append((verdict.action.value, facts["done"]))  # noqa: E731
    node = NodeWithScore(node=make(png()))
    steer = "odd" if node.node.get_content() else base64.b64encode(png()).decode()
    guard = word_guard(flag="never", steer=steer)
    assert run(guard, way, [node], audit=audit) == []
    assert lines == [("flag", "flag")]
    with pytest.raises(GuardrailViolation):
        run(guard, way, [node], action="raise")
    (marked,) = run(guard, way, [node], action="mark")
    assert marked.node.metadata["guardrail_action"] == "flag"
    assert "guardrail_caution" not in marked.node.metadata


def test_what_would_be_steered_may_count_as_flagged_or_pass(word_guard):
    flag, free = (word_guard(Policy(unsteerable=rule)) for rule in ("flag", "pass"))
    nodes = scored("odd")
    assert run(flag, WAYS[0], nodes) == []
    (kept,) = run(free, WAYS[0], nodes)
    assert kept.node.get_content(MetadataMode.LLM) == "odd"
    assert kept.node.metadata["guardrail_action"] == "pass"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("action", ["drop", "mark", "raise"])
def test_shadow_mode_changes_nothing(word_guard, way, action):
    nodes = scored("a dog", "bad", "odd", "outage")
    kept = run(word_guard(Policy(mode="shadow")), way, nodes, action=action)
    assert [id(node) for node in kept] == [id(node) for node in nodes]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("action", ["drop", "mark"])
def test_an_outage_leaves_a_node_out_and_says_so(word_guard, caplog, way, action):
    lines = []

    def audit(verdict, facts):
        lines.append((verdict.reason, facts["done"]))

    with caplog.at_level(logging.WARNING, logger="guardrail_llamaindex"):
        kept = run(word_guard(), way, scored("outage", "a dog"), action=action, audit=audit)
    assert texts(kept) == ["a dog"]
    assert "the detector failed; the retrieved node" in caplog.text
    assert lines == [("detector_failed", "flag"), ("score", "pass")]


@pytest.mark.parametrize("way", WAYS)
def test_an_outage_raises_an_error_that_is_no_finding(word_guard, way):
    with pytest.raises(DetectorError):
        run(word_guard(), way, scored("outage"), action="raise")


@pytest.mark.parametrize("way", WAYS)
def test_an_outage_passes_where_the_policy_fails_open(word_guard, way):
    assert texts(run(word_guard(Policy(fail="open")), way, scored("outage"))) == ["outage"]


@pytest.mark.parametrize("way", WAYS)
def test_nothing_retrieved_is_nothing_kept(guard_on, way):
    assert run(guard_on(), way, []) == []


@pytest.mark.parametrize("way", WAYS)
def test_a_node_that_cannot_be_read_is_an_error_that_names_it(guard_on, tmp_path, way):
    bad = tmp_path / "a.png"
    bad.write_bytes(b"no picture")
    node = NodeWithScore(node=ImageNode(id_="n7", image_path=str(bad)))
    with pytest.raises(ImageDecodeError) as caught:
        run(guard_on(), way, [*scored("a dog"), node])
    assert "'n7'" in "".join(caught.value.__notes__)
    with pytest.raises(UnsupportedContentError, match="'n8'"):
        run(guard_on(), way, [NodeWithScore(node=ImageNode(id_="n8"))])


@pytest.mark.parametrize("way", WAYS)
def test_the_verdict_is_the_guards_own_for_the_same_content(guard_on, png, tmp_path, way):
    guard = guard_on()
    path = tmp_path / "a.png"
    path.write_bytes(png())
    nodes = [
        *scored("tell me about the cat"),
        NodeWithScore(node=ImageNode(text="what is this", image_path=str(path))),
    ]
    kept = run(guard, way, nodes, action="mark")
    parts = [{"type": "image", "image": png()}, {"type": "text", "text": "what is this"}]
    wanted = [
        guard.check("tell me about the cat").score,
        guard.check([{"role": "user", "content": parts}]).score,
    ]
    found = [node.node.metadata["guardrail_score"] for node in kept]
    assert found == pytest.approx(wanted, abs=1e-5)


def test_only_so_many_checks_are_under_way_at_once(word_guard):
    class Counting(word_guard):
        most = now = 0

        async def acheck(self, value):
            type(self).now += 1
            type(self).most = max(self.most, self.now)
            await asyncio.sleep(0.001)
            type(self).now -= 1
            return self.check(value)

    nodes = scored(*["a dog"] * 12)
    assert len(run(Counting(), WAYS[1], nodes, concurrency=3)) == 12
    assert Counting.most == 3
    Counting.most = 0
    run(Counting(Policy(limits=Limits(queue=2))), WAYS[1], nodes)
    assert Counting.most == 2


def test_many_nodes_fit_through_a_short_queue(guard_on):
    guard = guard_on(limits=Limits(queue=2, batch=2))
    nodes = scored(*(f"the cat number {i}" for i in range(8)))
    for way in WAYS:
        assert len(run(guard, way, nodes)) == 8


def test_cancelling_leaves_the_guard_usable(guard_on, passes):
    guard = guard_on()

    async def main():
        processor = GuardrailNodePostprocessor(guard=guard)
        nodes = scored(*(f"the cat number {i}" for i in range(40)))
        passes.hold()
        task = asyncio.create_task(processor.apostprocess_nodes(nodes))
        await auntil(passes.held)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        passes.go_on()
        return await guard.acheck("tell me")

    assert asyncio.run(main()).action == "pass"


def test_it_is_saved_without_its_guard(word_guard):
    processor = GuardrailNodePostprocessor(guard=word_guard(), action="mark", concurrency=3)
    saved = json.loads(processor.to_json())
    assert "guard" not in saved
    assert saved["class_name"] == "GuardrailNodePostprocessor"
    again = GuardrailNodePostprocessor.from_dict(saved, guard=word_guard())
    assert (again.action, again.concurrency) == ("mark", 3)
    with pytest.raises(ValidationError, match="guard"):
        GuardrailNodePostprocessor.from_dict(saved)


def test_another_action_is_an_error(word_guard):
    with pytest.raises(ValidationError, match="action"):
        GuardrailNodePostprocessor(guard=word_guard(), action="delete")
