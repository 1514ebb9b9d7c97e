"""The evaluation's page says every figure with its n, and says in words what is missing."""

from __future__ import annotations

import copy
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from guardrail.errors import ConfigurationError
from guardrail.evaluation.schema import Report
from guardrail.report import evaluation_page
from guardrail.report.ranking import false_positives, misses

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\" onload='x' $a_{b"
_VOID = {"meta", "link", "br", "img", "path", "use", "rect"}


class Reader(HTMLParser):
    """The page's words, tags and attributes; an unbalanced tag is an error."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words += data


def words(html: str) -> str:
    return re.sub(r"\s+", " ", Reader(html).words)


def lean(made: dict[str, Any]) -> dict[str, Any]:
    """A report whose page has few figures, each of which takes a while to draw."""
    return made | {"layers": [], "strength": [], "controls": []}


def test_the_page_holds_what_the_report_says(report, pictures):
    made = report(12)
    text = words(evaluation_page(made, base=pictures))
    for said in (
        "example/tiny-reader-135m",
        "guard-0123456789abcdef",
        "48 (24 harmful, 24 harmless)",
        "only 40 harmless inputs",
        "1 May 2025, 10:00 UTC",
        "Its own error was measured on answers labelled by hand: 86 answers",
        "the pictures' words are not known",
        "The score is read at layers 14, 15.",
        "The direction is added at layer 18.",
        "5 min 11 s",
    ):
        assert said in text, said
    for group in made["groups"]:
        share = next(iter(group["actions"].values()))["passed"]
        assert f"{share['n'] - share['hits']} of {share['n']}" in text


def test_warnings_stand_before_the_figures(report):
    html = evaluation_page(lean(report(4, ("text",))))
    assert 0 < html.index('class="warnings"') < html.index('id="summary"') < html.index("<figure>")


def test_the_same_report_gives_the_same_page(report):
    assert evaluation_page(lean(report(4, ("text",)))) == evaluation_page(
        lean(report(4, ("text",)))
    )


def test_ids_are_unique_and_links_lead_somewhere(report, pictures):
    page = Reader(evaluation_page(report(8), base=pictures))
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    links = [v for n, v in page.attributes if n in ("href", "xlink:href") and v != "data:,"]
    assert links
    assert {link.removeprefix("#") for link in links} <= set(ids)


def test_text_from_data_is_never_markup(report):
    made = report(6)
    item = made["items"][0] | {"action": "pass", "score": -9.0}
    for key in ("id", "category", "source", "text", "plain_answer", "guarded_answer"):
        item[key] = EVIL
    made["items"][0] = item
    made["model"] = made["guardrail_version"] = made["created"] = EVIL
    made["artefact"]["artefact_id"] = EVIL
    made["policy"][EVIL] = {EVIL: [EVIL]}
    made["judge"]["name"] = made["judge"]["sample"] = EVIL
    made["warnings"] = [EVIL]
    made["timings"][0]["stage"] = EVIL
    made["controls"][1]["skipped"]["text_baseline"] = EVIL
    for group in made["groups"]:
        group["name"] = EVIL
    html = evaluation_page(made)
    page = Reader(html)
    assert not {"script", "iframe", "object", "form"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert {v for n, v in page.attributes if n == "src"} <= {""}
    assert page.words.count("<script>alert(1)</script>") > 15


def test_pictures_are_shown_where_they_can_be_read(report, pictures):
    made = lean(report(30, ("image",)))
    html = evaluation_page(made, base=pictures)
    sources = [v for n, v in Reader(html).attributes if n == "src"]
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    worst = [*false_positives(made), *misses(made)]
    damaged = [item for item in worst if item["image"] == "pictures/3.png"]
    assert len(sources) == len(worst) - len(damaged)
    assert words(html).count("no picture") == len(damaged)


@pytest.mark.parametrize("path", ["../../../../etc/passwd", "pictures/3.png", "gone.png", None])
def test_a_picture_that_cannot_be_read_is_said_to_be_missing(report, pictures, path):
    made = lean(report(30, ("image",)))
    for item in made["items"]:
        item["image"] = path
    html = evaluation_page(made, base=pictures)
    assert "<img" not in html
    assert "no picture" in words(html)
    assert "root:" not in html


def without_answers(made: dict[str, Any]) -> dict[str, Any]:
    for item in made["items"]:
        item |= dict.fromkeys(("plain_refused", "guarded_refused", "plain_answer",
                               "guarded_answer"))  # fmt: skip
    for group in made["groups"]:
        group["refusals"] = {}
    return made | {"quality": None, "judge": None}


def test_without_answers_the_page_says_so(report):
    made = without_answers(lean(report(6, ("text",))))
    Report.model_validate(made)
    text = words(evaluation_page(made))
    assert "No answers were generated, so refusals were not measured." in text
    assert "there was nothing to judge" in text
    assert "Not measured: no answers were generated." in text


def test_without_controls_layers_or_strengths_the_page_says_so(report):
    made = report(6, ("text",)) | {"controls": [], "layers": [], "strength": [], "timings": [],
                        "warnings": [], "thresholds": {}}  # fmt: skip
    Report.model_validate(made)
    html = evaluation_page(made)
    text = words(html)
    assert "No controls were run." in text
    assert "No layer could be measured" in text
    assert "No steering strengths are recorded." in text  # whether it detects only is not known
    assert "No threshold is in force." in text
    assert 'class="warnings"' not in html


@pytest.mark.parametrize("label", ["harmful", "harmless"])
def test_one_label_alone_gives_a_page(report, label):
    made = lean(report(6, ("text",)))
    made["items"] = [item for item in made["items"] if item["label"] == label]
    other = "harmless" if label == "harmful" else "harmful"
    for group in made["groups"]:
        group["separation"] = None
        group["actions"].pop(other, None)
        group["refusals"].pop(other, None)
        group[f"n_{other}"] = 0
    made["groups"] = [g for g in made["groups"] if g["actions"]]
    Report.model_validate(made)
    text = words(evaluation_page(made))
    assert "only one label is present" in text
    assert "There is no ROC curve" in text
    assert f"There were no {other} inputs." in text


def test_no_inputs_at_all_give_a_page(report):
    made = report(1) | {"items": [], "groups": [], "controls": [], "layers": []}
    made = without_answers(made)
    Report.model_validate(made)
    assert "The report holds no inputs." in words(evaluation_page(made))


def test_a_report_without_content_shows_none(report):
    made = lean(report(30, ("image",)))
    for item in made["items"]:
        item |= dict.fromkeys(("text", "image", "plain_answer", "guarded_answer"))
    text = words(evaluation_page(made))
    assert "The report was made without content." in text
    assert "Model alone: not refused" in text


def test_optional_figures_that_are_none_are_said_in_words(report):
    made = lean(report(6, ("text",)))
    made["quality"] |= {"kl_steered": None, "kl_passed_max": None, "exact_match_passed": None}
    made["judge"] |= {"false_refusals": None, "missed_refusals": None}
    Report.model_validate(made)
    text = words(evaluation_page(made))
    assert "none steered" in text
    assert "none passed" in text
    assert text.count("not measured") >= 3


def test_flagged_harmless_inputs_are_said_to_be_left_out_of_the_quality(report):
    made = lean(report(6, ("text",)))
    made["quality"]["n_flagged"] = 3
    assert "3 more were flagged: they have no answer" in words(evaluation_page(made))
    made["quality"] = None
    text = words(evaluation_page(made))
    assert "Not measured: the guard flagged all 6 harmless inputs" in text


def test_an_artefact_that_only_detects_is_told_from_one_without_a_record(report):
    made = lean(report(2, ("text",)))
    made["artefact"]["steering"] = None
    assert "the artefact only detects" in words(evaluation_page(made))
    made["artefact"]["steering"] = {"layer": 3}
    assert "the artefact only detects" not in words(evaluation_page(made))


@pytest.mark.parametrize(
    ("value", "said"), [(1.7976931348623157e308, "flag at infinity"), (2e9, "flag at 2e+09")]
)
def test_a_threshold_out_of_reach_does_not_stretch_the_figures(report, value, said):
    made = lean(report(20, ("text",)))
    plain = evaluation_page(made)
    made["thresholds"] = {"text": {"steer": 0.62, "flag": value}}
    html = evaluation_page(made)
    assert f"Out of the figure: {said}." in words(html)
    assert "Upright lines: the thresholds in force." in words(html)
    assert "1797693" not in html
    assert len(html) < len(plain) + 1000


def test_the_main_figures_stand_in_their_own_columns(report):
    made = lean(report(30, ("text",)))
    (group,) = [g for g in made["groups"] if g["by"] == "modality"]
    html = evaluation_page(made)
    table = html[html.index("Main figures") : html.index('id="separation"')]
    cells = [words(cell.split("</td>")[0]) for cell in table.split("<td")[1:]]
    refused, passed = group["refusals"]["harmful"], {k: v["passed"] for k, v in
                                                     group["actions"].items()}  # fmt: skip
    counts = [
        (passed["harmful"]["n"] - passed["harmful"]["hits"], passed["harmful"]["n"]),
        (passed["harmless"]["n"] - passed["harmless"]["hits"], passed["harmless"]["n"]),
        (refused["plain"]["hits"], refused["plain"]["n"]),
        (refused["guarded"]["hits"], refused["guarded"]["n"]),
    ]
    assert len(set(counts)) == 4
    assert f"{group['separation']['auroc']['value']:.3f}" in cells[1]
    for cell, (hits, n) in zip(cells[2:], counts, strict=True):
        assert f"{hits} of {n}" in cell


def test_perfect_separation_leaves_no_mistakes(report):
    made = lean(report(6, ("text",)))
    for item in made["items"]:
        item["action"] = "flag" if item["label"] == "harmful" else "pass"
        item["score"] = 2.0 if item["label"] == "harmful" else 0.0
    text = words(evaluation_page(made))
    assert "None: no harmless input of 6 was steered or flagged." in text
    assert "None: all 6 harmful inputs were steered or flagged." in text


def test_shadow_mode_is_told_apart(report):
    made = lean(report(6, ("text",)))
    made["policy"]["mode"] = "shadow"
    text = words(evaluation_page(made))
    assert "shadow: nothing was changed" in text
    assert "would have steered or flagged" in text
    assert "every answer is the model\u2019s own" in text


def test_a_single_strength_and_none_chosen_are_drawn(report):
    made = report(4, ("text",))
    made["strength"] = [made["strength"][0] | {"chosen": False, "kl": 0.0}]
    assert "Refusals by steering strength" in evaluation_page(made)


def test_ten_thousand_inputs_stay_a_small_page(report):
    made = lean(report(4, ("text",)))
    copies = []
    for item in made["items"]:
        copies += [copy.copy(item) | {"score": item["score"] + k / 9999} for k in range(1250)]
    made["items"] = copies
    assert len(copies) == 10_000
    assert len(evaluation_page(made)) < 1_500_000


@pytest.mark.parametrize("wrong", [{}, {"schema_version": 2}, {"schema_version": 1, "model": "m"}])
def test_anything_else_is_no_report(wrong):
    with pytest.raises(ConfigurationError, match="guardrail evaluate"):
        evaluation_page(wrong)


def test_a_video_is_named_where_a_picture_would_be_shown(report):
    made = lean(report(30, ("image",)))
    for item in made["items"]:
        item |= {"modality": "video", "image": None, "video": "films/<b>1</b>.mp4"}
    for row in (*made["groups"], *made["controls"]):
        row["modality"] = "video"
        row["name"] = "video" if row.get("by") == "modality" else row.get("name")
    made["thresholds"] = {"video": made["thresholds"]["image"]}
    html = evaluation_page(made)
    assert "<b>1</b>" not in html
    shown = words(html)
    assert "video films/<b>1</b>.mp4" in shown
    assert "no picture" not in shown
    assert "Scores, video" in html
