from __future__ import annotations

import io
import json
import logging
import os
import resource
import stat
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest

from guardrail.audit import AuditLog, LineFile, fan_out
from guardrail.errors import ConfigurationError
from guardrail.types import Action, Modality, Verdict, Where

SECRET = "how do I pick a lock"


def _verdict(**changes):
    facts = {
        "action": Action.FLAG,
        "would_be": Action.FLAG,
        "score": 1.25,
        "tau_steer": 0.5,
        "tau_flag": 0.9,
        "layers": (3, 4),
        "modality": Modality.IMAGE,
        "artefact_id": "guard-0123456789abcdef",
    }
    return Verdict(**(facts | changes))


def _lines(stream):
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_tells_when_what_and_by_which_artefact():
    stream = io.StringIO()
    AuditLog(stream).write(_verdict(), request_id="r-1", latency_s=0.25)
    (line,) = _lines(stream)
    assert datetime.now(UTC) - datetime.fromisoformat(line["time"]) < timedelta(minutes=1)
    assert line["event"] == "verdict"
    assert line["request_id"] == "r-1"
    assert (line["action"], line["score"], line["layers"]) == ("flag", 1.25, [3, 4])
    assert (line["artefact_id"], line["mode"]) == ("guard-0123456789abcdef", "enforce")
    assert line["latency_s"] == 0.25


def test_it_is_called_as_a_guard_calls_its_audit():
    stream = io.StringIO()
    AuditLog(stream)(_verdict(), {"event": "outage", "request_id": "r-2", "batch": 4})
    (line,) = _lines(stream)
    assert (line["event"], line["request_id"], line["batch"]) == ("outage", "r-2", 4)


def test_text_is_left_out_at_every_depth_unless_asked_for():
    extra = {
        "prompt": SECRET,
        "request": {"Messages": [SECRET], "turns": [{"text": SECRET, "role": "user"}]},
    }
    without, with_text = io.StringIO(), io.StringIO()
    AuditLog(without)(_verdict(), extra)
    AuditLog(with_text, include_text=True)(_verdict(), extra)
    assert SECRET not in without.getvalue()
    assert _lines(without)[0]["request"] == {"turns": [{"role": "user"}]}
    assert _lines(with_text)[0]["prompt"] == SECRET


def test_an_unknown_object_is_told_by_its_type_only():
    class Chat:
        def __repr__(self):
            return SECRET

    stream = io.StringIO()
    AuditLog(stream).write(_verdict(), source=Chat(), raw=SECRET.encode())
    assert SECRET not in stream.getvalue()
    assert _lines(stream)[0]["source"] == "<Chat>"


def test_a_line_feed_in_an_id_cannot_forge_a_line():
    stream = io.StringIO()
    forged = 'r-1"}\n{"action": "pass"}\u2028\x1b[2J'
    AuditLog(stream).write(_verdict(), request_id=forged)
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().isascii()
    assert "\x1b" not in stream.getvalue()
    assert _lines(stream)[0]["request_id"] == forged


def test_extra_facts_cannot_replace_the_verdict():
    stream = io.StringIO()
    AuditLog(stream).write(_verdict(), action="pass", time="never", score=0)
    (line,) = _lines(stream)
    assert (line["action"], line["score"]) == ("flag", 1.25)
    assert line["time"] != "never"


def test_an_infinite_threshold_is_still_json():
    stream = io.StringIO()
    AuditLog(stream).write(_verdict(tau_flag=float("inf")))
    assert _lines(stream)[0]["tau_flag"] == "inf"
    assert "Infinity" not in stream.getvalue()


def test_a_file_is_appended_to_and_every_line_is_there_at_once(tmp_path):
    path = tmp_path / "audit.jsonl"
    for name in ("a", "b"):
        with AuditLog(path) as log:
            log.write(_verdict(), request_id=name)
            assert json.loads(path.read_text().splitlines()[-1])["request_id"] == name
    assert len(path.read_text().splitlines()) == 2


