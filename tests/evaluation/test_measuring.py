from __future__ import annotations

import os
import subprocess
import sys

import pytest

from guardrail.errors import DatasetError
from guardrail.evaluation.cache import Cache, judgement_key
from guardrail.evaluation.inputs import Input, Troubles
from guardrail.evaluation.items import EvalItem
from guardrail.evaluation.measuring import Context, Keys, Stage, plain_policy, run_stage
from guardrail.guard import Guard
from guardrail.policy import Policy
from guardrail.types import Modality


def given(text, *, group=0, digest=None, name=None):
    item = EvalItem(
        id=name or text, label="harmful", messages=[{"role": "user", "content": text}], text=text
    )
    return Input(
        item=item,
        digest=digest or text,
        kind="text",
        modality=Modality.TEXT,
        group=(group, ""),
    )


def context(cache=None, *, skip=False, seen=None):
    def progress(stage, done, total):
        if seen is not None:
            seen.append((stage, done, total))

    return Context(cache or Cache(), Policy(), Troubles(skip=skip), progress)


def stage(used, ask, batch=3):
    return Stage(
        name="upper",
        batch=batch,
        key=lambda digest: f"upper-{digest}",
        ask=ask,
        pack=str.encode,
        unpack=bytes.decode,
        use=lambda one, value: used.update({one.item.id: value}),
    )


def said(request):
    return request.messages[0].parts[0].text


def test_batches_hold_like_inputs_sorted_by_length():
    asked, used = [], {}

    def ask(requests):
        asked.append([said(r) for r in requests])
        return [said(r).upper() for r in requests]

    inputs = [
        given(t, group=len(t) % 2) for t in ("aaaa", "b", "cc", "ddd", "ee", "f", "gggggg", "h")
    ]
    timing = run_stage(stage(used, ask), inputs, context())
    assert asked == [["cc", "ee", "aaaa"], ["gggggg"], ["b", "f", "h"], ["ddd"]]
    assert used == {one.item.id: one.item.id.upper() for one in inputs}
    assert (timing.n, timing.cached) == (8, 0)


def test_equal_inputs_are_asked_once_and_all_of_them_get_the_value():
    asked, used, seen = [], {}, []

    def ask(requests):
        asked.extend(requests)
        return ["x"] * len(requests)

    inputs = [given("a", name="1"), given("a", name="2"), given("b")]
    run_stage(stage(used, ask), inputs, context(seen=seen))
    assert len(asked) == 2
    assert set(used) == {"1", "2", "b"}
    assert seen[-1] == ("upper", 3, 3)


def test_every_input_that_is_alike_counts_as_kept(tmp_path):
    inputs = [given("a", name="1"), given("a", name="2"), given("b")]
    for wanted in (0, 3):
        timing = run_stage(stage({}, lambda rs: ["x"] * len(rs)), inputs, context(Cache(tmp_path)))
        assert (timing.n, timing.cached) == (3, wanted)


def test_a_batch_that_fails_is_asked_one_by_one():
    used, sizes = {}, []

    def ask(requests):
        sizes.append(len(requests))
        if any("bad" in said(r) for r in requests):
            raise RuntimeError("too large")
        return [said(r) for r in requests]

    where = context(skip=True)
    inputs = [given("a"), given("bad", name="bad 1"), given("bad", name="bad 2"), given("c")]
    run_stage(stage(used, ask), inputs, where)
    assert sizes == [3, 1, 1, 1]
    assert set(used) == {"a", "c"}
    assert set(where.troubles.found) == {"bad 1", "bad 2"}
    with pytest.raises(DatasetError, match="'bad 1' \\(upper\\): RuntimeError: too large"):
        run_stage(stage({}, ask), inputs, context())


