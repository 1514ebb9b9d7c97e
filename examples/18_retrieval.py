"""Retrieval with LangChain: flagged documents are dropped, or marked, before a prompt shows them.

pip install 'guardrail-vlm[langchain]', then: python examples/18_retrieval.py

The guard here has random weights, and thresholds by which pictures are flagged and texts pass.
"""

from __future__ import annotations

import base64
import io

from guardrail_langchain import GuardrailDocumentCompressor
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.vectorstores import InMemoryVectorStore
from PIL import Image

from guardrail import Guard, Policy
from guardrail.testing import tiny_artefact, tiny_model


def picture() -> str:
    """A picture as stores and chats keep it."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "navy").save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


DOCUMENTS = [
    Document("How to thank a teacher.", metadata={"source": "letters.txt"}),
    Document(picture(), metadata={"source": "scan.png"}),  # as stores of several media keep them
]


def main() -> None:
    """Retrieve everything, twice."""
    model, processor = tiny_model()
    fitted = tiny_artefact(model, processor, tau_steer=9, tau_flag=9)
    policy = Policy(thresholds={"image": {"steer": -9, "flag": -8}})
    store = InMemoryVectorStore(DeterministicFakeEmbedding(size=8))
    store.add_documents(DOCUMENTS)
    with Guard((model, processor), fitted, policy=policy) as guard:
        for action in ("drop", "mark"):
            compressor = GuardrailDocumentCompressor(guard=guard, action=action)
            chain = store.as_retriever() | compressor.as_step()  # | prompt | model
            print(f"{action}:")
            for document in sorted(chain.invoke("a letter"), key=lambda d: d.metadata["source"]):
                told = document.metadata
                print(f"  {told['source']}: {told['guardrail_action']}")


if __name__ == "__main__":
    main()
