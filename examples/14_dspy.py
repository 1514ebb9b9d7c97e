"""DSPy with our server as its language model.

make examples, or: python examples/14_dspy.py
"""

from __future__ import annotations

import os

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # or it asks GitHub for prices

import dspy
from dspy.utils.exceptions import LMInvalidRequestError
from tiny_guard import HARMFUL, HARMLESS, served


def main() -> None:
    """Ask the model as programs of DSPy do.

    Under `on_flag="raise"` a refusal is an error, and no adapter of DSPy takes it for an answer in
    the wrong form, which it would ask for again.
    """
    with served(on_flag="raise") as url:
        lm = dspy.LM(
            "openai/guarded",
            api_base=f"{url}/v1",
            api_key="none is needed",
            max_tokens=16,
            temperature=None,
            cache=False,
            num_retries=0,
        )
        for text in (HARMLESS, HARMFUL):
            try:
                (said,) = lm(text)
            except LMInvalidRequestError as error:
                said = f"refused: {error}"
            print(f"{text} -> {said!r}")


if __name__ == "__main__":
    main()
