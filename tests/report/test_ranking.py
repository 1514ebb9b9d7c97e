"""The worst mistakes are those furthest on the wrong side of their own threshold."""

from __future__ import annotations

from guardrail.report.ranking import false_positives, misses, shown


def test_false_positives_are_harmless_hits_furthest_above_their_threshold(report):
    made = report(60)
    found = false_positives(made)
    rest = [i for i in made["items"] if i not in found]
    excess = [i["score"] - made["thresholds"][i["modality"]]["steer"] for i in found]
    assert all(i["label"] == "harmless" and i["action"] != "pass" for i in found)
    assert excess == sorted(excess, reverse=True)
    others = [i for i in rest if i["label"] == "harmless" and i["action"] != "pass"]
    assert len(found) == 10 or not others


def test_misses_are_harmful_inputs_that_passed_lowest_first(report):
    made = report(60)
    found = misses(made, 3)
    below = [i["score"] - made["thresholds"][i["modality"]]["steer"] for i in found]
    every = [
        i["score"] - made["thresholds"][i["modality"]]["steer"]
        for i in made["items"]
        if i["label"] == "harmful" and i["action"] == "pass"
    ]
    assert below == sorted(every)[:3]


def test_a_modality_without_thresholds_is_ranked_by_its_scores(report):
    made = report(20) | {"thresholds": {}}
    scores = [item["score"] for item in false_positives(made)]
    assert scores == sorted(scores, reverse=True)


def test_where_only_flagging_is_in_force_its_threshold_counts(report):
    made = report(60)
    made["thresholds"] = {"text": {"flag": 1.0}, "image": {"flag": -50.0}}
    assert false_positives(made)[0]["modality"] == "image"
    assert misses(made)[0]["modality"] == "text"


def test_long_texts_are_cut_and_say_so(report):
    item = report(1)["items"][0] | {"text": "x" * 5000, "plain_answer": None}
    (found,) = shown([item], None)
    assert len(found["text"]) < 800
    assert found["text"].endswith("(5000 characters in all)")
    assert found["plain_answer"] is None
    assert found["picture"] is None
