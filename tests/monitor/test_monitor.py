"""Counting verdicts."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from guardrail.errors import ConfigurationError
from guardrail.monitor import Monitor, MonitorSnapshot, compare
from guardrail.monitor.monitor import bin_edges, references
from guardrail.types import Action, Modality, Where


def test_scores_actions_and_outages_are_counted_apart(artefact, verdict_of):
    monitor = Monitor(artefact)
    for score in (-1.0, 0.0, 1.0, 5.0, None):
        monitor.record(verdict_of(artefact, score))
    monitor.record(verdict_of(artefact, 5.0, Modality.IMAGE))
    monitor.record(None)
    found = monitor.snapshot()
    text = found.modalities[Modality.TEXT]
    assert (text.n, text.outages, found.outages, found.n) == (4, 1, 1, 5)
    assert text.actions == {Action.PASS: 2, Action.STEER: 1, Action.FLAG: 1}
    assert (text.beyond_steer, text.beyond_flag) == (2, 1)
    assert (text.lowest, text.highest) == (-1.0, 5.0)
    assert found.modalities[Modality.IMAGE].n == 1


def test_bins_and_thresholds_are_those_of_the_calibration(artefact, verdict_of):
    scores = np.random.default_rng(1).normal(0, 0.5, 500)
    monitor = Monitor(artefact)
    for score in scores.tolist():
        monitor.record(verdict_of(artefact, score))
    text = monitor.snapshot().modalities[Modality.TEXT]
    row = artefact.header.calibration[Modality.TEXT]
    binned = np.bincount(np.searchsorted(text.edges, scores, side="left"), minlength=10)
    assert text.counts == tuple(binned)
    assert text.beyond_steer == (scores > row.thresholds.steer).sum()
    assert text.beyond_flag == (scores > row.thresholds.flag).sum()
    for share in (0.05, 0.5, 0.99):
        exact = np.quantile(scores, share, method="inverted_cdf")
        assert text.quantile(share) == pytest.approx(exact, abs=0.005 + 1e-12)


def test_a_score_equal_to_a_threshold_is_not_beyond_it(artefact, verdict_of):
    taus = artefact.header.calibration[Modality.TEXT].thresholds
    monitor = Monitor(artefact)
    monitor.record(verdict_of(artefact, taus.steer))
    text = monitor.snapshot().modalities[Modality.TEXT]
    assert (text.beyond_steer, text.actions[Action.PASS]) == (0, 1)


def test_nothing_is_lost_or_counted_twice_between_threads_and_windows(artefact, verdict_of):
    monitor, windows, each, workers = Monitor(artefact), [], 2000, 8
    verdicts = [verdict_of(artefact, i / 100) for i in range(-50, 50)]
    done = threading.Event()

    def count():
        for i in range(each):
            monitor.record(verdicts[i % 100] if i % 10 else None)

    def watch():
        while not done.is_set():
            windows.append(monitor.restart())
            monitor.snapshot()

    threads = [threading.Thread(target=count) for _ in range(workers)]
    watcher = threading.Thread(target=watch)
    for thread in (watcher, *threads):
        thread.start()
    try:
        for thread in threads:
            thread.join()
    finally:
        done.set()
        watcher.join()
    total = MonitorSnapshot.merged([*windows, monitor.restart()])
    assert total.outages == workers * each / 10
    assert total.n == workers * each * 9 / 10
    assert monitor.snapshot().n == 0


def test_a_window_knows_its_time(artefact, verdict_of):
    start = datetime.now(UTC)
    monitor = Monitor(artefact)
    monitor.record(verdict_of(artefact, 0.1))
    first = monitor.restart()
    second = monitor.snapshot()
    assert start - timedelta(seconds=1) <= first.since <= first.until <= datetime.now(UTC)
    assert second.since >= first.since
    assert second.modalities == {}


def test_memory_is_bounded_whatever_the_scores(artefact):
    monitor = Monitor(artefact)
    rng = np.random.default_rng(3)
    for score in np.concatenate([rng.normal(0, 1e6, 5000), rng.normal(0, 10, 5000)]).tolist():
        monitor.add(Modality.TEXT, Action.PASS, score)
    found = monitor.snapshot()
    assert found.n == 10_000
    assert len(found.modalities[Modality.TEXT].cells) <= 2000
    assert len(found.model_dump_json()) < 40_000


def test_without_a_calibration_there_are_still_counts(artefact):
    monitor = Monitor(artefact.revised(calibration={}))
    monitor.add(Modality.IMAGE, Action.STEER, 0.5)
    image = monitor.snapshot().modalities[Modality.IMAGE]
    assert (image.n, image.counts, image.edges, image.beyond_steer) == (1, (), (), 0)
    assert image.actions[Action.STEER] == 1


def test_what_cannot_be_counted_is_refused(artefact, verdict_of):
    monitor = Monitor(artefact)
    with pytest.raises(ConfigurationError, match="does not count for"):
        monitor.record(verdict_of(artefact.revised(), 0.1))
    with pytest.raises(ValueError, match="finite"):
        monitor.add(Modality.TEXT, Action.PASS, float("nan"))
    assert monitor.snapshot().n == 0


def test_videos_are_counted_apart_by_their_own_calibration(artefact_with, verdict_of):
    artefact = artefact_with(
        text=[i / 500 for i in range(200)], video=[i / 100 for i in range(200)]
    )
    monitor = Monitor(artefact)
    for score in (0.1, 1.5, 5.0):
        monitor.record(verdict_of(artefact, score, Modality.VIDEO))
    found = monitor.snapshot().modalities
    assert set(found) == {Modality.VIDEO}
    video, row = found[Modality.VIDEO], artefact.header.calibration[Modality.VIDEO]
    assert video.n == 3
    assert video.beyond_flag == sum(score > row.thresholds.flag for score in (0.1, 1.5, 5.0)) == 1
    assert video.edges == bin_edges(row.scores, 10)


@pytest.mark.parametrize(("n", "bins"), [(1000, 10), (999, 10), (99, 7), (5, 3)])
def test_bins_hold_equal_shares_of_the_calibration(n, bins):
    scores = tuple(sorted(np.random.default_rng(n).normal(size=n).tolist()))
    edges = bin_edges(scores, bins)
    found = np.bincount(np.searchsorted(edges, scores, side="left"), minlength=bins)
    assert len(found) == bins
    assert found.max() - found.min() <= 1


def test_a_reference_counts_as_numpy_does(artefact):
    reference = references(artefact)[Modality.TEXT]
    scores = reference.calibration.scores
    expected = np.bincount(np.searchsorted(reference.edges, scores, side="left"), minlength=10)
    assert reference.counts() == tuple(expected)


@pytest.mark.parametrize(
    "scores", [(0.0,) * 150, (0.0,) * 140 + (1.0,) * 10, (0.0, *(1.0,) * 149), tuple(range(99))]
)
def test_ties_make_fewer_bins_and_never_an_empty_one(artefact_with, scores):
    artefact = artefact_with(text=scores)
    counts = references(artefact, 10)[Modality.TEXT].counts()
    assert min(counts) > 0
    assert sum(counts) == len(scores)


def test_a_modality_without_a_calibration_is_held_to_a_plainer_ones(artefact_with, artefact):
    only_text = references(artefact_with(text=range(99)))
    assert only_text[Modality.IMAGE].modality is Modality.TEXT
    assert references(artefact)[Modality.IMAGE].modality is Modality.IMAGE
    assert references(artefact.revised(calibration={})) == {}


@pytest.mark.parametrize("bins", [1, 101])
def test_no_number_of_bins_is_refused(artefact, bins):
    with pytest.raises(ConfigurationError, match="2 to 100"):
        references(artefact, bins)


def test_flags_are_counted_by_the_reading_that_asked_for_them(artefact, verdict_of):
    monitor = Monitor(artefact)
    readings = ["last", "window", "window", "turn", None]
    for reading in readings:
        for score in (0.0, 9.0):
            where = reading and Where(reading=reading, message=0, role="user", words="a lock")
            monitor.record(replace(verdict_of(artefact, score), where=where))
    monitor.add(Modality.TEXT, Action.FLAG, 9.0, "elsewhere")
    counts = monitor.snapshot().modalities[Modality.TEXT]
    assert counts.flagged_by == {"last": 1, "turn": 1, "window": 2}
    assert counts.actions[Action.FLAG] == 6
    assert "lock" not in monitor.snapshot().model_dump_json()
    assert compare(monitor.snapshot(), artefact).modalities[0].flagged_by == counts.flagged_by
    assert monitor.restart().modalities[Modality.TEXT] == counts
    assert monitor.snapshot().modalities == {}
