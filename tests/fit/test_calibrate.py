"""Thresholds from benign scores, and from a user's own traffic.

New benign scores beside those of an earlier calibration.
"""

from __future__ import annotations

import json
import logging
import tracemalloc
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from scipy.stats import beta, ks_2samp

from guardrail.artefact.header import Rates
from guardrail.errors import (
    ArtefactMismatchError,
    CalibrationError,
    ConfigurationError,
    DatasetError,
    DetectorError,
    GuardrailError,
    InputError,
)
from guardrail.fit.calibrate import ScoreShift, calibrate, calibration, rate_interval, score_shift
from guardrail.fit.traffic import Placed
from guardrail.guard import Guard
from guardrail.model.load import LoadedModel, wrap_model
from guardrail.policy import Limits, Policy, VideoSampling
from guardrail.stats import Rate, conformal_threshold
from guardrail.testing import tiny_artefact
from guardrail.types import Action, Modality, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guardrail.artefact import Artefact

RATES = Rates(steer=0.05, flag=0.01)


@dataclass
class FakeGuard:
    """Scores a number by itself; text unless its value is given as (score, modality)."""

    artefact: Artefact
    loaded: LoadedModel
    policy: Policy = field(default_factory=lambda: Policy(limits=Limits(queue=64)))
    chunks: list[int] = field(default_factory=list)

    def with_policy(self, policy: Policy) -> Any:
        """Itself: a fake has no windows to stop at."""
        return nullcontext(self)

    def check_batch(
        self, values: Sequence[Any], *, return_exceptions: bool
    ) -> list[Verdict | Exception]:
        assert return_exceptions
        self.chunks.append(len(values))
        return [v if isinstance(v, Exception) else self.verdict(v) for v in values]

    def verdict(self, value: Any) -> Verdict:
        score, modality = value if isinstance(value, tuple) else (value, Modality.TEXT)
        return Verdict(
            action=Action.PASS,
            would_be=Action.PASS,
            score=score,
            tau_steer=0.5,
            tau_flag=1.0,
            layers=(1,),
            modality=modality,
            artefact_id=self.artefact.artefact_id,
            reason="score" if score is not None else "detector_failed",
        )


@pytest.fixture(scope="module")
def artefact(llava: Any) -> Artefact:
    made = tiny_artefact(llava.model, llava.processor, video=False)
    both = {m: made.header.calibration[Modality.TEXT] for m in (Modality.TEXT, Modality.IMAGE)}
    return made.revised(calibration=both, warnings=("kept", "calibration: old"))


@pytest.fixture
def guard(artefact: Artefact, llava: Any) -> FakeGuard:
    return FakeGuard(artefact, wrap_model(llava.model, llava.processor))


def test_thresholds_are_not_set_on_another_model_than_the_artefacts(
    artefact: Artefact, llama: Any
) -> None:
    guard = FakeGuard(artefact, wrap_model(llama.model, llama.processor))
    with pytest.raises(ArtefactMismatchError, match="weights_digest"):
        calibrate(guard, [i / 100 for i in range(150)])
    assert guard.chunks == []


def test_thresholds_are_conformal_quantiles_of_the_scores() -> None:
    scores = [i / 200 for i in range(199)]
    made = calibration(list(reversed(scores)), RATES, source="mine")
    assert made.thresholds.steer == scores[189]  # the 190th of 199: 200 * 0.95
    assert made.thresholds.flag == scores[197]
    assert made.scores == tuple(scores)
    assert (made.n, made.source, made.targets) == (199, "mine", RATES)


def test_intervals_are_those_of_the_share_beyond_an_order_statistic() -> None:
    made = calibration([i / 200 for i in range(199)], RATES, source="mine")
    for action, place in (("steer", 190), ("flag", 198)):
        expected = beta(200 - place, place).interval(0.95)
        assert made.intervals[action] == pytest.approx(expected)
    assert made.intervals["steer"][0] < RATES.steer < made.intervals["steer"][1]


def test_the_upper_end_is_that_of_clopper_and_pearson() -> None:
    low, high = rate_interval([i / 200 for i in range(199)], 0.05)
    counted = Rate(9, 199).interval()
    assert high == pytest.approx(counted[1])
    assert low > counted[0]  # which leaves out what is known of an order statistic's place


