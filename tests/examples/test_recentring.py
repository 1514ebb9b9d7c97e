"""What pictures do to scores comes out as it was made to be, and is told with its n."""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from scipy import stats

from guardrail.fit.dataset import load_contrast, neutral_prompts
from guardrail.guard import Guard
from guardrail.stats import Rate
from guardrail.testing import tiny_artefact
from guardrail.types import TextPart

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from guardrail.artefact import Artefact
    from guardrail.types import Request

BENCHMARKS = Path(__file__).parents[2] / "examples" / "benchmarks"
CONTRAST = load_contrast()
UNSAFE = {p.text.lower() for p in CONTRAST.prompts if p.label == "unsafe"}
ADDED: dict[str, Callable[[float, int], float]] = {
    "constant": lambda _score, _words: 0.4,
    "diluting": lambda _score, words: 4 / (4 + words),
    "contracting": lambda score, _words: 0.4 - 0.25 * score,
}


@pytest.fixture(scope="module")
def scripts() -> Any:
    before = list(sys.path)
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import recentring
        import recentring_figures
    finally:
        sys.path[:] = before
    return SimpleNamespace(main=recentring, figures=recentring_figures)


def words(request: Request) -> str:
    part = request.messages[0].parts[-1]
    assert isinstance(part, TextPart)
    return part.text


class StandIn:
    """One layer of width one: a text's score, and what the picture beside it adds."""

    def __init__(self, how: str = "constant") -> None:
        self.how = how
        self.asked: dict[str, Sequence[Request]] = {}

    def alone(self, text: str) -> float:
        return float(text.lower().split("\n")[0] in UNSAFE) + 0.4 * (
            zlib.crc32(text.encode()) % 1000 / 1000 - 0.5
        )

    def added(self, text: str) -> float:
        return ADDED[self.how](self.alone(text), len(text.split()))

    def __call__(self, requests: Sequence[Request], stage: str) -> torch.Tensor:
        self.asked[stage] = requests
        texts = [words(request) for request in requests]
        rows = [
            self.alone(text) + len(request.images) * self.added(text)
            for text, request in zip(texts, requests, strict=True)
        ]
        return torch.tensor(rows)[:, None, None]


def report_on(scripts: Any, model: StandIn, kinds: Sequence[str] = ("colour", "noise")) -> Any:
    directions = scripts.main.fitted(model, CONTRAST, 32)
    layers = scripts.main.layers_of(directions, None, ())
    readouts = scripts.main.readouts_of(model, CONTRAST, directions, layers, None)
    return scripts.main.measure(model, CONTRAST, readouts, per_class=24, kinds=kinds)


@pytest.mark.parametrize("kind", ["all", "colour", "noise"])
@pytest.mark.parametrize(
    ("how", "slope", "intercept"), [("constant", 1, 0.4), ("contracting", 0.75, 0.4)]
)
def test_the_line_is_what_the_picture_was_made_to_do(
    scripts: Any, how: str, slope: float, intercept: float, kind: str
) -> None:
    (found,) = report_on(scripts, StandIn(how))["readouts"].values()
    row = found["shifts"][kind]
    assert row["slope"]["value"] == pytest.approx(slope, abs=1e-5)
    assert row["intercept"]["value"] == pytest.approx(intercept, abs=0.05)
    assert row["r"]["value"] == pytest.approx(1)
    for figure in ("slope", "intercept", "r"):
        low, high = row[figure]["low"], row[figure]["high"]
        assert low == pytest.approx(high, abs=1e-5)


def test_a_constant_is_taken_away_whole_and_costs_no_rate(scripts: Any) -> None:
    (found,) = report_on(scripts, StandIn("constant"))["readouts"].values()
    left, rates = found["shifts"]["all"]["left"], found["rates"]
    gap = left["as read"]["safe"]["value"] / 0.4
    assert gap == pytest.approx(1, abs=0.1)
    for label in ("safe", "unsafe"):
        assert left["as read"][label]["value"] == pytest.approx(0.4 * gap, abs=1e-5)
        for how in ("less a constant", "re-centred"):
            assert left[how][label]["value"] == pytest.approx(0, abs=1e-5)
            assert rates[how]["all"] == rates["text"]
    assert rates["as read"]["all"]["fpr"]["value"] > rates["text"]["fpr"]["value"]


