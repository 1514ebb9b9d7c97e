from __future__ import annotations

import itertools

import pytest

from guardrail.bulk import Columns, Shard, prepare, score
from guardrail.bulk import job as module
from guardrail.bulk.job import summarise
from guardrail.bulk.parts import Parts
from guardrail.errors import ConfigurationError, DatasetError
from guardrail.guard import Guard
from guardrail.testing import tiny_artefact, tiny_model

TEXTS = [f"Row {i}" for i in range(25)]


def plain(rows):
    """Rows as one run and another must agree on: a batch's company moves the last digits."""
    return [row | {"score": row["score"] and round(row["score"], 3)} for row in rows]


def run(guard, source, out, *, of=Shard(), **options):  # noqa: B008
    made = prepare(
        source,
        out,
        artefact_id=guard.artefact.artefact_id,
        policy=guard.policy,
        shard=of,
        **({"part_rows": 4} | options),
    )
    made.run(guard)
    return made.summary()


@pytest.mark.parametrize("output", ["parquet", "jsonl"])
def test_every_row_in_is_one_row_out_in_order_whatever_is_wrong_with_it(
    guard, jsonl, tmp_path, read_rows, output
):
    rows = [*TEXTS[:9], "!{bad", {"image": "none.png"}, {"text": "a", "id": "x"}]
    found = score(guard, jsonl(rows), tmp_path / "out", part_rows=5, output=output)
    written = read_rows(tmp_path / "out")
    assert [row["row"] for row in written] == list(range(12))
    assert [row["reason"] for row in written] == ["score"] * 9 + ["unreadable"] * 2 + ["score"]
    assert written[11]["key"] == "x"
    assert (found.rows, found.scored, found.unreadable, found.complete) == (12, 10, 2, True)
    assert written[0]["action"] == str(guard.check(TEXTS[0]).action)


def test_pictures_texts_and_broken_files_of_a_folder(guard, tmp_path, read_rows, png):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for number in range(6):
        (tmp_path / "in" / "deep" / f"{number}.png").write_bytes(png(number))
    (tmp_path / "in" / "a.txt").write_text("Row 3")
    (tmp_path / "in" / "bad.png").write_bytes(b"no")
    found = score(guard, tmp_path / "in", tmp_path / "out", prompt="What?")
    written = read_rows(tmp_path / "out")
    assert [row["key"] for row in written[:3]] == ["a.txt", "bad.png", "deep/0.png"]
    assert written[1]["error_type"] == "ImageDecodeError"
    assert (found.actions.keys(), found.rows) == ({"text", "image"}, 8)
    content = [{"type": "image", "image": png(0)}, {"type": "text", "text": "What?"}]
    alone = guard.check([{"role": "user", "content": content}])
    assert written[2]["score"] == pytest.approx(alone.score, abs=1e-4)


def test_parquet_of_pictures(guard, parquet, tmp_path, read_rows, png):
    path = parquet({"image": [{"bytes": png(i), "path": None} for i in range(25)]})
    found = score(guard, path, tmp_path / "out", part_rows=7)
    written = read_rows(tmp_path / "out")
    assert [(row["row"], row["key"]) for row in written] == [(i, str(i)) for i in range(25)]
    assert {row["modality"] for row in written} == {"image"}
    assert found.scored == 25


