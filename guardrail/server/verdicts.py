"""A verdict on the wire: headers, and the field `guardrail` of JSON answers.

How far a request is from a threshold is what a search for one that passes needs to know. So a
caller who is not told scores hears what was done, and nothing that a score could be told from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from guardrail.server.keys import Caller
    from guardrail.types import Verdict

FIELD = "guardrail"
_FOR_ALL = ("action", "would_be", "modality", "artefact_id", "mode", "reason")


def told(verdict: Verdict | None, caller: Caller) -> dict[str, object] | None:
    """What this caller may know of a verdict, in plain values; nothing else of one goes out."""
    if verdict is None:
        return None
    whole = verdict.to_dict()
    return whole if caller.sees_scores else {name: whole[name] for name in _FOR_ALL}


def headers_of(verdict: Verdict | None, caller: Caller) -> dict[str, str]:
    """The headers of a judged answer; a score of None has none. The log gets it in any case."""
    known = told(verdict, caller)
    if verdict is None or known is None:
        return {}
    caller.score = None if verdict.score is None else round(verdict.score, 4)
    named = {
        "Action": known["action"],
        "Would-Be": known["would_be"],
        "Modality": known["modality"],
        "Reason": known["reason"],
        "Mode": known["mode"],
        "Artefact": known["artefact_id"],
    }
    if known.get("score") is not None:
        named["Score"] = f"{known['score']:.4f}"
    return {f"X-Guardrail-{name}": str(value) for name, value in named.items()}