@pytest.mark.parametrize("levels", [None, 1000, 150, 30, 4])
@pytest.mark.parametrize("rate", [0.05, 0.01])
def test_the_true_rate_lies_inside_the_interval_as_often_as_stated(
    rate: float, levels: int | None
) -> None:
    rng, covered, above, draws = np.random.default_rng(4), 0, 0, 1500
    for _ in range(draws):
        drawn = rng.random(150)
        if levels is not None:  # scores of a few values, so that many of them tie
            drawn = np.ceil(drawn * levels) / levels
        low, high = rate_interval(drawn.tolist(), rate)
        true = 1 - conformal_threshold(drawn.tolist(), rate)  # of a uniform score, or a rounded one
        covered += low <= true <= high
        above += true > high
    assert above / draws < 0.025 + 3 * np.sqrt(0.025 / draws)
    if levels is None:
        assert covered / draws == pytest.approx(0.95, abs=3.5 * np.sqrt(0.05 * 0.95 / draws))
    else:
        assert covered / draws > 0.93


def test_on_average_the_true_rate_is_at_most_the_target() -> None:
    rng = np.random.default_rng(1)
    true = [1 - conformal_threshold(rng.random(150).tolist(), 0.05) for _ in range(1500)]
    assert np.mean(true) < 0.05 + 3 * np.std(true) / np.sqrt(len(true))


def test_ties_hit_fewer_inputs_than_the_target_never_more() -> None:
    made = calibration([0.0] * 150 + [1.0] * 49, Rates(steer=0.3, flag=0.1), source="mine")
    assert (made.thresholds.steer, made.thresholds.flag) == (0.0, 1.0)
    strict = calibration([0.0] * 150 + [1.0] * 49, Rates(steer=0.2, flag=0.1), source="mine")
    assert strict.thresholds.steer == 1.0


@pytest.mark.parametrize(("n", "fits"), [(98, False), (99, True)])
def test_too_few_inputs_for_the_target_are_refused(n: int, fits: bool) -> None:
    scores = [float(i) for i in range(n)]
    if fits:
        assert calibration(scores, RATES, source="mine").thresholds.flag == 98.0
    else:
        with pytest.raises(
            CalibrationError, match=r"98 benign inputs \(mine\).*at least 99"
        ) as caught:
            calibration(scores, RATES, source="mine")
        # what the message offers instead holds
        offered = float(str(caught.value).split("target to ")[1].split(" ")[0])
        assert offered == pytest.approx(1 / 99, rel=0.01)


def test_own_traffic_makes_a_new_artefact_with_its_parent(guard: FakeGuard) -> None:
    made = calibrate(guard, [i / 100 for i in range(150)])
    assert made.header.parent == guard.artefact.artefact_id
    assert made.artefact_id != guard.artefact.artefact_id
    text = made.header.calibration[Modality.TEXT]
    assert (text.source, text.n) == ("benign traffic", 150)
    assert text.thresholds.steer == 1.43
    assert made.tensors.keys() == guard.artefact.tensors.keys()


def test_a_modality_that_was_not_seen_keeps_its_thresholds(guard: FakeGuard) -> None:
    made = calibrate(guard, [i / 100 for i in range(150)])
    old = guard.artefact.header.calibration[Modality.IMAGE]
    assert made.header.calibration[Modality.IMAGE] == old
    assert "kept" in made.header.warnings
    assert not any("image" in warning for warning in made.header.warnings)


def test_a_modality_with_too_few_requests_keeps_its_thresholds_and_says_so(
    guard: FakeGuard, caplog: Any
) -> None:
    values = [i / 100 for i in range(150)] + [(0.5, Modality.IMAGE)] * 20
    with caplog.at_level(logging.WARNING):
        made = calibrate(guard, values)
    old = guard.artefact.header.calibration
    assert made.header.calibration[Modality.IMAGE] == old[Modality.IMAGE]
    assert made.header.calibration[Modality.TEXT] != old[Modality.TEXT]
    first, second, *_ = made.header.warnings
    assert first == "kept"
    assert second.startswith("calibration: image: 20 benign inputs")
    assert "thresholds kept as they were" in caplog.text