def test_an_error_in_a_values_place_is_that_inputs_alone(tmp_path):
    used = {}
    values = {"a": "A", "b": ValueError("no"), "c": "C"}
    where = context(Cache(tmp_path), skip=True)
    inputs = [given(name) for name in values]
    run_stage(stage(used, lambda rs: [values[said(r)] for r in rs]), inputs, where)
    assert used == {"a": "A", "c": "C"}
    again = run_stage(stage(used, lambda rs: ["B"] * len(rs)), inputs, where)
    assert again.cached == 2
    assert used["b"] == "B"


def test_interrupts_are_not_taken_for_an_inputs_error():
    def ask(requests):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(stage({}, ask), [given("a")], context(skip=True))


def test_a_kept_value_nobody_can_read_is_asked_again(tmp_path, caplog):
    cache = Cache(tmp_path)
    cache.put({"upper-a": b"\xff", "upper-b": b"kept"})
    used = {}
    timing = run_stage(
        stage(used, lambda rs: ["new"] * len(rs)), [given("a"), given("b")], context(cache)
    )
    assert used == {"a": "new", "b": "kept"}
    assert timing.cached == 1
    assert "damaged" in caplog.text


_CODE = (
    "from guardrail.evaluation.measuring import plain_policy\n"
    "from guardrail.policy import Policy\n"
    "print(plain_policy(Policy(allowed_hosts=frozenset({hosts}))))"
)


def test_a_policy_reads_the_same_in_every_process():
    """Sets are in another order there, as strings have other hashes."""
    hosts = [f"h{n}.org" for n in range(9)]
    there = subprocess.run(
        [sys.executable, "-c", _CODE.format(hosts=hosts)],
        env={"PYTHONHASHSEED": "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1", "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert there.stdout == f"{plain_policy(Policy(allowed_hosts=frozenset(hosts)))}\n"


def test_every_part_of_a_key_counts():
    one = Keys("model", "guard", reader="reader")
    keys = [
        one.read("d"),
        one.plain("d", "s"),
        one.guarded("d", "s"),
        one.kl("d"),
        one.read("e"),
        one.plain("d", "t"),
        Keys("other", "guard", reader="reader").read("d"),
        Keys("model", "guard", reader="other").read("d"),
        Keys("model", "other").guarded("d", "s"),
        Keys("model", "other").kl("d"),
        Keys("model", "guard", "other").plain("d", "s"),
        Keys("model", "guard", "other").guarded("d", "s"),
        judgement_key("j", "a", "bc"),
        judgement_key("j", "ab", "c"),
    ]
    assert len(set(keys)) == len(keys)
    assert Keys("model", "other", "other", "reader").read("d") == one.read("d")
    assert Keys("model", "other").plain("d", "s") == one.plain("d", "s")


@pytest.mark.parametrize(
    ("name", "value", "changed"),
    [
        ("VERSIONS", {"torch": "0"}, {"model"}),
        ("__version__", "0.0.0", {"guard", "reader"}),
    ],
)
def test_keys_follow_what_runs_the_model(monkeypatch, name, value, changed):
    from guardrail.model.load import wrap_model
    from guardrail.testing import tiny_artefact, tiny_model

    loaded = wrap_model(*tiny_model("llama"))
    with Guard(loaded, tiny_artefact(loaded.model, loaded.processor)) as guard:
        before = Keys.of(guard)
        monkeypatch.setattr(f"guardrail.evaluation.measuring.{name}", value)
        after = Keys.of(guard)
    assert {part for part in vars(before) if vars(after)[part] != vars(before)[part]} == changed


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
            assert Keys.of(shadow).reader == before.reader
        with guard.with_policy(Policy(judge={"system"})) as other:
            assert Keys.of(other).reader != before.reader
        with torch.no_grad():
            loaded.model.get_output_embeddings().weight.mul_(2)
        assert Keys.of(guard).model != before.model
        assert Keys.of(guard).guard == before.guard
        generation = Keys.of(guard).generation
        loaded.model.generation_config.repetition_penalty = 1.5
        assert Keys.of(guard).generation != generation
    assert plain_policy(Policy())["mode"] == "enforce"
