"""Counts from audit logs."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from guardrail.audit import AuditLog
from guardrail.errors import DatasetError
from guardrail.monitor import Monitor
from guardrail.monitor import logs as logs_module
from guardrail.monitor.logs import LogReader
from guardrail.types import READINGS, Modality, Where, Window

TIMES = {"since", "until"}


def _read(artefact, *paths, **options):
    reader = LogReader(artefact, **options)
    for path in paths:
        reader.read(path)
    return reader.snapshot(), reader.facts


@pytest.fixture
def line_of(artefact, verdict_of):
    """`line_of(minute=3, score=0.2)`: an audit line's fields; more of them replace its own."""

    def make(minute=0, score=0.0, **changes):
        when = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=minute)
        row = {"time": when.isoformat(), "event": "verdict", "request_id": "r"}
        return row | verdict_of(artefact, score).to_dict() | changes

    return make


def _write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rotated_logs_give_the_counts_that_a_monitor_kept(artefact, verdict_of, tmp_path):
    monitor, rng = Monitor(artefact), np.random.default_rng(1)
    with AuditLog(tmp_path / "audit.jsonl", max_bytes=20_000, backups=50) as log:
        for i, score in enumerate(rng.normal(0, 1, 400).tolist()):
            modality = Modality.IMAGE if i % 3 == 0 else Modality.TEXT
            verdict = verdict_of(artefact, None if i % 40 == 0 else score, modality)
            where = Where(reading=READINGS[i % 4 % 3], message=0, role="user")
            verdict = replace(verdict, where=where)
            if i % 50 == 0:
                verdict = None
            monitor.record(verdict)
            log(verdict, {"event": "verdict" if verdict else "outage", "request_id": str(i)})
    files = sorted(tmp_path.iterdir())
    assert len(files) > 3
    found, facts = _read(artefact, *files)
    assert found.model_dump(exclude=TIMES) == monitor.snapshot().model_dump(exclude=TIMES)
    assert all(found.modalities[Modality.TEXT].flagged_by.values())
    assert (facts.lines, facts.counted) == (400, 400)


def test_times_are_those_of_the_lines_that_count(artefact, line_of, tmp_path):
    path = _write(tmp_path / "a", *(line_of(minute=m) for m in (5, 1, 9)))
    found, _ = _read(artefact, path)
    assert (found.since.minute, found.until.minute) == (1, 9)
    cut, facts = _read(
        artefact,
        path,
        since=datetime(2026, 1, 1, 0, 5, tzinfo=UTC),
        until=datetime(2026, 1, 1, 0, 9, tzinfo=UTC),
    )
    assert (cut.n, facts.outside) == (1, 2)
    assert cut.since == cut.until == datetime(2026, 1, 1, 0, 5, tzinfo=UTC)


def test_other_artefacts_and_events_are_counted_apart(artefact, line_of, tmp_path):
    rows = [line_of(), line_of(artefact_id="guard-other"), line_of(event="call", done="flag")]
    rows.append({"time": rows[0]["time"], "event": "mismatch_allowed", "fields": {}})
    found, facts = _read(artefact, _write(tmp_path / "a", *rows))
    assert found.n == 1
    assert (facts.counted, facts.other_artefacts, facts.other_events) == (1, 1, 2)


def test_a_half_written_last_line_is_left_out_and_told(artefact, line_of, tmp_path):
    path = _write(tmp_path / "a", line_of(), line_of())
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    found, facts = _read(artefact, path)
    assert (found.n, facts.cut, facts.unreadable) == (1, 1, 0)
    path.write_bytes(whole[:-1])  # only the line feed is missing
    assert _read(artefact, path)[0].n == 2


@pytest.mark.parametrize("data", [b"hello", b'{"a": 1}', b"[1,"])
def test_another_file_without_a_line_feed_is_no_half_written_line(artefact, tmp_path, data):
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(DatasetError, match="no audit"):
        _read(artefact, tmp_path / "a")