def test_both_modalities_get_their_own(guard: FakeGuard) -> None:
    texts = [i / 100 for i in range(120)]
    images = [(5 + i / 100, Modality.IMAGE) for i in range(120)]
    made = calibrate(guard, [x for pair in zip(texts, images, strict=True) for x in pair])
    both = made.header.calibration
    assert both[Modality.IMAGE].thresholds.flag == pytest.approx(
        both[Modality.TEXT].thresholds.flag + 5
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "no request"),
        ([0.1] * 98, "text: 98 benign inputs"),
        ([0.1] * 5 + [(0.1, Modality.IMAGE)] * 7, "text: 5 .*; image: 7 "),
        ([0.1] * 200 + [None], "the detector failed"),
    ],
)
def test_what_cannot_be_calibrated_on_is_refused(
    guard: FakeGuard, values: list, message: str
) -> None:
    with pytest.raises(CalibrationError, match=message):
        calibrate(guard, values)


def test_a_long_stream_is_scored_in_chunks_the_queue_can_hold(guard: FakeGuard) -> None:
    calibrate(guard, (i / 100 for i in range(150)))
    assert guard.chunks == [64, 64, 22]


def test_rates_the_wrong_way_round_are_refused(guard: FakeGuard) -> None:
    with pytest.raises(ConfigurationError, match="steer_rate"):
        calibrate(guard, [0.1] * 150, steer_rate=0.01, flag_rate=0.05)
    assert guard.chunks == []


def test_rates_that_are_no_shares_are_refused_before_anything_is_scored(guard: FakeGuard) -> None:
    with pytest.raises((ValidationError, GuardrailError)):
        calibrate(guard, [0.1] * 150, steer_rate=1.5)
    assert guard.chunks == []


def test_the_new_artefact_remembers_its_direct_parent_only(guard: FakeGuard) -> None:
    old = guard.artefact
    first = calibrate(guard, [i / 100 for i in range(150)])
    remembered = first.header.extra["calibrated_from"]
    text = old.header.calibration[Modality.TEXT]
    assert remembered["artefact_id"] == old.artefact_id
    assert remembered["calibration"]["text"] == {
        "thresholds": {"steer": text.thresholds.steer, "flag": text.thresholds.flag},
        "targets": {"steer": 0.05, "flag": 0.01},
        "source": "made up for tests",
        "n": 199,
    }
    guard.artefact = first
    second = calibrate(guard, [i / 50 for i in range(150)])
    remembered = second.header.extra["calibrated_from"]
    assert remembered["artefact_id"] == first.artefact_id
    assert remembered["calibration"]["text"]["source"] == "benign traffic"
    assert old.artefact_id not in json.dumps(second.header.extra)


def test_other_notes_of_the_artefact_stay(guard: FakeGuard) -> None:
    guard.artefact = guard.artefact.revised(extra={"mine": [1]})
    assert calibrate(guard, [i / 100 for i in range(150)]).header.extra["mine"] == [1]


def test_traffic_that_scores_differently_than_before_is_told(guard: FakeGuard, caplog: Any) -> None:
    before = guard.artefact.header.calibration[Modality.TEXT].scores
    now = [0.4 + i / 150 for i in range(150)]
    with caplog.at_level(logging.WARNING):
        made = calibrate(guard, now)
    told = made.header.extra["calibration"]["text"]["compared"]
    assert told["distance"] == pytest.approx(ks_2samp(now, before).statistic)
    assert (told["n_now"], told["n_before"]) == (150, 199)
    (warning,) = [w for w in made.header.warnings if "differently" in w]
    assert "text: this traffic scores differently (higher)" in warning
    assert "made up for tests" in warning
    assert warning.removeprefix("calibration: ") in caplog.text


def test_traffic_like_that_before_is_no_cause_for_a_warning(guard: FakeGuard) -> None:
    made = calibrate(guard, [0.001 + i / 200 for i in range(199)])
    assert made.header.warnings == ("kept",)
    assert made.header.extra["calibration"]["text"]["compared"]["p_value"] > 0.9


def test_of_long_traffic_a_sample_is_kept_and_both_counts_are_told(guard: FakeGuard) -> None:
    made = calibrate(guard, (i / 5000 for i in range(5000)), keep=400, seed=3)
    text = made.header.calibration[Modality.TEXT]
    told = made.header.extra["calibration"]["text"]
    assert (text.n, told["seen"], told["kept"]) == (400, 5000, 400)
    assert set(text.scores) <= {i / 5000 for i in range(5000)}
    # within five standard deviations of the order statistic's share
    assert abs(text.thresholds.steer - 0.95) < 5 * np.sqrt(0.05 * 0.95 / 400)
    again = calibrate(guard, (i / 5000 for i in range(5000)), keep=400, seed=3)
    assert again.artefact_id == made.artefact_id


