"""Retrieved documents that a guard reads before a model does."""

# No postponed annotations here: pydantic reads the fields' when the class is made.
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Self

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from PIL import Image
from pydantic import ConfigDict, Field, SkipValidation
from typing_extensions import override

from guardrail.audit import Audit
from guardrail.errors import InputError
from guardrail.front.chats import result_chat
from guardrail.front.retrieved import (
    BatchChecker,
    Outcome,
    WhenFlagged,
    acheck_each,
    named,
    ruled,
)
from guardrail.front.tool_values import read_value
from guardrail.inputs.threads import read_apart
from guardrail.policy import Policy
from guardrail_langchain.words import IN_DOCUMENTS, legible


class GuardrailDocumentCompressor(BaseDocumentCompressor):
    """Checks what was retrieved, its words and pictures, before a model reads it.

        compressor = GuardrailDocumentCompressor(guard=guard)
        kept = compressor.compress_documents(retriever.invoke(question), question)
        chain = retriever | compressor.as_step() | prompt | model

    Each document is one user message: its text (or the picture that is there in base64), pictures
    of its metadata, and the metadata's words, since a prompt may show any of them; labels where
    loaders put them, such as a source or an id, and numbers are not read. What to do with flagged
    ones is `action`, whatever the policy's `on_flag` is: "drop" leaves them out, "raise" raises
    `GuardrailViolation` at the first, "mark" keeps all. What goes on has `guardrail_action` and
    `guardrail_score` in its metadata, and its pictures in the form that was judged. What would be
    steered follows the policy's `unsteerable`: it counts as flagged, passes, or gets a caution
    before its text; a document that is a picture has no place for one and counts as flagged.

    Order stays, and the documents that come in are never changed. When the detector fails and the
    policy fails closed, a document is left out with a warning (for "raise": `DetectorError`).

    Raises:
        UnsupportedContentError: a document holds something that a guard cannot score.
        InputError: a picture cannot be read, or a document is larger than the policy allows.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    guard: SkipValidation[BatchChecker] = Field(exclude=True, repr=False)
    action: WhenFlagged = "drop"
    concurrency: int = Field(default=8, gt=0, description="checks under way at once, when awaited")
    audit: SkipValidation[Audit] | None = Field(default=None, exclude=True, repr=False)

    @override
    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        read = self._read(documents)
        outcomes = self.guard.check_batch([each.chat for each in read], return_exceptions=True)
        return self._kept(read, outcomes)

    @override
    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        read = await read_apart(partial(self._read, documents))
        chats = [each.chat for each in read]
        return self._kept(read, await acheck_each(self.guard, chats, self.concurrency))

    def as_step(self) -> Any:
        """A step of a chain between a retriever and what shows its documents to a model."""
        from langchain_core.runnables import RunnableLambda

        return RunnableLambda(
            partial(self.compress_documents, query=""),
            partial(self.acompress_documents, query=""),
            name="guarded_documents",
        )

    def _read(self, documents: Sequence[Document]) -> list["_Read"]:
        return [_Read.of(each, i, self.guard.policy) for i, each in enumerate(documents)]

    def _kept(self, read: Sequence["_Read"], outcomes: Sequence[Outcome]) -> list[Document]:
        kept = []
        for each, outcome in zip(read, outcomes, strict=True):
            found = ruled(
                each.document,
                outcome,
                self.guard,
                self.action,
                name=each.name,
                caution=each.cautioned,
                audit=self.audit,
            )
            if found is not None:
                kept.append(_with(found[0], found[1]))
        return kept


class _Read:
    """A document as it goes on, and what a guard reads of it."""

    def __init__(self, document: Document, chat: Any, name: str, *, has_text: bool) -> None:
        self.document, self.chat, self.name, self._has_text = document, chat, name, has_text

    @classmethod
    def of(cls, document: Document, place: int, policy: Policy) -> Self:
        name = f"the retrieved document {document.id or place!r}"
        try:
            text = read_value(document.page_content, policy, name)
            beside = read_value(_plain(document.metadata), policy, f"the metadata of {name}")
        except InputError as error:
            named(error, name)
            raise
        content = [*text.content, *beside.parts]
        said = beside.said if isinstance(beside.said, Mapping) else {}
        words = [*legible(said, IN_DOCUMENTS), *legible({"id": document.id}, IN_DOCUMENTS)]
        if words:
            content.append({"type": "text", "text": "\n".join(words)})
        changed: dict[str, Any] = {}
        if text.value != document.page_content:
            changed["page_content"] = text.value
        if beside.parts:
            read: Any = beside.value
            changed["metadata"] = {**document.metadata, **_changed(document.metadata, read)}
        document = document.model_copy(update=changed) if changed else document
        return cls(document, result_chat(content or ""), name, has_text=not text.parts)

    def cautioned(self, words: str) -> Document | None:
        """The document with words before its text."""
        if not self._has_text:
            return None
        text = f"{words}\n\n{self.document.page_content}"
        return self.document.model_copy(update={"page_content": text})


def _plain(value: Any) -> Any:
    """Metadata as JSON and pictures: objects by the words that a prompt would show of them."""
    match value:
        case None | bool() | int() | float() | str() | bytes() | Image.Image():
            return value
        case Mapping():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_plain(item) for item in value]
    return str(value)


def _changed(old: Mapping[Any, Any], new: Mapping[str, Any]) -> dict[Any, Any]:
    """The items of metadata that hold pictures in another form than before."""
    return {
        key: new[str(key)]
        for key, item in old.items()
        if new[str(key)] is not item and new[str(key)] != _plain(item)
    }


def _with(document: Document, marks: Mapping[str, Any]) -> Document:
    if not marks:
        return document
    return document.model_copy(update={"metadata": {**document.metadata, **marks}})
