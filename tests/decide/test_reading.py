"""What is read beside the last position, against a slow reading of all hidden states at once."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from guardrail.decide.linear import UNMOVED, Readout
from guardrail.decide.reading import NOTHING, Found, PromptReading, TokenReading
from guardrail.decide.windows import WindowReadout
from guardrail.errors import DetectorError
from guardrail.types import Header, Modality, RowParts, Stretch, TurnSpan

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

WIDTH = 8  # of the model
LENGTH = 26  # of the batch's prompts
READ, WINDOWED = (1, 3), (2, 3)
JUDGED = ("user", "tool")
RECENTRING = {"text": UNMOVED, "image": (0.5, 0.75), "images": (0.2, 0.5)}

FIRST_ROW = RowParts(  # 26 tokens, no padding
    length=26,
    turns=(
        TurnSpan(0, "system", 0, 4, (Stretch(0, Modality.TEXT, 0, 4),)),
        TurnSpan(1, "user", 5, 9, (Stretch(0, Modality.TEXT, 5, 9),)),
        TurnSpan(2, "assistant", 11, 14, (Stretch(0, Modality.TEXT, 11, 14),)),
        TurnSpan(
            3,
            "user",
            15,
            24,
            (Stretch(0, Modality.IMAGE, 15, 19), Stretch(1, Modality.TEXT, 20, 24)),
        ),
    ),
    headers=(Header(2, 10, "text"), Header(4, 18, "image", "tool")),
)
SECOND_ROW = RowParts(  # 15 tokens behind 11 of padding
    length=15,
    turns=(
        TurnSpan(0, "user", 1, 6, (Stretch(0, Modality.TEXT, 1, 6),)),
        TurnSpan(2, "tool", 9, 14, (Stretch(0, Modality.TEXT, 9, 14),)),
    ),
    headers=(Header(1, 6, "text"),),  # before the last one of the first row
)
THIRD_ROW = RowParts(length=3, turns=(TurnSpan(0, "user", 1, 2),))  # too short for any window
ROWS = (FIRST_ROW, SECOND_ROW, THIRD_ROW)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


READOUT = Readout(
    layers=READ,
    weight=randn(2, WIDTH, seed=1),
    zero=torch.tensor([0.25, -0.5]),
    gap=torch.tensor([2.0, 3.0]),
    recentring=RECENTRING,
)
WINDOW = WindowReadout(
    layers=WINDOWED,
    query=randn(2, 3, WIDTH, seed=2),
    value=randn(2, 3, WIDTH, seed=3),
    bias=randn(2, seed=4),
    width=4,
    first=3,
    zero=0.5,
    gap=1.5,
)


def reading(
    rows: Sequence[RowParts] = ROWS,
    *,
    windows: WindowReadout | None = WINDOW,
    judged: Collection[str] = JUDGED,
) -> PromptReading:
    return PromptReading(
        readout=READOUT, windows=windows, rows=rows, judged=judged, prompt_len=LENGTH
    )


def states(rows: int = len(ROWS), *, seed: int = 0) -> dict[int, torch.Tensor]:
    """What the layers give: (rows, positions, d_model) each."""
    return {layer: randn(rows, LENGTH, WIDTH, seed=100 * seed + layer) for layer in (1, 2, 3)}


def shown(reading: PromptReading, hidden: dict[int, torch.Tensor], *borders: int) -> PromptReading:
    """The reading once it saw the prompt, in passes that end at the borders."""
    for first, end in zip([0, *borders], [*borders, LENGTH], strict=True):
        for layer in reading.layers:
            reading.see(layer, hidden[layer][:, first:end], first)
    return reading


def slow_turn(hidden: dict[int, torch.Tensor], row: int, parts: RowParts, header: Header) -> float:
    place, total = LENGTH - parts.length + header.position, 0.0
    for k, layer in enumerate(READ):
        read = float(hidden[layer][row, place].double() @ READOUT.weight[k].double())
        total += (read - float(READOUT.zero[k])) / float(READOUT.gap[k])
    intercept, slope = RECENTRING[header.kind]
    return (total / len(READ) - intercept) / slope


def slow_windows(
    hidden: dict[int, torch.Tensor], row: int, places: Sequence[int]
) -> list[tuple[float, int, int]]:
    """Score, first and last place of each window over these places of a row."""
    found = []
    for end in range(WINDOW.first, len(places) + 1):
        some, total = list(places[max(end - WINDOW.width, 0) : end]), 0.0
        for k, layer in enumerate(WINDOWED):
            here = hidden[layer][row, some].double()
            weight = (here @ WINDOW.query[k].double().T).softmax(0)
            value = here @ WINDOW.value[k].double().T
            total += float((weight * value).sum()) + float(WINDOW.bias[k])
        score = (total / len(WINDOWED) - WINDOW.zero) / WINDOW.gap
        found.append((score, some[0], some[-1]))
    return found


def slow(
    hidden: dict[int, torch.Tensor],
    rows: Sequence[RowParts] = ROWS,
    judged: Collection[str] = JUDGED,
) -> list[tuple[float, str, int]]:
    """The highest reading of each row: score, which reading, and of which message."""
    best = []
    for row, parts in enumerate(rows):
        pad, found = LENGTH - parts.length, [(-math.inf, "", -1)]
        for header in parts.headers:
            score = slow_turn(hidden, row, parts, header)
            found.append((score, "turn", header.message - 1))
        for turn in parts.turns:
            if turn.role in judged:
                places = range(pad + turn.start, pad + turn.stop)
                windows = slow_windows(hidden, row, places)
                found += [(score, "window", turn.message) for score, _, _ in windows]
        best.append(max(found))
    return best


def told(found: Sequence[Found]) -> list[tuple[float, str, int]]:
    return [
        (one.score, one.where.reading, one.where.message) if one.where else (one.score, "", -1)
        for one in found
    ]


@pytest.mark.parametrize("seed", range(12))
def test_the_highest_of_all_headers_and_windows_is_found_in_every_row(seed: int) -> None:
    hidden = states(seed=seed)
    found, expected = told(shown(reading(), hidden).found()), slow(hidden)
    assert [row[1:] for row in found] == [row[1:] for row in expected]
    scores = [row[0] for row in expected]
    assert [row[0] for row in found] == pytest.approx(scores, abs=1e-5)
    assert found[2] == (-math.inf, "", -1)


def test_seeds_of_the_test_above_find_both_readings_and_several_messages() -> None:
    found = {row[1:] for seed in range(12) for row in slow(states(seed=seed))[:2]}
    assert {which for which, _ in found} == {"turn", "window"}
    assert {message for which, message in found if which == "window"} >= {0, 1, 2, 3}


@pytest.mark.parametrize("borders", [(13,), (5, 18), (1, 2, 17, 25), tuple(range(1, LENGTH))])
def test_a_prompt_that_is_read_in_several_passes_scores_as_in_one(borders: tuple[int, ...]) -> None:
    for seed in range(6):
        hidden = states(seed=seed)
        whole, pieces = reading(), reading()
        expected = told(shown(whole, hidden).found())
        found = told(shown(pieces, hidden, *borders).found())
        assert [row[1:] for row in found] == [row[1:] for row in expected]
        scores = [row[0] for row in expected]
        assert [row[0] for row in found] == pytest.approx(scores, abs=1e-5)


def test_rows_do_not_depend_on_their_company() -> None:
    hidden = states()
    together = told(shown(reading(), hidden).found())
    for row, parts in enumerate(ROWS[:2]):
        alone = {layer: value[row : row + 1] for layer, value in hidden.items()}
        (found,) = told(shown(reading([parts]), alone).found())
        assert found[1:] == together[row][1:]
        assert found[0] == pytest.approx(together[row][0], abs=1e-5)


def test_tokens_behind_the_prompt_are_not_read() -> None:
    hidden = states()
    expected = told(shown(reading(), hidden).found())
    longer = {layer: torch.cat([value, value + 9], dim=1) for layer, value in hidden.items()}
    made = reading()
    for layer in made.layers:
        made.see(layer, longer[layer], 0)
    assert told(made.found()) == expected


def test_the_first_beam_speaks_for_its_request() -> None:
    hidden = states()
    expected = told(shown(reading(), hidden).found())
    beams = {layer: value.repeat_interleave(3, dim=0) for layer, value in hidden.items()}
    for value in beams.values():
        value[[1, 2, 4, 5, 7, 8]] += 9
    made = reading()
    made.attends(torch.ones(9, LENGTH, dtype=torch.long))
    assert told(shown(made, beams).found()) == expected


def test_positions_that_the_model_hides_are_no_tokens_of_a_window() -> None:
    hidden, mask = states(), torch.ones(len(ROWS), LENGTH, dtype=torch.long)
    for row, parts in enumerate(ROWS):
        mask[row, : LENGTH - parts.length] = 0
    gone = [16, 17, 21]  # of the last message of the first row
    mask[0, gone] = 0
    for layer in WINDOWED:
        hidden[layer][0, gone] = 1e4  # would be seen at once
    kept = [place for place in range(15, 24) if place not in gone]
    one = replace(FIRST_ROW, turns=FIRST_ROW.turns[3:], headers=())
    made = reading([one, *ROWS[1:]])
    made.attends(mask)
    found = shown(made, hidden).found()[0]
    score, first, last = max(slow_windows(hidden, 0, kept))
    assert found.score == pytest.approx(score, abs=1e-5)
    assert (found.where.start, found.where.stop) == (first, last + 1)


def test_a_mask_shorter_than_the_prompt_hides_nothing_of_what_it_does_not_reach() -> None:
    hidden = states()
    made = reading()
    made.attends(torch.zeros(len(ROWS), 4, dtype=torch.long))
    assert told(shown(made, hidden).found()) == told(shown(reading(), hidden).found())


@pytest.mark.parametrize("layer", WINDOWED)
def test_a_layer_that_gave_only_the_last_positions_is_an_outage(layer: int) -> None:
    hidden, made = states(), reading()
    for seen in made.layers:
        first = 20 if seen == layer else 0
        made.see(seen, hidden[seen][:, first:], first)
    with pytest.raises(DetectorError, match=r"not run at every position|header .* was not read"):
        made.found()


@pytest.mark.parametrize("layer", WINDOWED)
def test_a_layer_of_the_windows_that_never_ran_is_an_outage(layer: int) -> None:
    hidden, made = states(), reading([replace(row, headers=()) for row in ROWS])
    for seen in made.layers:
        if seen != layer:
            made.see(seen, hidden[seen], 0)
    with pytest.raises(DetectorError, match="did not run at every position"):
        made.found()


def test_a_header_that_no_pass_held_is_an_outage() -> None:
    hidden, made = states(), reading(windows=None)
    for layer in made.layers:
        made.see(layer, hidden[layer][:, 12:], 12)  # the first header is at 10
    with pytest.raises(DetectorError, match="an answer header of the prompt was not read"):
        made.found()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_header_that_is_not_finite_makes_its_row_fail_and_no_other(bad: float) -> None:
    hidden = states()
    expected = told(shown(reading(), hidden).found())
    hidden[1][0, 10] = bad  # read at headers alone
    found = told(shown(reading(), hidden).found())
    assert math.isnan(found[0][0])
    assert found[0][1:] == ("turn", 1)
    assert found[1:] == expected[1:]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_token_that_is_not_finite_makes_its_row_fail_and_no_other(bad: float) -> None:
    hidden = states()
    expected = told(shown(reading(), hidden).found())
    hidden[2][0, 7] = bad  # read by windows alone
    found = told(shown(reading(), hidden).found())
    assert math.isnan(found[0][0])
    assert found[0][1:] == ("window", 1)
    assert found[1:] == expected[1:]


def test_what_was_seen_stays_as_it_was_when_a_layer_writes_over_its_input() -> None:
    hidden, made = states(), reading()
    fit = TokenReading(rows=ROWS, judged=JUDGED, prompt_len=LENGTH, layers=(1,), token_layers=(1,))
    expected = told(shown(reading(), hidden).found())
    shown(made, hidden)
    fit.see(1, hidden[1], 0)
    for value in hidden.values():
        value.fill_(1e6)
    assert told(made.found()) == expected
    assert all(tensor.abs().max() < 100 for tensor in [*fit.heads[1], *fit.tokens[1]])


def test_padding_that_is_not_finite_spoils_nothing() -> None:
    hidden = states()
    expected = told(shown(reading(), hidden).found())
    for value in hidden.values():
        value[1, : LENGTH - SECOND_ROW.length] = math.nan
    assert told(shown(reading(), hidden).found()) == expected


@pytest.mark.parametrize("judged", [("user",), ("tool",), ("system", "assistant"), ()])
def test_windows_of_other_roles_do_not_count(judged: tuple[str, ...]) -> None:
    hidden = states()
    rows = [replace(row, headers=()) for row in ROWS]
    found = told(shown(reading(rows, judged=judged), hidden).found())
    expected = slow(hidden, rows, judged)
    assert [row[1:] for row in found] == [row[1:] for row in expected]
    assert [r[0] for r in found] == pytest.approx([r[0] for r in expected], abs=1e-5)


def test_only_layers_of_what_there_is_to_read_are_asked_for() -> None:
    bare = [replace(row, headers=()) for row in ROWS]
    assert reading().layers == (1, 2, 3)
    assert reading(bare).layers == WINDOWED
    assert reading(windows=None).layers == READ
    assert reading(judged=("nobody",)).layers == READ
    assert reading(bare, judged=()).layers == ()
    assert shown(reading(bare, judged=()), states()).found() == [NOTHING] * 3


def test_a_chat_that_begins_with_an_answer_has_no_turn_before_it() -> None:
    hidden = states()
    opened = replace(SECOND_ROW, headers=(Header(0, 0, "text"), *SECOND_ROW.headers))
    found = told(shown(reading([FIRST_ROW, opened, THIRD_ROW]), hidden).found())
    assert found == told(shown(reading(), hidden).found())
    assert reading([replace(THIRD_ROW, headers=(Header(0, 0, "text"),))], windows=None).layers == ()


def test_a_readout_that_is_not_read_at_earlier_turns_leaves_them_out() -> None:
    made = replace(reading(), turns=False)
    assert made.layers == WINDOWED
    bare = [replace(row, headers=()) for row in ROWS]
    assert told(shown(made, states()).found()) == told(shown(reading(bare), states()).found())


@pytest.mark.parametrize("first", [3, 5, 6, 10])
def test_with_windows_alone_ends_count_where_a_message_has_none(first: int) -> None:
    # Of the first row a header follows messages 1 (4 tokens) and 3 (9), of the second 0 (5 tokens).
    sizes = {(0, 1): 4, (0, 3): 9, (1, 0): 5}
    kept = [
        replace(row, headers=tuple(h for h in row.headers if sizes[number, h.message - 1] < first))
        for number, row in enumerate(ROWS[:2])
    ]
    windows = replace(WINDOW, first=first)
    alone = replace(windows, alone=True)
    for seed in range(6):
        hidden = states(seed=seed)
        expected = shown(reading([*kept, THIRD_ROW], windows=windows), hidden)
        made = shown(reading(windows=alone), hidden)
        assert told(made.found()) == told(expected.found())
        assert [made.scores(row) for row in range(3)] == [expected.scores(r) for r in range(3)]
    # The last messages have 9, 5 and 1 tokens.
    assert [one.alone for one in made.found()] == [first <= 9, first <= 5, False]
    assert not any(one.alone for one in expected.found())


def test_the_end_counts_where_the_last_message_is_not_judged_or_not_shown() -> None:
    alone, hidden = replace(WINDOW, alone=True), states()
    hidden_last = replace(FIRST_ROW, unread=(4,))
    rows = [hidden_last, SECOND_ROW, THIRD_ROW]
    found = shown(reading(rows, windows=alone, judged=("user",)), hidden).found()
    assert [one.alone for one in found] == [False] * 3
    assert shown(reading([FIRST_ROW, *rows[1:]], windows=alone), hidden).found()[0].alone


def peaked(place: int) -> dict[int, torch.Tensor]:
    """Hidden states whose highest window ends at a place of the first row."""
    hidden = {layer: torch.zeros(len(ROWS), LENGTH, WIDTH) for layer in (1, 2, 3)}
    for k, layer in enumerate(WINDOWED):
        towards = torch.linalg.pinv(torch.cat([WINDOW.query[k], WINDOW.value[k]]))
        hidden[layer][0, place] = towards @ torch.tensor([3.0, 3.0, 3.0, 50.0, 50.0, 50.0])
    return hidden


@pytest.mark.parametrize(
    ("place", "where"),
    [
        # a window of the message's first tokens is clipped at its start
        (5, {"message": 1, "role": "user", "part": 0, "kind": "text", "start": 5, "slots": None}),
        (17, {"message": 3, "role": "user", "part": 0, "kind": "image", "slots": (0, 2, 4)}),
        (18, {"message": 3, "role": "user", "part": 0, "kind": "image", "slots": (0, 3, 4)}),
        (23, {"message": 3, "part": 1, "kind": "text", "start": 20, "stop": 24, "slots": None}),
    ],
)
def test_a_window_is_told_by_its_message_part_and_place(place: int, where: dict) -> None:
    rows = [replace(row, headers=()) for row in ROWS]
    found = shown(reading(rows), peaked(place)).found()[0].where
    assert found is not None
    assert found.reading == "window"
    assert found.start <= place < found.stop
    assert {name: getattr(found, name) for name in where} == where


@pytest.mark.parametrize(("answer", "earlier"), [(1, False), (2, True), (3, True)])
def test_a_message_is_an_earlier_one_once_an_answer_has_come(answer: int, earlier: bool) -> None:
    header = replace(FIRST_ROW.headers[0], message=answer)
    rows = [replace(FIRST_ROW, headers=(header,)), *(replace(r, headers=()) for r in ROWS[1:])]
    hidden = peaked(5)  # in message 1
    found = shown(replace(reading(rows), turns=False), hidden).found()[0]
    assert (found.where.reading, found.where.message) == ("window", 1)
    assert found.earlier is found.where.earlier is earlier


def test_a_window_behind_padding_is_told_in_positions_of_its_own_row() -> None:
    alone = replace(SECOND_ROW, headers=(), turns=SECOND_ROW.turns[:1])
    found = shown(reading([FIRST_ROW, alone, THIRD_ROW]), states()).found()[1].where
    assert found is not None
    assert 1 <= found.start < found.stop <= 6


def test_what_is_read_for_a_fit_is_the_same_hidden_states() -> None:
    hidden = states()
    made = TokenReading(
        rows=ROWS, judged=JUDGED, prompt_len=LENGTH, layers=(1, 2, 3), token_layers=(2,)
    )
    hidden[2][0, 6, 0] = 1e9  # more than float16 holds
    for layer in (1, 2, 3):
        made.see(layer, hidden[layer], 0)
    spans = [(row, turn) for row, turn in made.spans()]
    assert [(row, turn.message) for row, turn in spans] == [(0, 1), (0, 3), (1, 0), (1, 2), (2, 0)]
    for (row, turn), tokens in zip(spans, made.tokens[2], strict=True):
        pad = LENGTH - ROWS[row].length
        there = hidden[2][row, pad + turn.start : pad + turn.stop]
        assert torch.equal(tokens, there.clamp(-65_504, 65_504).half())
    places = [(0, 10), (0, 18), (1, 11 + 6)]
    for layer in (1, 2, 3):
        heads = torch.stack(made.heads[layer])
        assert torch.equal(heads, torch.stack([hidden[layer][row, at] for row, at in places]))
    assert set(made.tokens) == {2}
    assert made.found() == [NOTHING] * 3


def test_a_fit_is_refused_tokens_that_a_shared_start_hid() -> None:
    made = TokenReading(rows=ROWS, judged=JUDGED, prompt_len=LENGTH, layers=(2,), token_layers=(2,))
    with pytest.raises(DetectorError, match="not read from its first own token on"):
        made.see(2, states()[2][:, 8:], 8)  # the first message begins at 5
    made = TokenReading(rows=ROWS, judged=JUDGED, prompt_len=LENGTH, layers=(2,), token_layers=())
    made.see(2, states()[2][:, 12:], 12)
    assert torch.stack(made.heads[2]).isnan().any(dim=1).tolist() == [True, False, False]