def test_a_few_broken_lines_are_told_and_many_are_refused(artefact, line_of, tmp_path):
    good = [line_of() for _ in range(200)]
    few = _write(tmp_path / "few", *good[:100], {"no": "line"}, *good[100:], [1])
    found, facts = _read(artefact, few)
    assert (found.n, facts.unreadable) == (200, 2)
    many = _write(tmp_path / "many", *good[:100], {"no": "line"}, "x", *good[100:], 3)
    with pytest.raises(DatasetError, match=r"many: 3 of 203 lines, the first of them line 101"):
        _read(artefact, many)


@pytest.mark.parametrize(
    "changes",
    [
        {"score": "nan"},
        {"score": True},
        {"score": 10**400},
        {"modality": "smell"},
        {"modality": None},
        {"would_be": "dance"},
        {"artefact_id": None},
        {"time": "2026-01-01T00:00:00"},
        {"time": "today"},
        {"time": 3},
        {"event": 3},
    ],
)
def test_a_line_that_lacks_a_part_is_no_audit_line(artefact, line_of, tmp_path, changes):
    with pytest.raises(DatasetError, match="1 of 1 lines"):
        _read(artefact, _write(tmp_path / "a", line_of() | changes))


@pytest.mark.parametrize("data", [b"NaN\n", b"\xff\xfe\n", b"[" * 100_000 + b"\n"])
def test_what_is_no_json_is_no_audit_line(artefact, tmp_path, data):
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(DatasetError, match="no audit"):
        _read(artefact, tmp_path / "a")


def test_a_line_too_long_to_hold_is_passed_over(artefact, line_of, tmp_path, monkeypatch):
    monkeypatch.setattr(logs_module, "MAX_LINE", 1000)
    rows = [line_of() for _ in range(150)]
    rows.insert(70, line_of(note="x" * 5000))
    found, facts = _read(artefact, _write(tmp_path / "a", *rows))
    assert (found.n, facts.unreadable, facts.lines) == (150, 1, 151)


def test_an_empty_or_missing_log(artefact, tmp_path):
    (tmp_path / "a").write_text("\n\n")
    found, facts = _read(artefact, tmp_path / "a")
    assert (found.n, found.since, facts.lines) == (0, None, 0)
    with pytest.raises(DatasetError, match="cannot be read"):
        _read(artefact, tmp_path / "gone")


def test_memory_does_not_grow_with_the_log(artefact, line_of, tmp_path):
    def peak(n):
        path = _write(tmp_path / str(n), *(line_of(score=(i % 100) / 100) for i in range(n)))
        tracemalloc.start()
        _read(artefact, path)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    assert peak(8_000) < peak(1_000) + 20_000


def test_a_line_of_a_video_counts_for_videos_whatever_window_it_names(
    artefact, tmp_path, verdict_of
):
    window = Window(number=2, of=9, start_s=8.0, end_s=11.5, frames=8)
    verdict = replace(verdict_of(artefact, 0.4, Modality.VIDEO), window=window)
    with AuditLog(tmp_path / "a") as log:
        log(verdict, {"event": "verdict", "request_id": "r"})
    assert json.loads((tmp_path / "a").read_text())["window"] == {
        "number": 2,
        "of": 9,
        "start_s": 8.0,
        "end_s": 11.5,
        "frames": 8,
        "video": 0,
    }
    found, facts = _read(artefact, tmp_path / "a")
    assert (facts.counted, found.modalities[Modality.VIDEO].n) == (1, 1)


@pytest.mark.parametrize("where", [None, "here", {}, {"reading": 3}, {"reading": "elsewhere"}])
def test_a_flag_from_a_place_that_is_not_known_counts_as_a_flag(artefact, line_of, tmp_path, where):
    found, facts = _read(artefact, _write(tmp_path / "a", line_of(score=9.0, where=where)))
    counts = found.modalities[Modality.TEXT]
    assert (facts.counted, counts.actions["flag"], sum(counts.flagged_by.values())) == (1, 1, 0)