@pytest.mark.parametrize("at", [0, 1, 3, 4, 5, 11, 23, 24])
def test_a_run_stopped_anywhere_goes_on_and_ends_like_one_run(
    guard, jsonl, tmp_path, read_rows, at
):
    source, out = jsonl(TEXTS), tmp_path / "out"
    whole = tmp_path / "whole"
    score(guard, source, whole, part_rows=4)

    def stop(_stage, done, _total):
        if done > at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(guard, source, out, part_rows=4, progress=stop)
    assert [row["row"] for row in read_rows(out)] == list(
        range((at + 1) // 4 * 4 if at < 24 else 25)
    )
    told = []
    score(guard, source, out, part_rows=4, progress=lambda *facts: told.append(facts[1:]))
    assert plain(read_rows(out)) == plain(read_rows(whole))
    assert not told or told[-1] == (25, 25)
    assert {path.name for path in out.iterdir()} == {path.name for path in whole.iterdir()}


def test_a_part_that_is_there_is_not_scored_again(guard, jsonl, tmp_path, monkeypatch):
    source, out = jsonl(TEXTS), tmp_path / "out"
    score(guard, source, out, part_rows=4)
    (out / "part-0000002.parquet").unlink()
    seen = []
    monkeypatch.setattr(
        module,
        "scored",
        lambda guard, items, original=module.scored, **options: original(
            guard, (seen.append(item.number) or item for item in items), **options
        ),
    )
    assert score(guard, source, out, part_rows=4).rows == 25
    assert seen == [8, 9, 10, 11]


@pytest.mark.parametrize("of", [1, 2, 3, 8])
def test_shards_are_disjoint_and_complete(guard, jsonl, tmp_path, read_rows, of):
    source, out = jsonl(TEXTS), tmp_path / "out"
    whole = tmp_path / "whole"
    score(guard, source, whole, part_rows=4)
    counts, parts = [], []
    for number in range(1, of + 1):
        before = set(out.glob("part-*"))
        counts.append(run(guard, source, out, of=Shard(number, of)))
        parts.append(set(out.glob("part-*")) - before)
    assert sum(found.rows for found in counts) == 25
    assert [found.complete for found in counts[:-1]] == [
        sum(map(len, parts[: n + 1])) == 7 for n in range(of - 1)
    ]
    assert counts[-1].complete
    assert all(not a & b for a, b in itertools.combinations(parts, 2))
    assert plain(read_rows(out)) == plain(read_rows(whole))


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "-1/2", "1/0", "1/2/3", ""])
def test_a_shard_that_is_none_is_refused(text):
    with pytest.raises(ConfigurationError, match="such as 2/8"):
        Shard.parse(text)


def test_a_shard_is_read_from_its_text():
    assert Shard.parse("2/8") == Shard(2, 8)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"part_rows": 5}, "output.part_rows was 4, is 5"),
        ({"output": "jsonl"}, "output.format was"),
        ({"prompt": "What?"}, "prompt was null"),
        ({"columns": Columns(id="id")}, "columns.id was null"),
    ],
)
def test_a_run_does_not_go_on_under_other_settings(guard, jsonl, tmp_path, changed, said):
    source, out = jsonl(TEXTS), tmp_path / "out"
    run(guard, source, out)
    with pytest.raises(ConfigurationError, match=said):
        run(guard, source, out, **changed)


def test_a_run_does_not_go_on_under_another_policy(guard, jsonl, tmp_path):
    source, out = jsonl(TEXTS), tmp_path / "out"
    run(guard, source, out)
    with (
        guard.with_policy(guard.policy.model_copy(update={"mode": "shadow"})) as other,
        pytest.raises(ConfigurationError, match=r"policy\.mode"),
    ):
        run(other, source, out)


def test_a_run_does_not_go_on_with_another_artefact_or_model(guard, jsonl, tmp_path):
    source, out = jsonl(TEXTS), tmp_path / "out"
    run(guard, source, out)
    pair = (guard.loaded.model, guard.loaded.processor)
    with (
        Guard(pair, tiny_artefact(*pair, seed=5), policy=guard.policy) as other,
        pytest.raises(ConfigurationError, match="artefact was"),
    ):
        run(other, source, out)
    with (
        Guard(
            tiny_model("llava", seed=1), guard.artefact, policy=guard.policy, allow_mismatch=True
        ) as other,
        pytest.raises(ConfigurationError, match=r"model\.fingerprint\.weights_digest"),
    ):
        run(other, source, out)


def test_a_run_does_not_go_on_with_a_changed_source(guard, jsonl, tmp_path):
    source, out = jsonl(TEXTS), tmp_path / "out"
    run(guard, source, out)
    jsonl([*TEXTS, "more"])
    with pytest.raises(ConfigurationError, match=r"source\.rows was 25, is 26"):
        run(guard, source, out)