def test_memory_does_not_grow_with_the_traffic(guard: FakeGuard) -> None:
    def peak(n: int) -> int:
        guard.chunks.clear()
        tracemalloc.start()
        calibrate(guard, ((i % 997) / 997 for i in range(n)), keep=200)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    short = peak(2_000)
    assert peak(50_000) < short + 100_000  # the scores alone would take 1.6 MB


@pytest.mark.parametrize(("keep", "fits"), [(98, False), (99, True)])
def test_a_sample_too_small_for_the_target_is_refused_before_scoring(
    guard: FakeGuard, keep: int, fits: bool
) -> None:
    values = [i / 300 for i in range(300)]
    if fits:
        made = calibrate(guard, values, keep=keep)
        assert made.header.calibration[Modality.TEXT].n == 99
        return
    with pytest.raises(ConfigurationError, match=r"98 kept scores.*raise keep \(--keep\) to 99"):
        calibrate(guard, values, keep=keep)
    assert guard.chunks == []


def test_more_than_an_artefact_holds_is_refused(guard: FakeGuard) -> None:
    with pytest.raises(ConfigurationError, match="at most 50000"):
        calibrate(guard, [0.1] * 200, keep=10**6)


def test_a_full_sample_of_both_modalities_keeps_the_artefact_small(
    guard: FakeGuard, tmp_path: Any
) -> None:
    rng = np.random.default_rng(0)
    scores = np.sort(rng.normal(size=10_000)).tolist()
    row = calibration(scores, RATES, source="benign traffic")
    both = dict.fromkeys((Modality.TEXT, Modality.IMAGE), row)
    path = guard.artefact.revised(calibration=both).save(tmp_path / "x.safetensors")
    assert path.stat().st_size < 500_000  # beside the 1.5 MB of a 7B model's directions


@pytest.mark.parametrize(
    ("bad", "kind", "message"),
    [
        (InputError("no picture"), DatasetError, r"b\.jsonl, line 7: .*no picture"),
        (DetectorError("broken"), CalibrationError, r"b\.jsonl, line 7: the detector failed"),
        (None, CalibrationError, r"b\.jsonl, line 7: the detector failed"),
        (OSError("disk"), OSError, "^disk$"),
    ],
)
def test_a_request_that_cannot_be_scored_is_named(
    guard: FakeGuard, bad: Any, kind: type[Exception], message: str
) -> None:
    values = [i / 100 for i in range(150)]
    with pytest.raises(kind, match=message):
        calibrate(guard, [*values, Placed("b.jsonl, line 7", bad), *values])


def test_without_a_place_it_is_named_by_its_number(guard: FakeGuard) -> None:
    with pytest.raises(DatasetError, match=r"^request 151: cannot be scored: odd"):
        calibrate(guard, [*(i / 100 for i in range(150)), InputError("odd")])


def test_errors_are_left_out_and_counted_when_asked_for(guard: FakeGuard) -> None:
    values: list[Any] = [i / 198 for i in range(198)]
    made = calibrate(guard, [*values, InputError("x"), None], skip_errors=True)
    assert made.header.calibration[Modality.TEXT].n == 198
    assert "calibration: 2 of 200 requests could not be scored" in made.header.warnings


def test_more_than_one_in_a_hundred_errors_are_refused(guard: FakeGuard) -> None:
    values: list[Any] = [i / 198 for i in range(198)]
    bad = [Placed(f"line {i}", InputError("x")) for i in range(3)]
    with pytest.raises(CalibrationError, match=r"3 of 201 .* more than 1%.* first of them line 0"):
        calibrate(guard, [*values, *bad], skip_errors=True)


def test_errors_that_are_not_a_requests_own_are_never_left_out(guard: FakeGuard) -> None:
    values: list[Any] = [*(i / 300 for i in range(300)), MemoryError()]
    with pytest.raises(MemoryError):
        calibrate(guard, values, skip_errors=True)


