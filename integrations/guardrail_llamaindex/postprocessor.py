"""Retrieved nodes that a guard reads before the model does."""

# No postponed annotations here: pydantic reads the fields' when the class is made.
from collections.abc import Sequence
from functools import partial
from typing import Any

from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore, QueryBundle
from pydantic import Field, SkipValidation

from guardrail.audit import Audit
from guardrail.errors import InputError
from guardrail.front.retrieved import (
    BatchChecker,
    Outcome,
    WhenFlagged,
    acheck_each,
    named,
    ruled,
)
from guardrail.inputs.threads import read_apart
from guardrail_llamaindex.llm import refuse_unknown
from guardrail_llamaindex.messages import canonical_node
from guardrail_llamaindex.nodes import node_message, shows, with_metadata

_CAUTION = "guardrail_caution"


class GuardrailNodePostprocessor(BaseNodePostprocessor):
    """Checks what was retrieved, text, pictures and videos, as a model would read it.

    Each node is one user message: every picture and video that it names, its text, and the metadata
    that LLMs see. What to do with flagged ones is `action`, whatever the policy's `on_flag` is:
    "drop" leaves them out, "raise" raises `GuardrailViolation` at the first, "mark" keeps all. What
    goes on has `guardrail_action` and `guardrail_score` in its metadata, hidden from LLMs and
    embeddings; a query engine's `response.metadata` shows them. Pictures go on as data, in the form
    that was judged. What would be steered follows the policy's `unsteerable`: it counts as flagged,
    passes, or gets a caution as a metadata line that the LLM reads. Where it would not (a template
    without metadata, a picture without text) the node counts as flagged.

    Order and scores stay, and the nodes that come in are never changed. When the detector fails and
    the policy fails closed, a node is left out with a warning (for "raise": `DetectorError`). Put
    it behind postprocessors that change what a node says.

    Raises:
        UnsupportedContentError: a node holds something that a guard cannot score.
        InputError: a node's picture or video cannot be read, or is larger than the policy allows.
    """

    guard: SkipValidation[BatchChecker] = Field(exclude=True, repr=False)
    action: WhenFlagged = "drop"
    concurrency: int = Field(default=8, gt=0, description="checks under way at once, when awaited")
    audit: SkipValidation[Audit] | None = Field(default=None, exclude=True, repr=False)

    def __init__(self, **data: Any) -> None:
        refuse_unknown("GuardrailNodePostprocessor", data, type(self).model_fields)
        super().__init__(**data)

    @classmethod
    def class_name(cls) -> str:
        """The name under which LlamaIndex saves it."""
        return "GuardrailNodePostprocessor"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        nodes = self._canonical(nodes)
        messages = [node_message(scored.node) for scored in nodes]
        return self._kept(nodes, self.guard.check_batch(messages, return_exceptions=True))

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        nodes = await read_apart(partial(self._canonical, nodes))
        messages = [node_message(scored.node) for scored in nodes]
        return self._kept(nodes, await acheck_each(self.guard, messages, self.concurrency))

    def _canonical(self, nodes: Sequence[NodeWithScore]) -> list[NodeWithScore]:
        """Nodes whose pictures every reader reads as they are judged."""
        found = []
        for scored in nodes:
            try:
                node = canonical_node(scored.node, self.guard.policy)
            except InputError as error:
                named(error, _name(scored))
                raise
            same = node is scored.node
            found.append(scored if same else scored.model_copy(update={"node": node}))
        return found

    def _kept(
        self, nodes: Sequence[NodeWithScore], outcomes: Sequence[Outcome]
    ) -> list[NodeWithScore]:
        ruled = [self._ruled(*pair) for pair in zip(nodes, outcomes, strict=True)]
        return [scored for scored in ruled if scored is not None]

    def _ruled(self, scored: NodeWithScore, outcome: Outcome) -> NodeWithScore | None:
        """The node as it goes on, or None."""

        def cautioned(words: str) -> NodeWithScore | None:
            copied = with_metadata(scored, shown={_CAUTION: words}, hidden={})
            return copied if shows(copied.node, _CAUTION) else None

        found = ruled(
            scored,
            outcome,
            self.guard,
            self.action,
            name=_name(scored),
            caution=cautioned,
            audit=self.audit,
        )
        return None if found is None else with_metadata(found[0], shown={}, hidden=found[1])


def _name(scored: NodeWithScore) -> str:
    return f"the retrieved node {scored.node.node_id!r}"