def test_a_folder_that_changed_is_told_and_its_list_stays(guard, tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    (folder / "a.txt").write_text("a")
    run(guard, folder, out)
    kept = (out / "_listing.jsonl").read_text()
    (folder / "b.txt").write_text("b")
    with pytest.raises(ConfigurationError, match=r"source\.rows"):
        run(guard, folder, out)
    assert (out / "_listing.jsonl").read_text() == kept
    assert not list(out.glob(".*"))


def test_a_source_that_changes_while_it_is_read_is_told(guard, jsonl, tmp_path):
    source = jsonl(TEXTS)

    def change(_stage, done, _total):
        if done == 20:
            source.write_text(source.read_text() + '"more"\n')

    with pytest.raises(DatasetError, match="changed while it was read"):
        score(guard, source, tmp_path / "out", part_rows=4, progress=change)


@pytest.mark.parametrize(("left", "parts"), [(6, 1), (8, 2)], ids=["in a part", "between parts"])
def test_a_source_that_ends_early_is_told_and_no_short_part_is_written(
    guard, jsonl, tmp_path, left, parts
):
    source, out = jsonl(TEXTS), tmp_path / "out"
    made = prepare(
        source, out, artefact_id=guard.artefact.artefact_id, policy=guard.policy, part_rows=4
    )
    jsonl(TEXTS[:left])
    with pytest.raises(DatasetError, match="ended early"):
        made.run(guard)
    names = sorted(path.name for path in out.glob("part-*"))
    assert names == [f"part-{number:07}.parquet" for number in range(parts)]


def test_a_full_disk_ends_the_run_and_room_lets_it_go_on(
    guard, jsonl, tmp_path, read_rows, monkeypatch
):
    source, out = jsonl(TEXTS), tmp_path / "out"
    write = module.Parts.write

    def full(self, number, rows):
        if number == 2:
            raise OSError(28, "No space left on device")
        write(self, number, rows)

    with monkeypatch.context() as patch:
        patch.setattr(module.Parts, "write", full)
        with pytest.raises(OSError, match="No space left"):
            score(guard, source, out, part_rows=4)
    assert [row["row"] for row in read_rows(out)] == list(range(8))
    assert score(guard, source, out, part_rows=4).complete
    assert [row["row"] for row in read_rows(out)] == list(range(25))


def test_a_damaged_part_is_found_when_the_run_is_counted(guard, jsonl, tmp_path):
    source, out = jsonl(TEXTS), tmp_path / "out"
    run(guard, source, out)
    (out / "part-0000001.parquet").write_bytes((out / "part-0000000.parquet").read_bytes())
    with pytest.raises(DatasetError, match="part-0000001"):
        run(guard, source, out)


def test_what_killed_processes_left_is_removed_when_all_is_there(guard, jsonl, tmp_path):
    source, out = jsonl(TEXTS), tmp_path / "out"
    run(guard, source, out, of=Shard(1, 2))
    left = out / ".part-0000001.parquet.abc.tmp"
    left.write_bytes(b"half")
    run(guard, source, out, of=Shard(1, 2))
    assert left.exists()  # another shard's process may be writing it
    run(guard, source, out)
    assert not left.exists()


def row(number, **facts):
    return {"row": number, "key": "k", "reason": "score", "modality": "text"} | facts


ROWS = [
    row(0, action="pass", would_be="pass"),
    row(1, action="pass", would_be="flag"),
    row(2, action="flag", would_be="flag", modality="image"),
    row(3, action="flag", would_be="flag", reason="detector_failed"),
    row(4, modality=None, reason="unreadable", error_type="ImageDecodeError"),
    row(5, modality=None, reason="failed", error_type="RequestTimeoutError"),
]


def test_rows_are_counted_by_what_became_of_them(tmp_path):
    parts = Parts(out=tmp_path, rows=6, size=3, output="jsonl")
    for number in range(2):
        parts.write(number, [{"error_type": None, **ROWS[n]} for n in parts.span(number)])
    assert summarise(parts, [0, 1]).to_dict() == {
        "rows": 6,
        "of": 6,
        "complete": True,
        "scored": 3,
        "flagged": 2,
        "unreadable": 1,
        "failed": 2,
        "actions": {"image": {"flag": 1}, "text": {"pass": 2}},
        "would_be": {"image": {"flag": 1}, "text": {"flag": 1, "pass": 1}},
        "errors": {"ImageDecodeError": 1, "RequestTimeoutError": 1, "detector_failed": 1},
    }


def test_a_shards_summary_says_that_others_are_left(tmp_path):
    parts = Parts(out=tmp_path, rows=6, size=3, output="jsonl")
    parts.write(1, [{"error_type": None, **ROWS[n]} for n in parts.span(1)])
    found = summarise(parts, [1])
    assert (found.rows, found.of, found.complete) == (3, 6, False)