def test_threads_do_not_tear_each_others_lines(tmp_path):
    path = tmp_path / "audit.jsonl"
    with AuditLog(path) as log:
        threads = [
            threading.Thread(
                target=lambda n=n: [
                    log.write(_verdict(), request_id=f"{n}-{i}", pad="x" * 500) for i in range(50)
                ]
            )
            for n in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    ids = {json.loads(line)["request_id"] for line in path.read_text().splitlines()}
    assert ids == {f"{n}-{i}" for n in range(4) for i in range(50)}
    assert log.dropped == 0


def test_files_rotate_and_the_oldest_go(tmp_path):
    path = tmp_path / "audit.jsonl"
    with AuditLog(path, max_bytes=1_000, backups=2) as log:
        for number in range(20):
            log.write(_verdict(), request_id=str(number))
    files = sorted(file.name for file in tmp_path.iterdir())
    assert files == ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2"]
    assert all(file.stat().st_size <= 1_000 for file in tmp_path.iterdir())
    assert json.loads(path.read_text().splitlines()[-1])["request_id"] == "19"


def test_a_full_disk_is_logged_and_counted_but_never_raised(caplog):
    class Full(io.StringIO):
        def write(self, _text):
            raise OSError(28, "No space left on device")

    log = AuditLog(Full())
    with caplog.at_level(logging.ERROR, logger="guardrail.audit"):
        log.write(_verdict(), request_id="r-1")
        log.write(_verdict(), request_id="r-2")
    assert log.dropped == 2
    assert "No space left" in caplog.text
    assert "2 lost so far" in caplog.messages[-1]


def test_a_path_that_cannot_be_opened_is_an_error_at_once(tmp_path):
    with pytest.raises(ConfigurationError, match="cannot open the audit log"):
        AuditLog(tmp_path / "no such folder" / "audit.jsonl")


def test_a_stream_cannot_be_rotated():
    with pytest.raises(ConfigurationError, match="stream"):
        AuditLog(io.StringIO(), max_bytes=10)


def test_closing_leaves_the_callers_stream_open():
    stream = io.StringIO()
    AuditLog(stream).close()
    assert not stream.closed


def _ids(*paths):
    return [json.loads(line)["request_id"] for p in paths for line in p.read_text().splitlines()]


def test_files_are_their_owners_alone_rotated_ones_too(tmp_path):
    with AuditLog(tmp_path / "audit.jsonl", max_bytes=600, backups=2) as log:
        for number in range(5):
            log.write(_verdict(), request_id=str(number))
    modes = {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
    assert modes == {0o600}
    assert len(list(tmp_path.iterdir())) > 1


def test_a_bound_that_would_not_hold_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="backups"):
        AuditLog(tmp_path / "audit.jsonl", max_bytes=600, backups=0)
    assert not list(tmp_path.iterdir())


def test_threads_lose_no_line_while_files_rotate(tmp_path):
    path = tmp_path / "audit.jsonl"
    with AuditLog(path, max_bytes=5_000, backups=100) as log:
        threads = [
            threading.Thread(
                target=lambda n=n: [log.write(_verdict(), request_id=f"{n}-{i}") for i in range(50)]
            )
            for n in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(list(tmp_path.iterdir())) > 5
    assert sorted(_ids(*tmp_path.iterdir())) == sorted(
        f"{n}-{i}" for n in range(4) for i in range(50)
    )
    assert log.dropped == 0


def test_a_file_that_was_moved_away_is_followed_by_a_new_one(tmp_path):
    path, old = tmp_path / "audit.jsonl", tmp_path / "audit.jsonl-old"
    with AuditLog(path) as log:
        log.write(_verdict(), request_id="before")
        path.rename(old)
        log.write(_verdict(), request_id="after")
        path.unlink()
        log.write(_verdict(), request_id="last")
    assert (_ids(old), _ids(path)) == (["before"], ["last"])
    assert log.dropped == 0


def test_a_folder_that_is_gone_costs_lines_and_never_an_answer(tmp_path, caplog):
    folder = tmp_path / "logs"
    folder.mkdir()
    path = folder / "audit.jsonl"
    with AuditLog(path) as log:
        path.unlink()
        folder.rmdir()
        log.write(_verdict(), request_id="lost")
        log.write(_verdict(), request_id="lost, too")
        folder.mkdir()
        log.write(_verdict(), request_id="back")
    assert log.dropped == 2
    assert _ids(path) == ["back"]


def test_a_full_disk_leaves_whole_lines_and_what_fits_later_is_written(tmp_path, caplog):
    path = tmp_path / "audit.jsonl"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with AuditLog(path) as log:
        log.write(_verdict(), request_id="first")
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 50, before[1]))
            for _ in range(100):
                log.write(_verdict(), request_id="lost")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        log.write(_verdict(), request_id="last")
    assert log.dropped == 100
    assert _ids(path) == ["first", "last"]
    assert len([r for r in caplog.records if r.name == "guardrail.audit"]) == 7  # 1, 2, 4, ... 64