def test_a_constant_that_mends_safe_requests_lowers_unsafe_ones_and_a_line_mends_both(
    scripts: Any,
) -> None:
    (found,) = report_on(scripts, StandIn("contracting"))["readouts"].values()
    left = found["shifts"]["all"]["left"]
    assert abs(left["less a constant"]["safe"]["value"]) < 0.06
    assert left["less a constant"]["unsafe"]["high"] < -0.2
    for label in ("safe", "unsafe"):
        assert left["re-centred"][label]["value"] == pytest.approx(0, abs=1e-4)
    assert found["rates"]["re-centred"]["all"] == found["rates"]["text"]


def test_shifts_are_the_mean_of_each_request_less_itself(scripts: Any) -> None:
    model = StandIn("diluting")
    (found,) = report_on(scripts, model)["readouts"].values()
    asked = [words(r) for r in model.asked["requests alone"]]
    directions = scripts.main.fitted(model, CONTRAST, 32)
    for label in ("safe", "unsafe"):
        added = [model.added(t) for t in asked if (t.lower() in UNSAFE) == (label == "unsafe")]
        left = found["shifts"]["all"]["left"]
        assert len(added) == left["as read"][label]["n"] == 24
        wanted = sum(added) / len(added) / float(directions.norms[0])
        assert left["as read"][label]["value"] == pytest.approx(wanted, abs=1e-5)
        assert left["less a constant"][label]["high"] < 0  # neutral prompts are shorter


def test_lines_and_constants_are_of_the_fit_split_and_neutral_prompts(scripts: Any) -> None:
    model = StandIn("contracting")
    report_on(scripts, model)
    fit = {p.text.lower() for p in CONTRAST.prompts if p.in_split == "fit"}
    beside = model.asked["fit split, beside a picture"]
    texts = [words(r).lower().split("\n")[0] for r in beside]
    assert set(texts) <= fit
    assert {len(r.images) for r in beside} == {1}
    assert sum(text in UNSAFE for text in texts) * 2 == len(texts)
    neutral = {words(r) for r in model.asked["neutral, pictured"]}
    assert neutral <= set(neutral_prompts("fit"))


def test_requests_are_held_out_and_see_every_kind_both_classes_the_same(scripts: Any) -> None:
    model = StandIn()
    report = report_on(scripts, model, ("colour", "shapes", "photograph"))
    alone = model.asked["requests alone"]
    texts = [words(r) for r in alone]
    prompts = {p.text: p for p in CONTRAST.prompts}
    assert {prompts[text].in_split for text in texts} == {"calibrate"}
    kinds = [prompts[text].kind for text in texts]
    assert {k: kinds.count(k) for k in kinds} == {
        "matched": 8,
        "near": 8,
        "ordinary": 8,
        "unsafe": 24,
    }
    assert report["requests"] == [prompts[text].id for text in texts]
    seen = set()
    for kind in report["kinds"]:
        beside = model.asked[f"requests beside a picture, {kind}"]
        assert [words(r) for r in beside] == texts
        shown = [r.images[0].tobytes() for r in beside]
        assert shown[:24] == shown[24:]
        assert len(set(shown)) == (9 if kind == "photograph" else 24)
        seen |= set(shown)
    assert len(seen) == 24 + 24 + 9
    fitted_on = {words(r) for r in model.asked["fit split, unsafe"]}
    assert {prompts[text].in_split for text in fitted_on} == {"fit"}


@pytest.fixture
def made(scripts: Any) -> Any:
    """Scores of 40 + 60 requests beside three kinds of pictures, the last of which adds most."""
    rng = np.random.default_rng(4)
    unsafe = np.arange(100) >= 40
    text = unsafe + rng.normal(0, 0.4, 100)
    picture = 0.3 + 0.6 * text[:, None] + rng.normal(0, 0.2, (100, 3)) + np.array([0, 0, 0.5])
    beside = dict(zip(scripts.figures.HOW, (picture, picture - 0.1, picture - 0.4), strict=True))
    return scripts.figures.Scores(unsafe, text, beside, rng.normal(0, 0.4, 200))


