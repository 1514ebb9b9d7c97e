from __future__ import annotations

import json
import os

import pytest

from guardrail.bulk.manifest import NAME, read_manifest, require_same, write_manifest
from guardrail.errors import ConfigurationError

FACTS = {"source": {"rows": 3, "digest": "a"}, "policy": {"mode": "enforce"}, "columns": (1, 2)}


def test_what_is_written_is_read_again(tmp_path):
    assert read_manifest(tmp_path) is None
    write_manifest(tmp_path, FACTS)
    assert read_manifest(tmp_path) == json.loads(json.dumps(FACTS))
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_the_first_of_two_processes_stays_and_the_second_compares(tmp_path):
    write_manifest(tmp_path, FACTS)
    write_manifest(tmp_path, FACTS)
    with pytest.raises(ConfigurationError, match=r'policy\.mode was "enforce", is "shadow"'):
        write_manifest(tmp_path, FACTS | {"policy": {"mode": "shadow"}})
    assert read_manifest(tmp_path)["policy"] == {"mode": "enforce"}
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_facts_that_are_not_known_yet_are_not_compared(tmp_path):
    require_same(tmp_path, {"a": 1, "model": "m"}, {"a": 1})
    with pytest.raises(ConfigurationError, match="a was null, is 1"):
        require_same(tmp_path, {"model": "m"}, {"a": 1})


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / ".hidden.tmp").touch()
    assert read_manifest(tmp_path) is None
    (tmp_path / "holiday.png").touch()
    with pytest.raises(ConfigurationError, match=r"'holiday\.png' and no"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"source": 3}', "\udcff"])
def test_a_damaged_manifest_is_said_to_be_one(tmp_path, text):
    (tmp_path / NAME).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigurationError, match="is damaged"):
        read_manifest(tmp_path)


def test_one_that_comes_while_the_folder_is_looked_at_is_read(tmp_path, monkeypatch):
    def late(path, listdir=os.listdir):
        (tmp_path / NAME).write_text(json.dumps(FACTS))
        return listdir(path)

    monkeypatch.setattr(os, "listdir", late)
    assert read_manifest(tmp_path) == json.loads(json.dumps(FACTS))
