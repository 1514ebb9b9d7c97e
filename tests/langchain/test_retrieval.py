"""What a model may be shown of retrieved documents."""

from __future__ import annotations

from base64 import b64encode

import pytest
from guardrail_langchain import GuardrailDocumentCompressor
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.retrievers import BaseRetriever
from pydantic import ValidationError

from guardrail import DetectorError, Guard, GuardrailViolation, Policy, Thresholds
from guardrail.policy import CAUTION
from guardrail.testing import FakeGuard
from guardrail.types import Modality
from tests.picture_zoo import drawing, saved, translucent

NICE, BAD, ODD = (Document(page_content=f"a {word} text") for word in ("nice", "bad", "odd"))
FAR = 1e9


def picture(made=None) -> str:
    return b64encode(saved(made or drawing(), "PNG")).decode()


async def compressed(documents, guard=None, *, asynchronous=False, **options):
    compressor = GuardrailDocumentCompressor(guard=guard or FakeGuard(), **options)
    assert isinstance(compressor, BaseDocumentCompressor)
    if asynchronous:
        return await compressor.acompress_documents(documents, "q")
    return compressor.compress_documents(documents, "q")


BOTH = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])


@BOTH
async def test_flagged_documents_are_left_out_and_others_keep_their_order(asynchronous):
    documents = [NICE, BAD, NICE.model_copy(update={"id": "3"})]
    kept = await compressed(documents, asynchronous=asynchronous)
    assert [each.page_content for each in kept] == ["a nice text"] * 2
    assert kept[1].id == "3"
    assert kept[0].metadata == {"guardrail_action": "pass", "guardrail_score": 0.0}
    assert NICE.metadata == {}
    assert await compressed([], asynchronous=asynchronous) == []


@BOTH
async def test_they_may_be_marked_or_raise(asynchronous):
    marked = await compressed([NICE, BAD], action="mark", asynchronous=asynchronous)
    assert [each.metadata["guardrail_action"] for each in marked] == ["pass", "flag"]
    with pytest.raises(GuardrailViolation):
        await compressed([NICE, BAD], action="raise", asynchronous=asynchronous)


@BOTH
async def test_what_would_be_steered_follows_the_policy(asynchronous):
    [kept] = await compressed([ODD], asynchronous=asynchronous)
    assert kept.page_content == f"{CAUTION}\n\na odd text"
    flagging = FakeGuard(policy=Policy(unsteerable="flag"))
    assert await compressed([ODD], flagging, asynchronous=asynchronous) == []
    passing = FakeGuard(policy=Policy(unsteerable="pass"))
    [kept] = await compressed([ODD], passing, asynchronous=asynchronous)
    assert kept.page_content == ODD.page_content
    shadow = FakeGuard(policy=Policy(mode="shadow"))
    assert await compressed([BAD], shadow, asynchronous=asynchronous) == [BAD]


@BOTH
async def test_an_outage_leaves_a_document_out_and_says_so(asynchronous, caplog):
    failing = Document(page_content="outage", id="d7")
    assert await compressed([failing], asynchronous=asynchronous) == []
    assert "the detector failed; the retrieved document 'd7' is left out" in caplog.text
    with pytest.raises(DetectorError):
        await compressed([failing], action="raise", asynchronous=asynchronous)
    open_ = FakeGuard(policy=Policy(fail="open"))
    assert len(await compressed([failing], open_, asynchronous=asynchronous)) == 1


@pytest.mark.parametrize(
    "document",
    [
        BAD,
        Document(page_content="hi", metadata={"title": "this is bad"}),
        Document(page_content="hi", metadata={"a": {"deep": ["this is bad"]}}),
        Document(page_content="hi", metadata={"about this bad thing": 1}),
        Document(page_content="hi", metadata={"made": ValueError("this is bad")}),
        Document(page_content="", metadata={"summary": "this is bad"}),
    ],
)
async def test_all_words_of_a_document_are_read(document):
    assert await compressed([document]) == []


async def test_labels_and_numbers_are_not_read():
    guard = FakeGuard()
    metadata = {"source": "file.txt", "score": 0.5, "page": 3, "id": "a-1"}
    [kept] = await compressed([Document(page_content="hi", metadata=metadata)], guard)
    assert guard.seen == [[{"role": "user", "content": [{"type": "text", "text": "hi"}]}]]
    assert {**kept.metadata}.items() >= metadata.items()


async def test_pictures_are_read_and_go_on_as_they_were_judged():
    guard, two_ways = FakeGuard(), picture(translucent(0))
    documents = [
        Document(page_content=two_ways),
        Document(page_content="hi", metadata={"image": f"data:image/png;base64,{two_ways}"}),
    ]
    alone, beside = await compressed(documents, guard)
    assert alone.page_content != two_ways
    assert two_ways not in beside.metadata["image"]
    assert beside.metadata["image"].startswith("data:image/png;base64,")
    kinds = [[part["type"] for part in chat[0]["content"]] for chat in guard.seen]
    assert kinds == [["image"], ["text", "image"]]
    assert documents[0].page_content == two_ways
    steering = FakeGuard(steer=[""])
    assert [len(await compressed([each], steering)) for each in documents] == [0, 1]


async def test_a_model_judges_a_picture(tiny_parts):
    model, processor, artefact = tiny_parts
    forced = {
        Modality.TEXT: Thresholds(steer=FAR, flag=FAR),
        Modality.IMAGE: Thresholds(steer=-FAR, flag=-FAR),
    }
    with Guard((model, processor), artefact, policy=Policy(thresholds=forced)) as guard:
        documents = [NICE, Document(page_content=picture())]
        for asynchronous in (False, True):
            [kept] = await compressed(documents, guard, asynchronous=asynchronous)
            assert kept.page_content == NICE.page_content


async def test_what_cannot_be_read_names_its_document():
    unread = Document(page_content="hi", metadata={"a": b"no picture"}, id="d7")
    with pytest.raises(ValueError, match="bytes that are no picture") as raised:
        await compressed([unread])
    assert raised.value.__notes__ == ["while the retrieved document 'd7' was checked"]
    with pytest.raises(ValidationError, match="drop"):
        GuardrailDocumentCompressor(guard=FakeGuard(), action="leave")


async def test_it_is_a_step_behind_a_retriever():
    class Retriever(BaseRetriever):
        def _get_relevant_documents(self, query, *, run_manager):
            return [NICE, BAD]

    chain = Retriever() | GuardrailDocumentCompressor(guard=FakeGuard()).as_step()
    assert [each.page_content for each in chain.invoke("q")] == ["a nice text"]
    assert [each.page_content for each in await chain.ainvoke("q")] == ["a nice text"]
