from __future__ import annotations

import multiprocessing
import sqlite3
import subprocess
import sys

import pytest

from guardrail.errors import ConfigurationError
from guardrail.evaluation.cache import FILENAME, Cache, Keys, judgement_key, plain_policy
from guardrail.guard import Guard
from guardrail.policy import Policy


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


_CODE = (
    "from guardrail.evaluation.cache import plain_policy\n"
    "from guardrail.policy import Policy\n"
    "hosts = frozenset(f'h{n}.org' for n in range(9))\n"
    "print(plain_policy(Policy(allowed_hosts=hosts)))"
)


def test_a_policy_reads_the_same_in_every_process():
    said = {
        subprocess.run(
            [sys.executable, "-c", _CODE],
            env={"PYTHONHASHSEED": seed, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1


def test_every_part_of_a_key_counts():
    one = Keys("model", "guard")
    keys = [
        one.residuals("d"),
        one.plain("d", "s"),
        one.guarded("d", "s"),
        one.kl("d"),
        one.residuals("e"),
        one.plain("d", "t"),
        Keys("other", "guard").residuals("d"),
        Keys("model", "other").guarded("d", "s"),
        Keys("model", "other").kl("d"),
        Keys("model", "guard", "other").plain("d", "s"),
        Keys("model", "guard", "other").guarded("d", "s"),
        judgement_key("j", "a", "bc"),
        judgement_key("j", "ab", "c"),
    ]
    assert len(set(keys)) == len(keys)
    assert Keys("model", "other").residuals("d") == one.residuals("d")
    assert Keys("model", "other").plain("d", "s") == one.plain("d", "s")


@pytest.mark.parametrize(
    ("name", "value", "changed"),
    [("VERSIONS", {"torch": "0"}, "model"), ("__version__", "0.0.0", "guard")],
)
def test_keys_follow_what_runs_the_model(monkeypatch, name, value, changed):
    from guardrail.model.load import wrap_model
    from guardrail.testing import tiny_artefact, tiny_model

    loaded = wrap_model(*tiny_model("llama"))
    with Guard(loaded, tiny_artefact(loaded.model, loaded.processor)) as guard:
        before = Keys.of(guard)
        monkeypatch.setattr(f"guardrail.evaluation.cache.{name}", value)
        after = Keys.of(guard)
    differing = {part for part in ("model", "guard") if vars(after)[part] != vars(before)[part]}
    assert differing == {changed}


def test_keys_follow_the_weights_and_the_policy():
    import torch

    from guardrail.model.load import wrap_model
    from guardrail.testing import tiny_artefact, tiny_model

    loaded = wrap_model(*tiny_model("llama"))
    artefact = tiny_artefact(loaded.model, loaded.processor)
    with Guard(loaded, artefact) as guard:
        before = Keys.of(guard)
        assert Keys.of(guard) == before
        with guard.with_policy(Policy(mode="shadow")) as shadow:
            assert Keys.of(shadow).model == before.model
            assert Keys.of(shadow).guard != before.guard
        with torch.no_grad():
            loaded.model.get_output_embeddings().weight.mul_(2)
        assert Keys.of(guard).model != before.model
        assert Keys.of(guard).guard == before.guard
        generation = Keys.of(guard).generation
        loaded.model.generation_config.repetition_penalty = 1.5
        assert Keys.of(guard).generation != generation
    assert plain_policy(Policy())["mode"] == "enforce"