def test_lines_are_those_of_all_rows(scripts: Any, made: Any) -> None:
    found = scripts.figures.figures(made, ["a", "b", "c"])["shifts"]
    for kind, columns in {"all": [0, 1, 2], "b": [1], "c": [2]}.items():
        x = np.concatenate([made.text for _ in columns])
        y = np.concatenate([made.beside["as read"][:, k] for k in columns])
        slow = stats.linregress(x, y)
        row = found[kind]
        assert row["slope"]["value"] == pytest.approx(slow.slope)
        assert row["intercept"]["value"] == pytest.approx(slow.intercept)
        assert row["r"]["value"] == pytest.approx(slow.rvalue)
        for figure in ("slope", "intercept", "r"):
            assert row[figure]["low"] < row[figure]["value"] < row[figure]["high"]
    reach = (found["b"]["slope"]["high"] - found["b"]["slope"]["low"]) / 2
    assert reach == pytest.approx(
        1.96 * stats.linregress(made.text, made.beside["as read"][:, 1]).stderr, rel=0.2
    )
    read = {kind: row["left"]["as read"] for kind, row in found.items()}
    assert read["c"]["safe"]["low"] > read["b"]["safe"]["high"]


def test_shifts_have_the_interval_of_their_requests(scripts: Any, made: Any) -> None:
    found = scripts.figures.figures(made, ["a", "b", "c"])["shifts"]
    shift = [
        p - t
        for p, t, u in zip(made.beside["as read"][:, 1], made.text, made.unsafe, strict=True)
        if u
    ]
    ends = stats.ttest_1samp(shift, 0).confidence_interval()
    row = found["b"]["left"]["as read"]["unsafe"]
    assert (row["low"], row["high"]) == pytest.approx((ends.low, ends.high))
    for how, less in (("less a constant", 0.1), ("re-centred", 0.4)):
        left = found["b"]["left"][how]["unsafe"]
        assert left["value"] == pytest.approx(row["value"] - less)


def test_showing_a_request_the_same_again_makes_nothing_surer(scripts: Any, made: Any) -> None:
    once, thrice = (
        scripts.figures.figures(
            scripts.figures.Scores(
                made.unsafe,
                made.text,
                {how: np.repeat(x[:, :1], times, axis=1) for how, x in made.beside.items()},
                made.benign,
            ),
            [str(k) for k in range(times)],
        )
        for times in (1, 3)
    )
    flat = [
        json.loads(json.dumps(f), parse_float=lambda x: round(float(x), 9)) for f in (once, thrice)
    ]
    assert flat[0]["shifts"]["all"] == flat[1]["shifts"]["all"]
    assert flat[0]["rates"]["as read"]["all"] == flat[1]["rates"]["as read"]["all"]


def test_rates_are_counted_above_what_the_safe_texts_rarely_exceed(scripts: Any, made: Any) -> None:
    found = scripts.figures.figures(made, ["a", "b", "c"])
    assert sum(score > found["threshold"] for score in made.benign.tolist()) == 10  # of 200
    flags = [
        bool(s > found["threshold"])
        for s, u in zip(made.beside["as read"][:, 2], made.unsafe, strict=True)
        if u
    ]
    slow = Rate.of(flags)
    row = found["rates"]["as read"]["c"]["tpr"]
    assert row["value"] == pytest.approx(slow.value)
    assert (row["low"], row["high"]) == pytest.approx(slow.interval())
    every = np.mean([found["rates"]["as read"][kind]["tpr"]["value"] for kind in "abc"])
    assert found["rates"]["as read"]["all"]["tpr"]["value"] == pytest.approx(float(every))


@pytest.mark.parametrize(("m", "hits"), [(6, 0), (20, 1), (292, 14)])
def test_the_threshold_lets_at_most_one_in_twenty_through(scripts: Any, m: int, hits: int) -> None:
    scores = np.random.default_rng(1).permutation(m).astype(float)
    assert sum(scores > scripts.figures.threshold_at_fpr(scores, 0.05)) == hits


