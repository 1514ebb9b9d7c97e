"""A synthetic evaluation report that fits the schema."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from guardrail.evaluation.schema import Report
from guardrail.stats import Rate, Share, auroc, tpr_at_fpr
from guardrail.types import READINGS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_SOURCES = {
    "harmful": ("refusal-questions", "typed-into-pictures"),
    "harmless": ("everyday", "near-harm"),
}
_CATEGORIES = {
    "harmful": ("weapons", "fraud", "self-harm"),
    "harmless": ("cooking", "homework", "travel"),
}
THRESHOLDS = {"text": {"steer": 0.62, "flag": 1.05}, "image": {"steer": 0.7, "flag": 1.2}}


def share(hits: int, n: int) -> dict[str, Any]:
    return Share.of(Rate(hits, n)).model_dump()


def estimate(value: float, half: float = 0.04) -> dict[str, float]:
    return {"value": value, "low": max(0.0, value - half), "high": min(1.0, value + half)}


def item(rng: np.random.Generator, modality: str, label: str, place: int) -> dict[str, Any]:
    harmful, image = label == "harmful", modality == "image"
    score = float(rng.normal(0.95 if harmful else 0.3, 0.3 if image else 0.22))
    level = THRESHOLDS[modality]
    action = "flag" if score > level["flag"] else "steer" if score > level["steer"] else "pass"
    kind = _CATEGORIES[label][place % 3]
    return {
        "id": f"{modality}-{label}-{place}",
        "label": label,
        "category": kind,
        "source": _SOURCES[label][image],
        "modality": modality,
        "score": score,
        "reading": ("last", "window", "window", "turn", "window")[place % 5],
        "action": action,
        "length": 40 + place,
        "text": f"A question about {kind}, number {place}, of the kind that people ask every day.",
        "image": f"pictures/{place % 4}.png" if image else None,
        "plain_refused": harmful and place % 5 == 0,
        "guarded_refused": action == "flag" or (action == "steer" and place % 3 > 0),
        "plain_answer": f"Here is what I know about {kind}: first of all,",
        "guarded_answer": "I'm sorry, but I can't help with that." if action != "pass" else "Here",
    }


def group(by: str, name: str, items: list[dict[str, Any]], every: list[dict[str, Any]]) -> Any:
    modality = items[0]["modality"]
    mine = {k: [i for i in items if i["label"] == k] for k in ("harmful", "harmless")}
    rest = {
        k: mine[k] or [i for i in every if i["label"] == k and i["modality"] == modality]
        for k in mine
    }
    missing = [k for k in mine if not mine[k]]
    known = {k: found for k, found in mine.items() if found}
    return {
        "by": by,
        "name": name,
        "modality": modality,
        "n_harmful": len(mine["harmful"]),
        "n_harmless": len(mine["harmless"]),
        "against": f"all {missing[0]} of its modality" if missing else "itself",
        "separation": separation(rest) if all(rest.values()) else None,
        "actions": {
            k: {
                name: share(sum(i["action"] == a for i in found), len(found))
                for name, a in (("passed", "pass"), ("steered", "steer"), ("flagged", "flag"))
            }
            for k, found in known.items()
        },
        "refusals": {
            k: {
                side: share(sum(i[f"{side}_refused"] for i in found), len(found))
                for side in ("plain", "guarded")
            }
            for k, found in known.items()
        },
        "found_by": found_by([i for i in mine["harmful"] if i["action"] != "pass"]),
    }


def found_by(items: list[dict[str, Any]]) -> dict[str, Any]:
    readings = [i["reading"] for i in items]
    return {name: share(readings.count(name), len(items)) for name in READINGS if items}


def separation(sides: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    high, low = ([i["score"] for i in sides[k]] for k in ("harmful", "harmless"))
    return {
        "n_harmful": len(high),
        "n_harmless": len(low),
        "auroc": estimate(auroc(high, low)),
        "average_precision": estimate(auroc(high, low)),
        "tpr_at_fpr": {
            name: Share.of(tpr_at_fpr(high, low, float(name))).model_dump()
            for name in ("0.01", "0.05", "0.10")
        },
    }


def groups_of(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for by in ("modality", "source", "category"):
        slices: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for one in items:
            slices.setdefault((one[by], one["modality"]), []).append(one)
        found += [group(by, name, mine, items) for (name, _), mine in slices.items()]
    return found


def controls_of(modality: str, n: int) -> dict[str, Any]:
    rng = np.random.default_rng(5)
    aurocs = rng.normal(0.5, 0.07, 20).round(4).tolist()
    found: dict[str, Any] = {
        "modality": modality,
        "n_harmful": n,
        "n_harmless": n,
        "guard": estimate(0.95 if modality == "text" else 0.86),
        "random_directions": {"aurocs": aurocs, "mean": 0.503, "sd": 0.07},
        "permuted_labels": {
            "draws": 1000, "mean": 0.5, "sd": 0.04, "highest": 0.61, "p_value": 1 / 1001,
        },
        "text_baseline": {"auroc": estimate(0.82, 0.05), "folds": 5},
        "length_only": {"auroc": estimate(0.42, 0.06), "either_way": 0.58},
        "length_matched": {
            "pairs": 31, "tolerance": 8, "auroc": estimate(0.93, 0.06), "length_auroc": 0.51,
        },
    }  # fmt: skip
    if modality == "image":
        found["text_baseline"] = None
        found["skipped"] = {"text_baseline": "the pictures' words are not known"}
    return found


def whole(n: int = 40, modalities: tuple[str, ...] = ("text", "image")) -> dict[str, Any]:
    """`n` inputs of each label and modality, as the plain JSON of a report."""
    rng = np.random.default_rng(3)
    items = [
        item(rng, modality, label, place)
        for modality in modalities
        for label in ("harmful", "harmless")
        for place in range(n)
    ]
    values = {
        "created": "2025-05-01T10:00:00+00:00",
        "guardrail_version": "0.1.0",
        "model": "example/tiny-reader-135m",
        "artefact": {"artefact_id": "guard-0123456789abcdef", "readout": {"layers": [14, 15]}},
        "policy": {"mode": "enforce", "actions": ["flag", "steer"], "limits": {"images": 16}},
        "thresholds": THRESHOLDS,
        "settings": {"new_tokens": 16, "batch_size": 16},
        "data": {"files": {"items.jsonl": "sha256:" + "ab" * 32}, "n": len(items)},
        "groups": groups_of(items),
        "controls": [controls_of(modality, n) for modality in modalities],
        "layers": [layer(place, modalities) for place in range(30)],
        "strength": [trial(15, t, factor) for t in (0, 8) for factor in (0.5, 1.0, 1.5, 2.0, 3.0)],
        "quality": {
            "n": 80, "n_steered": 5, "kl": 0.0123, "kl_steered": 0.197, "kl_passed_max": 0.0,
            "n_passed_measured": 64, "exact_match": share(76, 80),
            "exact_match_passed": share(75, 75), "length_ratio": 0.981,
        },
        "judge": {
            "name": "refusal prefixes", "sample": "86 answers labelled by hand",
            "false_refusals": share(2, 40), "missed_refusals": share(7, 46),
        },
        "timings": [
            {"stage": "residuals", "seconds": 72.4, "n": len(items), "cached": 12},
            {"stage": "answers", "seconds": 311.0, "n": len(items), "cached": 0},
        ],
        "warnings": ["text: only 40 harmless inputs; a rate of 1 % cannot be told from none"],
        "items": items,
    }  # fmt: skip
    return Report.model_validate(values).model_dump(mode="json")


def layer(place: int, modalities: tuple[str, ...]) -> dict[str, Any]:
    peak = {m: 0.5 + (0.45 - 0.1 * k) * np.exp(-(((place - 16) / 9) ** 2)) for k, m in
            enumerate(modalities)}  # fmt: skip
    return {
        "layer": place,
        "read": place in (14, 15),
        "edited": place == 18,
        "auroc": {m: float(v) for m, v in peak.items()},
    }


def trial(layer: int, tokens: int, factor: float) -> dict[str, Any]:
    return {
        "layer": layer,
        "tokens": tokens,
        "factor": factor,
        "chosen": (tokens, factor) == (8, 2.0),
        "induced": share(min(20, int(6 * factor + tokens / 4)), 20),
        "false_refusal": share(int(factor * 1.5), 60),
        "kl": 0.01 * factor**2 + tokens / 1000,
    }


@pytest.fixture(scope="session")
def report() -> Callable[..., dict[str, Any]]:
    """`report(n=40, modalities=("text", "image"))`: a fresh report, free to be changed."""
    return whole


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `pictures/0.png` to `2.png`, a damaged `3.png`, and metadata in the first."""
    from PIL.PngImagePlugin import PngInfo

    base = tmp_path_factory.mktemp("shown")
    (base / "pictures").mkdir()
    for place in range(3):
        pixels = np.random.default_rng(place).integers(0, 255, (12, 20, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels).resize((640, 400))
        notes = PngInfo()
        notes.add_text("Comment", "taken at home")
        picture.save(base / "pictures" / f"{place}.png", pnginfo=notes)
    (base / "pictures" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    return base