def film(colours: Sequence[int]) -> list[dict[str, Any]]:
    frames = [Image.new("RGB", (40, 40), (c, 255 - c, c // 2)) for c in colours]
    content = [{"type": "video", "video": frames}, {"type": "text", "text": "what is this"}]
    return [{"role": "user", "content": content}]


def test_videos_are_calibrated_on_the_highest_of_all_their_windows(llava: Any) -> None:
    """Also under thresholds at which a guard that acts would stop at the first window."""
    made = tiny_artefact(llava.model, llava.processor, tau_steer=-2e6, tau_flag=-1e6)
    films = [film([(37 * i + 50 * j) % 256 for j in range(5)]) for i in range(19)]
    policy = Policy(video=VideoSampling(window=2, answer_frames=2))
    with Guard((llava.model, llava.processor), made, policy=policy) as guard:
        assert guard.check(films[0]).window.of == 1  # it stops there
        found = calibrate(guard, [*films, *["text"] * 3], steer_rate=0.1, flag_rate=0.05)
    shadow = policy.model_copy(update={"mode": "shadow"})
    with Guard((llava.model, llava.processor), made, policy=shadow) as guard:
        verdicts = [guard.check(value) for value in films]
    assert {verdict.window.of for verdict in verdicts} <= {3, 4}  # the answer's frames make 4
    row = found.header.calibration[Modality.VIDEO]
    wanted = sorted(verdict.score for verdict in verdicts)
    assert row.scores == pytest.approx(wanted, abs=1e-4)
    assert row.source == "benign traffic"
    assert not [w for w in found.header.warnings if w.startswith("video: ")]
    sampling = found.header.extra["calibration"]["video"]["sampling"]
    assert sampling == policy.video.model_dump(mode="json")


def test_a_calibration_without_videos_still_says_whose_thresholds_they_have(
    llava: Any, guard: FakeGuard
) -> None:
    fitted = tiny_artefact(llava.model, llava.processor)
    both = {m: fitted.header.calibration[Modality.TEXT] for m in (Modality.TEXT, Modality.IMAGE)}
    fitted = fitted.revised(calibration=both)
    made = calibrate(FakeGuard(fitted, guard.loaded), [i / 200 for i in range(150)])
    notes = [w for w in made.header.warnings if w.startswith("video: ")]
    assert len(notes) == 1
    assert "thresholds of image inputs" in notes[0]
    again = calibrate(FakeGuard(made, guard.loaded), [i / 200 for i in range(150)])
    assert [w for w in again.header.warnings if w.startswith("video: ")] == notes


def test_the_distance_and_medians_are_those_of_scipy_and_numpy() -> None:
    rng = np.random.default_rng(0)
    now, before = rng.normal(0.4, 1, 300).tolist(), rng.normal(0, 1, 500).tolist()
    found = score_shift(now, before)
    exact = ks_2samp(now, before)
    assert found.distance == pytest.approx(exact.statistic)
    assert found.p_value == pytest.approx(exact.pvalue, rel=0.2)
    assert found.median_now == pytest.approx(np.median(now))
    assert (found.n_now, found.n_before, found.notable) == (300, 500, True)


@pytest.mark.parametrize(
    ("distance", "p_value", "notable"),
    [(0.3, 1e-5, True), (0.3, 0.02, False), (0.09, 1e-5, False)],
)
def test_only_what_is_both_large_and_beyond_chance_is_notable(
    distance: float, p_value: float, notable: bool
) -> None:
    shift = ScoreShift(
        distance=distance, p_value=p_value, n_now=9, n_before=9, median_now=0, median_before=1
    )
    assert shift.notable is notable


def test_without_a_shift_few_are_notable_ties_included() -> None:
    rng = np.random.default_rng(2)
    found = [
        score_shift(np.round(rng.normal(size=150), 1), np.round(rng.normal(size=200), 1)).notable
        for _ in range(400)
    ]
    assert sum(found) <= 11  # of 400, at 1 %: more has a chance of 0.003


@pytest.mark.parametrize(("now", "way"), [(0.5, "higher"), (0.2, "about as high"), (0, "lower")])
def test_the_way_is_that_of_the_medians(now: float, way: str) -> None:
    shift = score_shift([now - 9, now, now + 9], [0.1, 0.2, 0.3])
    assert f"scores differently ({way})" in shift.describe(source="safe prompts")


def test_it_is_told_in_words_with_every_number() -> None:
    shift = ScoreShift(
        distance=0.31, p_value=2e-7, n_now=150, n_before=199, median_now=0.5, median_before=0.125
    )
    said = shift.describe(source="safe prompts")
    for part in ("higher", "safe prompts", "0.500", "n = 150", "0.125", "n = 199", "D = 0.310"):
        assert part in said
    assert "p = 2e-07" in said