def test_a_share_of_none_or_all_still_has_an_interval(scripts: Any) -> None:
    for value in (False, True):
        found = scripts.figures.share_of(np.full((30, 4), value))
        assert (found["low"], found["high"]) == pytest.approx(Rate.of([value] * 30).interval())
        assert found["n"] == 30


@pytest.fixture(scope="module")
def tiny_folder(llava: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llava")
    llava.model.save_pretrained(folder)
    llava.processor.save_pretrained(folder)
    return folder


def run(scripts: Any, folder: Path, out: Path, **options: Any) -> tuple[dict[str, Any], str]:
    readme = out / "README.md"
    readme.write_text("x\n<!-- table: recentring -->\nold\n<!-- end -->\n", "utf-8")
    defaults = {"artefact": None, "layer": None, "trust_remote_code": False, "per_kind": 8}
    scripts.main.main(
        **defaults | {"model": folder, "out": out, "readme": readme, "per_class": 6} | options,
        kind=["colour", "photograph"],
    )
    return json.loads((out / "recentring.json").read_text("utf-8")), readme.read_text("utf-8")


def test_the_script_reads_a_model_without_artefact(
    scripts: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    report, text = run(scripts, tiny_folder, tmp_path)
    assert report["artefact"] is None
    assert report["n"] == {"safe": 6, "unsafe": 6, "benign": 292}
    assert all(name.startswith("means, layer ") for name in report["readouts"])
    assert "old" not in text
    assert "6 safe and 6 unsafe held-out requests" in text
    assert "Directions: 8 prompts of each kind" in text
    assert "at most 5 % of 292 safe texts" in text
    name, found = next(iter(report["readouts"].items()))
    shift = found["shifts"]["photograph"]["left"]["as read"]["safe"]["value"]
    assert f"| {name} | photograph | {shift:+.2f} (" in text
    again, _ = run(scripts, tiny_folder, tmp_path)
    assert again == report


def test_with_an_artefact_the_scores_are_those_of_its_guard(
    scripts: Any, llava: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    from guardrail.model.load import load_model

    loaded = load_model(tiny_folder)
    artefact = tiny_artefact(loaded.model, loaded.processor)
    path = artefact.save(tmp_path / "tiny.guard.safetensors")
    report, text = run(scripts, tiny_folder, tmp_path, artefact=path)
    assert f"Directions: {artefact.artefact_id}." in text
    assert report["artefact"] == artefact.artefact_id
    at = artefact.header.steering.layer
    names = [f"means, layer {i}" for i in (at - 1, at, at + 1) if i < 3]  # of four
    *means, own = report["readouts"]
    assert means == names
    found = report["readouts"][own]
    texts = [next(p.text for p in CONTRAST.prompts if p.id == i) for i in report["requests"]]
    shown = scripts.main.picture("photograph", 1)
    part = {"type": "image", "image": shown}
    chat = [{"role": "user", "content": [part, {"type": "text", "text": texts[7]}]}]
    with Guard(loaded, ends_alone(artefact)) as guard:
        alone, beside = guard.check(texts[7]).score, guard.check(chat).score
    assert found["scores"]["text"][7] == pytest.approx(alone, abs=1e-4)
    line = artefact.header.recentring["image"].score
    shown_score = (found["scores"]["picture"][7][1] - line.intercept) / line.slope
    assert shown_score == pytest.approx(beside, abs=1e-4)


def ends_alone(artefact: Artefact) -> Artefact:
    """The same without windows, as the script reads it."""
    kept = {n: t for n, t in artefact.tensors.items() if not n.startswith("window_")}
    return artefact.revised(tensors=kept, windows=None)


def test_a_model_without_eyes_and_a_layer_without_direction_are_refused(
    scripts: Any, tiny_of: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match="layers that have one"):
        run(scripts, tiny_folder, tmp_path, layer=[77])
    blind = tiny_of("llama")
    blind.model.save_pretrained(tmp_path / "llama")
    blind.processor.save_pretrained(tmp_path / "llama")
    with pytest.raises(SystemExit, match="takes no pictures"):
        run(scripts, tmp_path / "llama", tmp_path)
