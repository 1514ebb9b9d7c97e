from __future__ import annotations

import threading

from prometheus_client import CollectorRegistry

from guardrail.observe.scores import SCORE_BUCKETS, ScoreHistogram


def registered():
    registry, scores = CollectorRegistry(), ScoreHistogram()
    registry.register(scores)

    def at(le, modality="text"):
        return registry.get_sample_value("guardrail_score_bucket", {"modality": modality, "le": le})

    return scores, at, registry


def test_a_score_on_a_bound_is_in_its_bucket_and_those_above():
    scores, at, _ = registered()
    for score in (0.5, 0.51, -7.0, 99.0):
        scores.observe("text", score)
    assert (at("-1.0"), at("0.4"), at("0.5"), at("0.6"), at("3.0"), at("+Inf")) == (
        1,
        1,
        2,
        3,
        3,
        4,
    )


def test_modalities_are_apart_and_the_unseen_ones_absent():
    scores, at, registry = registered()
    scores.observe("image", 0.1)
    assert at("+Inf", "image") == 1
    assert at("+Inf") is None
    names = {sample.name for family in registry.collect() for sample in family.samples}
    assert names == {"guardrail_score_bucket"}  # scores below zero have no sum that only grows


def test_threads_lose_no_score():
    scores, at, _ = registered()
    threads = [
        threading.Thread(target=lambda: [scores.observe("text", b) for b in SCORE_BUCKETS * 50])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert at("+Inf") == 200 * len(SCORE_BUCKETS)
