from __future__ import annotations

import json
import os
import sys

import pyarrow.parquet as pq
import pytest

from guardrail.bulk import parts as module
from guardrail.bulk.parts import MANIFEST, Parts, read_manifest, require_same, write_manifest
from guardrail.bulk.rows import ROW_FIELDS, out_row
from guardrail.errors import ConfigurationError, DatasetError, InputError, MissingExtraError


def rows(*numbers):
    return [out_row(number, f"k{number}", InputError("é"), "g") for number in numbers]


@pytest.fixture(params=["parquet", "jsonl"])
def parts(tmp_path, request):
    return Parts(out=tmp_path, rows=7, size=3, output=request.param)


def test_a_part_holds_its_span_and_is_read_as_it_was_written(parts):
    assert parts.count == 3
    assert [list(parts.span(n)) for n in range(3)] == [[0, 1, 2], [3, 4, 5], [6]]
    parts.write(1, rows(3, 4, 5))
    assert [parts.is_there(n) for n in range(3)] == [False, True, False]
    assert parts.read(1, list(ROW_FIELDS)) == rows(3, 4, 5)


@pytest.mark.parametrize("numbers", [(), (3, 4), (3, 4, 4), (4, 3, 5), (3, 4, 5, 6)])
def test_a_part_with_a_row_missing_or_twice_is_neither_written_nor_read(
    parts, numbers, monkeypatch
):
    with pytest.raises(DatasetError, match="does not hold the rows it should"):
        parts.write(1, rows(*numbers))
    assert not parts.is_there(1)
    with monkeypatch.context() as patch:
        patch.setattr(Parts, "_require_rows", lambda *_: None)
        parts.write(1, rows(*numbers))
    with pytest.raises(DatasetError, match="remove it and start again"):
        parts.read(1, ["row"])


def test_a_damaged_part_is_named(parts):
    parts.path(0).write_bytes(b"{damaged")
    with pytest.raises(DatasetError, match="part-0000000"):
        parts.read(0, ["row"])


def test_a_full_disk_leaves_no_half_of_a_part(parts, monkeypatch):
    def full(_descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("guardrail.artefact.file.os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            parts.write(0, rows(0, 1, 2))
    assert list(parts.out.iterdir()) == []


def test_a_folder_of_parts_is_one_table_to_other_programs(tmp_path):
    parts = Parts(out=tmp_path, rows=4, size=2, output="parquet")
    parts.write(0, rows(0, 1))
    parts.write(1, rows(2, 3))
    (tmp_path / "_manifest.json").write_text("{}")
    assert pq.read_table(tmp_path).column("row").to_pylist() == [0, 1, 2, 3]


@pytest.mark.parametrize(("size", "output"), [(0, "parquet"), (3, "csv")])
def test_parts_that_cannot_be_written_are_refused(tmp_path, size, output):
    with pytest.raises(ConfigurationError):
        Parts(out=tmp_path, rows=7, size=size, output=output)


def test_without_pyarrow_json_lines_still_work_and_parquet_names_the_extra(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("pyarrow.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    Parts(out=tmp_path, rows=1, size=3, output="jsonl").write(0, rows(0))
    with pytest.raises(MissingExtraError, match=r"guardrail-vlm\[bulk\]"):
        Parts(out=tmp_path, rows=1, size=3, output="parquet")
    assert module.FORMATS == ("parquet", "jsonl")


def test_a_page_that_cannot_be_unpacked_is_told_as_damage(tmp_path):
    parts = Parts(out=tmp_path, rows=7, size=3, output="parquet")
    parts.write(0, rows(0, 1, 2))
    held = bytearray(parts.path(0).read_bytes())
    held[20:60] = bytes(byte ^ 0xFF for byte in held[20:60])
    parts.path(0).write_bytes(held)
    with pytest.raises(DatasetError, match="remove it and start again"):
        parts.read(0, ["row"])
    with pytest.raises(FileNotFoundError):
        parts.read(1, ["row"])


def test_one_of_two_processes_on_a_part_may_lose_its_half_to_the_sweep_of_the_other(
    parts, monkeypatch
):
    def sweep_first(source, target, replace=os.replace):
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", replace)
            parts.write(1, rows(3, 4, 5))
        parts.sweep()
        replace(source, target)

    monkeypatch.setattr(os, "replace", sweep_first)
    parts.write(1, rows(3, 4, 5))
    assert parts.read(1, list(ROW_FIELDS)) == rows(3, 4, 5)


FACTS = {"source": {"rows": 3, "digest": "a"}, "policy": {"mode": "enforce"}, "columns": (1, 2)}


def test_what_is_written_is_read_again(tmp_path):
    assert read_manifest(tmp_path) is None
    write_manifest(tmp_path, FACTS)
    assert read_manifest(tmp_path) == json.loads(json.dumps(FACTS))
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST]


def test_the_first_of_two_processes_stays_and_the_second_compares(tmp_path):
    write_manifest(tmp_path, FACTS)
    write_manifest(tmp_path, FACTS)
    with pytest.raises(ConfigurationError, match=r'policy\.mode was "enforce", is "shadow"'):
        write_manifest(tmp_path, FACTS | {"policy": {"mode": "shadow"}})
    assert read_manifest(tmp_path)["policy"] == {"mode": "enforce"}
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST]


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
    (tmp_path / MANIFEST).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigurationError, match="is damaged"):
        read_manifest(tmp_path)


def test_one_that_comes_while_the_folder_is_looked_at_is_read(tmp_path, monkeypatch):
    def late(path, listdir=os.listdir):
        (tmp_path / MANIFEST).write_text(json.dumps(FACTS))
        return listdir(path)

    monkeypatch.setattr(os, "listdir", late)
    assert read_manifest(tmp_path) == json.loads(json.dumps(FACTS))
