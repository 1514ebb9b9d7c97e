"""One table of forms: what is asked is there, what is around it tells no class."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from guardrail.fit import forms
from guardrail.fit.collect import Collector
from guardrail.fit.dataset import (
    ContrastSet,
    Prompt,
    frames,
    load_contrast,
    neutral_prompts,
    surroundings,
)
from guardrail.fit.forms import FORMS, Form, readable, samples
from guardrail.inputs.messages import request_digest
from guardrail.model.encode import Encoder
from guardrail.model.load import wrap_model
from guardrail.testing import tiny_model
from guardrail.types import ImagePart, TextPart

if TYPE_CHECKING:
    from guardrail.fit.prompts import Sample
    from guardrail.model.load import LoadedModel
    from guardrail.types import Message

KINDS = ("unsafe", "matched", "near", "ordinary")
SIZES: dict[Any, int] = {"fit": 60, "select": 30, "calibrate": 20}
LIMITS: Any = {"fit": 15, "select": 9, "calibrate": 6}
PLAN = {name: dict(counts) for name, counts in forms.PLAN.items()}  # as it is for users
BY_NAME = {form.name: form for form in FORMS}
PROMPT = "<<THE PROMPT>>"

each_form = pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)


@pytest.fixture(scope="module")
def contrast() -> ContrastSet:
    """Prompts that are alike in nothing but their form: with capitals, quotes and punctuation."""
    return ContrastSet(
        tuple(
            Prompt(
                text=f'Say "{kind}-{split}", please: what\'s number {i}?',
                label="unsafe" if kind == "unsafe" else "safe",
                kind=kind,
                split=split,
            )
            for split, n in SIZES.items()
            for i in range(n)
            for kind in KINDS
        )
    )


@pytest.fixture(scope="module")
def packaged() -> ContrastSet:
    return load_contrast()


def text_of(message: Message) -> str:
    return "".join(part.text for part in message.parts if isinstance(part, TextPart))


def spoken(sample: Sample) -> str:
    """The turn in which the prompt stands."""
    return text_of(sample.request.messages[sample.message])


def unpunctuated(text: str) -> str:
    return "".join(" " if c == "-" else c for c in text.lower() if c not in "\",:'?")


def ways(text: str) -> list[str]:
    """How a prompt may be written."""
    return [text, json.dumps(text)[1:-1], text.upper(), text.lower(), unpunctuated(text)]


def around(sample: Sample, contrast: ContrastSet) -> tuple[Any, ...]:
    """Everything in a chat but the prompt itself."""
    turns = []
    for message in sample.request.messages:
        said = text_of(message)
        for way in ways(contrast.prompts[sample.index].text):
            said = said.replace(way, PROMPT)
        colours = tuple(p.image.getcolors() for p in message.parts if isinstance(p, ImagePart))
        turns.append((message.role, said, str(colours), str(message.tool_calls)))
    return tuple(turns)


def of_split(found: list[Sample], contrast: ContrastSet, split: str) -> list[Sample]:
    return [s for s in found if contrast.prompts[s.index].split == split]


def test_the_table_and_the_plan_have_every_form() -> None:
    names = (
        "bare carried before after between quoted json code upper lower fiction system turns "
        "earlier tool pictured"
    )
    assert [form.name for form in FORMS] == names.split()
    assert set(PLAN) == set(BY_NAME)


@each_form
def test_every_kind_has_the_same_surroundings(contrast: ContrastSet, form: Form) -> None:
    found = samples(contrast, form, LIMITS)
    for split in SIZES:
        by_kind: dict[str, Counter[tuple[Any, ...]]] = {}
        for sample in of_split(found, contrast, split):
            kind = contrast.prompts[sample.index].kind
            by_kind.setdefault(kind, Counter())[around(sample, contrast)] += 1
        unsafe, *safe = (by_kind[kind] for kind in KINDS if kind in by_kind)
        assert len(safe) == (2 if split == "calibrate" else 3)  # unsafe ones are not read there
        if form.pictures and split != "calibrate":
            unsafe = Counter({what: n // len(safe) for what, n in unsafe.items()})
        assert all(counts == unsafe for counts in safe)


@each_form
def test_the_prompt_stands_once_in_the_turn_that_is_named(
    contrast: ContrastSet, form: Form
) -> None:
    for sample in samples(contrast, form, LIMITS):
        found = [said.count(PROMPT) for _, said, _, _ in around(sample, contrast)]
        assert found == [int(i == sample.message) for i in range(len(found))]


@each_form
def test_what_judges_a_fit_has_other_words_around_it(contrast: ContrastSet, form: Form) -> None:
    found = samples(contrast, form, LIMITS)
    used = {
        split: {
            said for s in of_split(found, contrast, split) for _, said, _, _ in around(s, contrast)
        }
        - {PROMPT, ""}
        for split in SIZES
    }
    for split in ("select", "calibrate"):
        assert not used["fit"] & used[split]
    for own, other in (("fit", "held out"), ("select", "fit"), ("calibrate", "fit")):
        foreign = [text for texts in surroundings(other).values() for text in texts]
        foreign += neutral_prompts(other)
        assert not [text for text in foreign for said in used[own] if text in said]


def texts_in(contrast: ContrastSet, name: str) -> list[tuple[str, Sample]]:
    """Each prompt with the chat that was made of it."""
    found = samples(contrast, BY_NAME[name], LIMITS)
    return [(contrast.prompts[s.index].text, s) for s in found]


def test_a_bare_prompt_is_the_prompt(contrast: ContrastSet) -> None:
    assert all(spoken(s) == text for text, s in texts_in(contrast, "bare"))


def test_a_carried_prompt_comes_before_a_neutral_one_and_half_are_lower_case(
    contrast: ContrastSet,
) -> None:
    lower = []
    for text, sample in texts_in(contrast, "carried"):
        prompt, neutral = spoken(sample).split("\n")
        assert prompt in (text, text.lower())
        assert neutral in neutral_prompts("fit") + neutral_prompts("held out")
        lower.append(prompt != text)
    assert 0.25 < sum(lower) / len(lower) < 0.75


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [("before", False, True), ("after", True, False), ("between", False, False)],
)
def test_prose_stands_where_the_form_says(
    contrast: ContrastSet, name: str, first: bool, last: bool
) -> None:
    for text, sample in texts_in(contrast, name):
        assert spoken(sample).startswith(text) == first
        assert spoken(sample).endswith(text) == last


def test_prose_is_whole_sentences_of_one_register_mostly_few(contrast: ContrastSet) -> None:
    counts = []
    for split, pool in (("fit", surroundings("fit")), ("select", surroundings("held out"))):
        for sample in of_split(samples(contrast, BY_NAME["after"], LIMITS), contrast, split):
            prose = spoken(sample).removeprefix(contrast.prompts[sample.index].text)
            inside = [[t for t in texts if t in prose] for texts in pool.values()]
            (chosen,) = [texts for texts in inside if texts]
            assert sum(map(len, chosen)) + len(chosen) - 1 == len(prose.strip())
            counts.append(len(chosen))
    assert min(counts) == 1
    assert max(counts) <= 10
    assert sum(n <= 4 for n in counts) > 0.6 * len(counts)


def test_a_json_wrapper_parses_and_holds_the_prompt(contrast: ContrastSet) -> None:
    def values(value: Any) -> list[Any]:
        inside = value.values() if isinstance(value, dict) else value
        return (
            [v for each in inside for v in values(each)]
            if isinstance(value, dict | list)
            else [value]
        )

    for text, sample in texts_in(contrast, "json"):
        said = spoken(sample)
        parsed = json.loads(said[said.index("{") : said.rindex("}") + 1])
        assert text in values(parsed)


def test_code_holds_the_prompt_on_one_line_of_its_block(contrast: ContrastSet) -> None:
    for text, sample in texts_in(contrast, "code"):
        _, block, _ = spoken(sample).split("```")
        assert text in block


def test_a_prompt_of_several_lines_stays_inside_its_comment(contrast: ContrastSet) -> None:
    split = ContrastSet(
        tuple(
            p.model_copy(update={"text": f"one\ntwo {i}"}) for i, p in enumerate(contrast.prompts)
        )
    )
    found = samples(split, BY_NAME["code"], LIMITS)
    assert all(f"one two {s.index}" in spoken(s) for s in found)


def test_upper_and_lower_case_are_those_of_the_prompt(contrast: ContrastSet) -> None:
    assert all(spoken(s) == text.upper() for text, s in texts_in(contrast, "upper"))
    assert all(spoken(s) == unpunctuated(text) for text, s in texts_in(contrast, "lower"))


@pytest.mark.parametrize("name", ["quoted", "fiction"])
def test_a_frame_holds_the_prompt_and_says_what_to_do(contrast: ContrastSet, name: str) -> None:
    known = {f.text for split in ("fit", "held out") for f in frames(split)[name]}
    for text, sample in texts_in(contrast, name):
        assert spoken(sample).replace(text, "{text}") in known


def test_a_system_prompt_stands_before_the_prompt(contrast: ContrastSet) -> None:
    registers = []
    for text, sample in texts_in(contrast, "system"):
        system, user = sample.request.messages
        assert (system.role, user.role, text_of(user)) == ("system", "user", text)
        for pool in (surroundings("fit"), surroundings("held out")):
            inside = {r: [t for t in ts if t in text_of(system)] for r, ts in pool.items()}
            registers += [(r, len(texts)) for r, texts in inside.items() if texts]
    assert all(3 <= n <= 10 for _, n in registers)
    rules = sum(register.endswith("rules") for register, _ in registers)
    assert 0.25 < rules / len(registers) < 0.9


def test_earlier_turns_alternate_and_are_harmless_exchanges(contrast: ContrastSet) -> None:
    known = [f for split in ("fit", "held out") for f in frames(split)["exchange"]]
    lengths = set()
    for text, sample in texts_in(contrast, "turns"):
        *earlier, last = sample.request.messages
        assert [m.role for m in earlier] == ["user", "assistant"] * (len(earlier) // 2)
        assert (last.role, text_of(last)) == ("user", text)
        pairs = zip(earlier[::2], earlier[1::2], strict=True)
        said = [(text_of(user), text_of(assistant)) for user, assistant in pairs]
        assert set(said) <= {(f.text, f.answer) for f in known}
        assert len(set(said)) == len(said)
        lengths.add(len(said))
    assert lengths == {1, 2, 3, 4}


def test_an_earlier_prompt_was_answered_and_something_harmless_is_said_last(
    contrast: ContrastSet,
) -> None:
    refused = []
    for text, sample in texts_in(contrast, "earlier"):
        user, assistant, last = sample.request.messages
        assert [m.role for m in (user, assistant, last)] == ["user", "assistant", "user"]
        assert text_of(user) == text
        rows = frames("fit" if contrast.prompts[sample.index].split == "fit" else "held out")
        answers = {use: {f.text for f in rows[use]} for use in rows}
        refused.append(text_of(assistant) in answers["refusal"])
        assert refused[-1] or text_of(assistant) in answers["start"]
        assert text_of(last) in answers["follow-up"] | answers["exchange"]
    assert 0.25 < sum(refused) / len(refused) < 0.75


def test_a_tool_gives_the_prompt_back_after_its_call(contrast: ContrastSet) -> None:
    for text, sample in texts_in(contrast, "tool"):
        user, assistant, tool = sample.request.messages
        assert [m.role for m in (user, assistant, tool)] == ["user", "assistant", "tool"]
        (call,) = assistant.tool_calls
        offered = {t["function"]["name"]: t["function"]["parameters"] for t in sample.request.tools}
        assert list(call.arguments) == offered[call.name]["required"]
        assert tool.tool_call_id == call.id
        assert text in text_of(tool)
        assert text not in text_of(user)


def test_pictures_are_of_one_colour_and_stand_before_the_words(contrast: ContrastSet) -> None:
    numbers: Counter[int] = Counter()
    alone = []
    for text, sample in texts_in(contrast, "pictured"):
        (message,) = sample.request.messages
        *pictures, words = message.parts
        assert all(isinstance(part, ImagePart) for part in pictures)
        assert isinstance(words, TextPart)
        colours = [part.image.getcolors() or [] for part in pictures]  # type: ignore[union-attr]
        assert all(len(found) == 1 for found in colours)
        assert len({str(found) for found in colours}) == len(pictures)
        numbers[len(pictures)] += 1
        alone.append(words.text == text)
    assert set(numbers) == {1, 2}
    assert numbers[1] > len(alone) / 3
    assert 0.25 < sum(alone) / len(alone) < 0.75


def test_only_one_form_has_pictures(contrast: ContrastSet) -> None:
    for form in FORMS:
        shown = {bool(s.request.images) for s in samples(contrast, form, LIMITS)}
        assert shown == {form.pictures}
    assert [form.name for form in FORMS if form.pictures] == ["pictured"]


@each_form
def test_chats_repeat_by_seed(contrast: ContrastSet, form: Form) -> None:
    def read(seed: int) -> list[tuple[int, str]]:
        found = samples(contrast, form, LIMITS, seed=seed)
        return [(s.index, request_digest(s.request)) for s in found]

    assert read(0) == read(0)
    if form.name not in ("bare", "upper", "lower"):
        assert read(0) != read(1)
    assert [i for i, _ in read(0)] == [i for i, _ in read(1)]


@each_form
def test_a_limit_is_what_each_kind_gives(contrast: ContrastSet, form: Form) -> None:
    limits: Any = {"fit": 7, "select": 0, "calibrate": None}
    found = samples(contrast, form, limits)
    chosen = [contrast.prompts[s.index] for s in found]
    counts = Counter((p.split, p.kind) for p in chosen)
    safe = {("fit", kind): 7 for kind in KINDS[1:]} | {
        ("calibrate", kind): 20 for kind in KINDS[1:]
    }
    assert counts == safe | {("fit", "unsafe"): 21 if form.pictures else 7}
    assert len({s.index for s in found}) == len(found)
    assert {s.form for s in found} == {form.name}


def planned(contrast: ContrastSet, name: str) -> list[Sample]:
    return samples(contrast, BY_NAME[name], PLAN[name])


def test_the_plan_reads_as_many_as_two_minutes_allow(packaged: ContrastSet) -> None:
    characters = 0
    for name in PLAN:
        found = planned(packaged, name)
        counts = Counter(
            (packaged.prompts[s.index].split, packaged.prompts[s.index].kind) for s in found
        )
        characters += sum(len(text_of(m)) for s in found for m in s.request.messages)
        assert ("calibrate", "unsafe") not in counts
        if name == "bare":
            assert {counts["fit", kind] for kind in KINDS} == {64}
            safe = packaged.indices("calibrate", labels=("safe",))
            assert sum(n for (split, _), n in counts.items() if split == "calibrate") == len(safe)
        elif name == "pictured":
            assert counts["fit", "unsafe"] == sum(counts["fit", kind] for kind in KINDS[1:]) == 48
        else:
            assert {counts["fit", kind] for kind in KINDS} == {10}
            assert {counts["select", kind] for kind in KINDS} == {3}
            assert {counts["calibrate", kind] for kind in KINDS[1:]} == {3}
    assert characters < 270_000  # some 60 thousand tokens


def test_forms_take_different_prompts_and_together_most_that_are_fitted_on(
    packaged: ContrastSet,
) -> None:
    chosen = {name: {s.index for s in planned(packaged, name)} for name in PLAN}
    assert not chosen["before"] & chosen["after"]
    fitted = set(packaged.indices("fit"))
    assert len(set.union(*chosen.values()) & fitted) >= 0.8 * len(fitted)


@each_form
def test_a_form_is_read_on_every_category_and_kind_of_sentence(
    packaged: ContrastSet, form: Form
) -> None:
    for kind in KINDS:
        found = planned(packaged, form.name)
        here = [packaged.prompts[s.index] for s in of_split(found, packaged, "fit")]
        here = [p for p in here if p.kind == kind]
        assert len({p.form for p in here}) >= 3
        assert len({p.category for p in here}) >= 0.5 * len(
            {p.category for p in packaged.prompts if p.kind == kind}
        )


def test_an_unsafe_prompt_and_its_matched_one_come_in_the_same_words(packaged: ContrastSet) -> None:
    found = of_split(planned(packaged, "before"), packaged, "fit")
    by_kind = {
        kind: {
            packaged.prompts[s.index].pair: around(s, packaged)
            for s in found
            if packaged.prompts[s.index].kind == kind
        }
        for kind in ("unsafe", "matched")
    }
    assert by_kind["unsafe"] == by_kind["matched"]


def test_a_model_that_reads_text_alone_is_left_the_pictures(llama_loaded: LoadedModel) -> None:
    assert set(FORMS) - set(readable(Encoder(llama_loaded))) == {BY_NAME["pictured"]}


def test_a_model_that_sees_takes_every_form(llava_loaded: LoadedModel) -> None:
    assert readable(Encoder(llava_loaded)) == FORMS


def test_a_template_without_tools_or_system_prompts_is_left_those() -> None:
    loaded = wrap_model(*tiny_model("llama"))
    processor: Any = loaded.processor
    processor.chat_template = (
        "{% for message in messages %}"
        "{% if message.role == 'system' %}{{ raise_exception('no system prompts') }}{% endif %}"
        "{{ message.role }}: {{ message.content }}\n"
        "{% endfor %}"
    )
    left = {form.name for form in FORMS} - {form.name for form in readable(Encoder(loaded))}
    assert left == {"system", "tool", "pictured"}


@each_form
def test_a_collector_reads_a_form(
    contrast: ContrastSet, form: Form, llava_loaded: LoadedModel
) -> None:
    limits: Any = {"fit": 2, "select": 1, "calibrate": 0}
    found = samples(contrast, form, limits)
    read = Collector(llava_loaded)([s.request for s in found], form.name)
    assert read.shape[0] == len(found)
    assert bool(read[:, :-1].isfinite().all())  # the last quarter of the layers is not run
