from __future__ import annotations

import multiprocessing
import sqlite3

import pytest

from guardrail.errors import ConfigurationError
from guardrail.evaluation.cache import FILENAME, Cache


def test_values_are_there_the_next_time(tmp_path):
    with Cache(tmp_path / "new" / "folder") as cache:
        cache.put({"a": b"1", "b": b"\x00\xff"})
        assert cache.get(["a", "b", "c"]) == {"a": b"1", "b": b"\x00\xff"}
    with Cache(tmp_path / "new" / "folder") as cache:
        assert cache.get(["b"]) == {"b": b"\x00\xff"}


def test_without_a_folder_nothing_is_kept():
    with Cache() as cache:
        cache.put({"a": b"1"})
        assert cache.get(["a"]) == {}


def test_more_keys_than_a_query_takes(tmp_path):
    values = {f"key-{n}": str(n).encode() for n in range(2500)}
    with Cache(tmp_path) as cache:
        cache.put(values)
        assert cache.get(list(values)) == values


@pytest.mark.parametrize("change", ["x'00'", "'text'", "7", "NULL", "substr(value, 2)"])
def test_a_value_that_was_changed_is_missing_and_said_to_be(tmp_path, caplog, change):
    with Cache(tmp_path) as cache:
        cache.put({"a": b"12", "b": b"34"})
    file = sqlite3.connect(tmp_path / FILENAME)
    with file:
        file.execute(f"UPDATE entries SET value = {change} WHERE key = 'a'")
    file.close()
    with Cache(tmp_path) as cache:
        assert cache.get(["a", "b"]) == {"b": b"34"}
        assert "damaged" in caplog.text
        cache.put({"a": b"56"})
        assert cache.get(["a"]) == {"a": b"56"}


def test_a_file_that_is_no_database_is_put_aside(tmp_path, caplog):
    (tmp_path / FILENAME).write_bytes(b"no database at all" * 100)
    with Cache(tmp_path) as cache:
        cache.put({"a": b"1"})
        assert cache.get(["a"]) == {"a": b"1"}
    assert (tmp_path / f"{FILENAME}.damaged").read_bytes().startswith(b"no database")
    assert "damaged" in caplog.text


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be used"):
        Cache(tmp_path / "file" / "below")


def test_what_cannot_be_written_is_an_error(tmp_path):
    with Cache(tmp_path) as cache:
        other = sqlite3.connect(tmp_path / FILENAME)
        with other:
            other.execute("DROP TABLE entries")
        other.close()
        with pytest.raises(ConfigurationError, match="cannot be written"):
            cache.put({"a": b"1"})


def test_a_batch_is_kept_whole_or_not_at_all(tmp_path):
    with Cache(tmp_path) as cache:
        cache.put({"a": b"1"})
        file = sqlite3.connect(tmp_path / FILENAME)
        with file:
            file.execute(
                "CREATE TRIGGER full BEFORE INSERT ON entries WHEN NEW.key = 'c' "
                "BEGIN SELECT RAISE(ABORT, 'disk full'); END"
            )
        file.close()
        with pytest.raises(ConfigurationError, match="disk full"):
            cache.put({"b": b"2", "c": b"3"})
        assert cache.get(["a", "b", "c"]) == {"a": b"1"}


def _write(folder, name):
    with Cache(folder) as cache:
        for n in range(60):
            cache.put({f"{name}-{n}": name.encode() * 1000, f"shared-{n}": b"same"})


def test_two_processes_at_once_lose_nothing(tmp_path):
    context = multiprocessing.get_context("spawn")
    both = [context.Process(target=_write, args=(tmp_path, name)) for name in ("x", "y")]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
        assert process.exitcode == 0
    keys = [f"{name}-{n}" for name in ("x", "y", "shared") for n in range(60)]
    with Cache(tmp_path) as cache:
        assert len(cache.get(keys)) == 180
