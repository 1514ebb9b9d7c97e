"""A monitor's counts as a file."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from guardrail.errors import ConfigurationError, DatasetError
from guardrail.monitor import Monitor, MonitorSnapshot
from guardrail.monitor.snapshot import LAST, WIDTH, cell_of, quantile
from guardrail.types import READINGS, Action, Modality, Where


@pytest.fixture
def snapshot(artefact, verdict_of):
    monitor = Monitor(artefact)
    rng = np.random.default_rng(5)
    for score in rng.normal(0, 0.5, 300).tolist():
        monitor.record(verdict_of(artefact, score))
        monitor.record(verdict_of(artefact, score + 0.1, Modality.IMAGE))
    monitor.record(None)
    return monitor.snapshot()


def test_a_file_holds_all_of_it(snapshot, tmp_path):
    path = snapshot.save(tmp_path / "new" / "counts.json")
    assert MonitorSnapshot.load(path) == snapshot
    assert path.stat().st_size < 20_000
    assert json.loads(path.read_text()) == snapshot.to_dict()


def test_a_file_that_cannot_be_replaced_stays_whole(snapshot, tmp_path, monkeypatch):
    path = snapshot.save(tmp_path / "counts.json")
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(ConfigurationError, match="nothing changed"):
        snapshot.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_merging_equals_one_monitor_over_all(artefact, verdict_of):
    rng = np.random.default_rng(6)
    monitors = [Monitor(artefact) for _ in range(3)]
    one = Monitor(artefact)
    for i, score in enumerate(rng.normal(0, 1, 900).tolist()):
        modality = Modality.IMAGE if i % 7 == 0 else Modality.TEXT
        where = Where(reading=READINGS[i % 5 % 3], message=0, role="user")
        verdict = verdict_of(artefact, None if i % 50 == 0 else score, modality)
        verdict = replace(verdict, where=where)
        for monitor in (monitors[i % 3], one):
            monitor.record(verdict if i % 60 else None)
    parts = [monitor.snapshot() for monitor in monitors]
    merged, whole = MonitorSnapshot.merged(parts), one.snapshot()
    times = {"since", "until"}
    assert merged.model_dump(exclude=times) == whole.model_dump(exclude=times)
    assert all(whole.modalities[Modality.TEXT].flagged_by.values())
    assert merged.since == min(part.since for part in parts)
    assert merged.until == max(part.until for part in parts)
    assert MonitorSnapshot.merged(reversed(parts)).model_dump() == merged.model_dump()


def test_only_counts_of_one_artefact_and_the_same_bins_are_merged(artefact, artefact_with):
    other = artefact_with(text=range(99))
    mine = Monitor(artefact).snapshot()
    with pytest.raises(ConfigurationError, match="artefact_id"):
        MonitorSnapshot.merged([mine, Monitor(other).snapshot()])
    with pytest.raises(ConfigurationError, match="bins: 10, 5"):
        MonitorSnapshot.merged([mine, Monitor(artefact, bins=5).snapshot()])
    with pytest.raises(ConfigurationError, match="one at least"):
        MonitorSnapshot.merged([])


def test_counts_too_large_for_a_sum_are_refused(snapshot):
    large = snapshot.model_copy(update={"outages": 2**53})
    with pytest.raises(ConfigurationError, match="cannot be added up"):
        MonitorSnapshot.merged([large, large])


def _edited(snapshot, change):
    document = snapshot.to_dict()
    change(document, document["modalities"]["text"])
    return json.dumps(document).encode()


def _nothing():
    """The fields of a modality without scores."""
    none = {"actions": {}, "cells": [], "beyond_steer": 0, "beyond_flag": 0}
    return none | {"n": 0, "lowest": None, "highest": None}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d, t: d.update(schema_version=2), "schema_version"),
        (lambda d, t: d.update(kind="other"), "kind"),
        (lambda d, t: d.update(more=1), "more"),
        (lambda d, t: d.update(outages=-1), "outages"),
        (lambda d, t: d.update(outages="1"), "outages"),
        (lambda d, t: d.update(since="2026-01-01T00:00:00"), "since"),
        (lambda d, t: t.update(n=t["n"] + 1), "add up"),
        (lambda d, t: t["cells"].reverse(), "ascend within the grid"),
        (lambda d, t: t["cells"].append([1000, 0]), "ascend within the grid"),
        (lambda d, t: t["edges"].reverse(), "edges must ascend"),
        (lambda d, t: t.update(beyond_flag=t["n"]), "beyond a threshold"),
        (lambda d, t: t.update(lowest=None), "lowest and highest"),
        (lambda d, t: t.update(lowest=t["highest"] + 1), "lowest is higher"),
        (lambda d, t: t.update(_nothing(), counts=[]), "do not fit"),
        (lambda d, t: t["edges"].pop(), "do not fit"),
        (lambda d, t: t["actions"].update({"pass": t["actions"]["pass"] + 2, "flag": -2}), ""),
        (lambda d, t: d["modalities"].update(smell=t), "smell"),
    ],
)
def test_counts_that_do_not_hold_are_refused(snapshot, tmp_path, change, reason):
    path = tmp_path / "x.json"
    path.write_bytes(_edited(snapshot, change))
    with pytest.raises(DatasetError, match=rf"x\.json is no snapshot.*{reason}"):
        MonitorSnapshot.load(path)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no snapshot"),
        (b"[]", "no snapshot"),
        (b"\xff", "no snapshot"),
        (b"[" * 100_000, "no snapshot"),
        (b'{"kind": "a", "kind": "b"}', "twice"),
        (b" " * 2_000_001, "larger than"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path, data, reason):
    path = tmp_path / "x.json"
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=reason):
        MonitorSnapshot.load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DatasetError, match=r"gone\.json cannot be read"):
        MonitorSnapshot.load(tmp_path / "gone.json")


def test_no_scores_have_no_quantile(artefact):
    monitor = Monitor(artefact)
    monitor.add(Modality.TEXT, Action.FLAG, None)
    text = monitor.snapshot().modalities[Modality.TEXT]
    assert (text.n, text.outages, text.quantile(0.5)) == (0, 1, None)


def _of(scores, share):
    cells = sorted(Counter(cell_of(score) for score in scores).items())
    return quantile(cells, share, lowest=min(scores), highest=max(scores))


@pytest.mark.parametrize("spread", [0.01, 0.3, 3.0])
@pytest.mark.parametrize("n", [1, 2, 7, 1000])
def test_every_quantile_is_within_half_a_cell_of_numpys(spread, n):
    scores = np.random.default_rng(n).normal(0.4, spread, n).clip(-9.99, 9.99).tolist()
    for share in (0.0, 0.01, 0.25, 0.5, 0.9, 0.99, 1.0):
        exact = np.quantile(scores, share, method="inverted_cdf")
        assert abs(_of(scores, share) - exact) <= WIDTH / 2 + 1e-12


def test_of_scores_beyond_the_grid_the_ends_are_known():
    scores = [-1e300, -50.0, 0.0, 0.5, 1e300]
    assert _of(scores, 0.0) == -1e300
    assert _of(scores, 1.0) == 1e300
    assert _of(scores, 0.5) == pytest.approx(0.0, abs=WIDTH / 2)


def test_a_lone_score_is_its_own_quantile():
    assert _of([0.123], 0.5) == 0.123


@pytest.mark.parametrize("score", [-1e308, -10.0, -0.001, 0.0, 9.999, 10.0, 1e308])
def test_every_score_has_a_cell(score):
    assert -LAST <= cell_of(score) < LAST


def test_there_is_no_quantile_of_nothing():
    with pytest.raises(ValueError, match="without scores"):
        quantile([], 0.5, lowest=0, highest=0)