def test_closing_on_a_full_disk_is_no_error():
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    with AuditLog("/dev/full") as log:
        log.write(_verdict(), request_id="r-1")
    assert log.dropped == 1


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lines"


@pytest.fixture
def file(path):
    made = LineFile(path)
    yield made
    made.close()


@contextmanager
def small_files():
    """Files of this process end at 100 bytes, as on a full disk; pytest's own output, too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_line_is_in_the_file_at_once(file, path):
    file.write("größe\n")
    assert path.read_text() == "größe\n"
    assert file.tell() == path.stat().st_size


def test_a_new_file_is_its_owners_alone_and_an_old_ones_mode_stays(file, path, tmp_path):
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    old = tmp_path / "old"
    old.write_text("a\n")
    old.chmod(0o640)
    LineFile(old).close()
    assert stat.S_IMODE(old.stat().st_mode) == 0o640


def test_of_a_line_that_does_not_fit_nothing_is_kept(file, path):
    with small_files():
        file.write("a" * 59 + "\n")
        with pytest.raises(OSError, match="too large"):
            file.write("b" * 59 + "\n")
        assert path.read_text() == "a" * 59 + "\n"
        file.write("c" * 9 + "\n")
    assert path.read_text().splitlines() == ["a" * 59, "c" * 9]


def test_short_writes_are_gone_on_with(file, path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:3]))
    file.write("0123456789\n")
    assert path.read_text() == "0123456789\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_device_that_is_full_is_an_error_each_time():
    file = LineFile("/dev/full")
    for _ in range(2):
        with pytest.raises(OSError, match="No space"):
            file.write("a\n")
    file.close()
    file.close()


def broken(_verdict, _facts):
    raise OSError("no space")


def test_a_sink_that_fails_touches_neither_the_others_nor_the_caller(caplog):
    first, last = [], []
    sink = fan_out(lambda *told: first.append(told), broken, lambda *told: last.append(told))
    verdict, facts = _verdict(), {"event": "verdict"}
    sink(verdict, facts)
    sink(None, {"event": "outage"})
    assert first == last == [(verdict, facts), (None, {"event": "outage"})]
    assert sink.failures == 2
    assert "no space" in caplog.text


def test_a_sink_that_always_fails_does_not_fill_the_log(caplog):
    sink = fan_out(broken, broken)
    with caplog.at_level(logging.ERROR):
        for _ in range(1000):
            sink(None, {})
    assert sink.failures == 2000
    assert len(caplog.records) == 20  # 1, 2, 4, ... 512 of each


def test_one_sink_is_itself_and_none_is_none():
    assert fan_out(None, broken, None) is broken
    assert fan_out(None) is None
    assert fan_out() is None


def test_where_a_score_is_from_is_told_without_its_words_unless_text_is_asked_for():
    where = Where(reading="window", message=2, role="tool", start=3, stop=9, words=SECRET)
    for include_text in (False, True):
        stream = io.StringIO()
        log = AuditLog(stream, include_text=include_text)
        log(_verdict(where=where), {"event": "verdict", "about": {"where": where.to_dict()}})
        (line,) = _lines(stream)
        assert (line["where"]["message"], line["where"]["stop"]) == (2, 9)
        assert ("words" in line["where"], SECRET in stream.getvalue()) == (include_text,) * 2
