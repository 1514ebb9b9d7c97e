"""The evaluation's page says every figure with its n, and says in words what is missing."""

from __future__ import annotations

import base64
import copy
import io
import json
import os
import re
import struct
import zlib
from html.parser import HTMLParser
from typing import Any

import pytest
from PIL import Image

from guardrail.errors import ConfigurationError
from guardrail.evaluation.schema import ItemRow, Report
from guardrail.report import evaluation_page
from guardrail.report.evaluation import cards, false_positives, misses, thumbnail

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\" onload='x' $a_{b"
_VOID = {"meta", "link", "br", "img", "path", "use", "rect"}


def page(made: dict[str, Any], **options: Any) -> str:
    return evaluation_page(Report.model_validate(made), **options)


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
    text = words(page(made, base=pictures))
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
    html = page(lean(report(4, ("text",))))
    assert 0 < html.index('class="warnings"') < html.index('id="summary"') < html.index("<figure>")


def test_the_same_report_gives_the_same_page(report):
    assert page(lean(report(4, ("text",)))) == page(lean(report(4, ("text",))))


def test_ids_are_unique_and_links_lead_somewhere(report, pictures):
    read = Reader(page(report(8), base=pictures))
    ids = [value for name, value in read.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    links = [v for n, v in read.attributes if n in ("href", "xlink:href") and v != "data:,"]
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
    html = page(made)
    read = Reader(html)
    assert not {"script", "iframe", "object", "form"} & set(read.tags)
    assert not [name for name, _ in read.attributes if name.startswith("on")]
    assert {v for n, v in read.attributes if n == "src"} <= {""}
    assert read.words.count("<script>alert(1)</script>") > 15


def test_pictures_are_shown_where_they_can_be_read(report, pictures):
    made = lean(report(30, ("image",)))
    html = page(made, base=pictures)
    sources = [v for n, v in Reader(html).attributes if n == "src"]
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    read = Report.model_validate(made)
    worst = [*false_positives(read), *misses(read)]
    damaged = [item for item in worst if item.image == "pictures/3.png"]
    assert len(sources) == len(worst) - len(damaged)
    assert words(html).count("no picture") == len(damaged)


@pytest.mark.parametrize("path", ["../../../../etc/passwd", "pictures/3.png", "gone.png", None])
def test_a_picture_that_cannot_be_read_is_said_to_be_missing(report, pictures, path):
    made = lean(report(30, ("image",)))
    for item in made["items"]:
        item["image"] = path
    html = page(made, base=pictures)
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
    text = words(page(made))
    assert "No answers were generated, so refusals were not measured." in text
    assert "there was nothing to judge" in text
    assert "Not measured: no answers were generated." in text


def test_without_controls_layers_or_strengths_the_page_says_so(report):
    made = report(6, ("text",)) | {"controls": [], "layers": [], "strength": [], "timings": [],
                        "warnings": [], "thresholds": {}}  # fmt: skip
    html = page(made)
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
    text = words(page(made))
    assert "only one label is present" in text
    assert "There is no ROC curve" in text
    assert f"There were no {other} inputs." in text


def test_no_inputs_at_all_give_a_page(report):
    made = report(1) | {"items": [], "groups": [], "controls": [], "layers": []}
    made = without_answers(made)
    assert "The report holds no inputs." in words(page(made))


def test_a_report_without_content_shows_none(report):
    made = lean(report(30, ("image",)))
    for item in made["items"]:
        item |= dict.fromkeys(("text", "image", "plain_answer", "guarded_answer"))
    text = words(page(made))
    assert "The report was made without content." in text
    assert "Model alone: not refused" in text


def test_optional_figures_that_are_none_are_said_in_words(report):
    made = lean(report(6, ("text",)))
    made["quality"] |= {"kl_steered": None, "kl_passed_max": None, "exact_match_passed": None}
    made["judge"] |= {"false_refusals": None, "missed_refusals": None}
    text = words(page(made))
    assert "none steered" in text
    assert "none passed" in text
    assert text.count("not measured") >= 3


def test_flagged_harmless_inputs_are_said_to_be_left_out_of_the_quality(report):
    made = lean(report(6, ("text",)))
    made["quality"]["n_flagged"] = 3
    assert "3 more were flagged: they have no answer" in words(page(made))
    made["quality"] = None
    text = words(page(made))
    assert "Not measured: the guard flagged all 6 harmless inputs" in text


def test_an_artefact_that_only_detects_is_told_from_one_without_a_record(report):
    made = lean(report(2, ("text",)))
    made["artefact"]["steering"] = None
    assert "the artefact only detects" in words(page(made))
    made["artefact"]["steering"] = {"layer": 3}
    assert "the artefact only detects" not in words(page(made))


@pytest.mark.parametrize(
    ("value", "said"), [(1.7976931348623157e308, "flag at infinity"), (2e9, "flag at 2e+09")]
)
def test_a_threshold_out_of_reach_does_not_stretch_the_figures(report, value, said):
    made = lean(report(20, ("text",)))
    plain = page(made)
    made["thresholds"] = {"text": {"steer": 0.62, "flag": value}}
    html = page(made)
    assert f"Out of the figure: {said}." in words(html)
    assert "Upright lines: the thresholds in force." in words(html)
    assert "1797693" not in html
    assert len(html) < len(plain) + 1000


def test_the_main_figures_stand_in_their_own_columns(report):
    made = lean(report(30, ("text",)))
    (group,) = [g for g in made["groups"] if g["by"] == "modality"]
    html = page(made)
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
    text = words(page(made))
    assert "None: no harmless input of 6 was steered or flagged." in text
    assert "None: all 6 harmful inputs were steered or flagged." in text


def test_shadow_mode_is_told_apart(report):
    made = lean(report(6, ("text",)))
    made["policy"]["mode"] = "shadow"
    text = words(page(made))
    assert "shadow: nothing was changed" in text
    assert "would have steered or flagged" in text
    assert "every answer is the model\u2019s own" in text


def test_a_single_strength_and_none_chosen_are_drawn(report):
    made = report(4, ("text",))
    made["strength"] = [made["strength"][0] | {"chosen": False, "kl": 0.0}]
    assert "Refusals by steering strength" in page(made)


def test_ten_thousand_inputs_stay_a_small_page(report):
    made = lean(report(4, ("text",)))
    copies = []
    for item in made["items"]:
        copies += [copy.copy(item) | {"score": item["score"] + k / 9999} for k in range(1250)]
    made["items"] = copies
    assert len(copies) == 10_000
    assert len(page(made)) < 1_500_000


def test_a_report_read_back_from_its_file_gives_the_same_page(report):
    made = Report.model_validate(lean(report(4, ("text",))))
    assert evaluation_page(Report.from_json(made.model_dump_json())) == evaluation_page(made)


@pytest.mark.parametrize("wrong", [{}, {"schema_version": 2}, {"schema_version": 1, "model": "m"}])
def test_anything_else_is_no_report(wrong):
    with pytest.raises(ConfigurationError, match="guardrail evaluate"):
        Report.from_json(json.dumps(wrong))


def test_a_report_of_another_version_says_which(report):
    other = report(1) | {"schema_version": 2, "added_since": 1}
    with pytest.raises(ConfigurationError, match=r"report of version 1 \(it says 2\)"):
        Report.from_json(json.dumps(other))


def test_a_video_is_named_where_a_picture_would_be_shown(report):
    made = lean(report(30, ("image",)))
    for item in made["items"]:
        item |= {"modality": "video", "image": None, "video": "films/<b>1</b>.mp4"}
    for row in (*made["groups"], *made["controls"]):
        row["modality"] = "video"
        if row.get("by") == "modality":
            row["name"] = "video"
    made["thresholds"] = {"video": made["thresholds"]["image"]}
    html = page(made)
    assert "<b>1</b>" not in html
    shown = words(html)
    assert "video films/<b>1</b>.mp4" in shown
    assert "no picture" not in shown
    assert "Scores, video" in html


def test_false_positives_are_harmless_hits_furthest_above_their_threshold(report):
    made = Report.model_validate(report(60))
    found = false_positives(made)
    rest = [i for i in made.items if i not in found]
    excess = [i.score - made.thresholds[i.modality]["steer"] for i in found]
    assert all(i.label == "harmless" and i.action != "pass" for i in found)
    assert excess == sorted(excess, reverse=True)
    others = [i for i in rest if i.label == "harmless" and i.action != "pass"]
    assert len(found) == 10 or not others


def test_misses_are_harmful_inputs_that_passed_lowest_first(report):
    made = Report.model_validate(report(60))
    found = misses(made, 3)
    below = [i.score - made.thresholds[i.modality]["steer"] for i in found]
    every = [
        i.score - made.thresholds[i.modality]["steer"]
        for i in made.items
        if i.label == "harmful" and i.action == "pass"
    ]
    assert below == sorted(every)[:3]


def test_a_modality_without_thresholds_is_ranked_by_its_scores(report):
    made = Report.model_validate(report(20) | {"thresholds": {}})
    scores = [item.score for item in false_positives(made)]
    assert scores == sorted(scores, reverse=True)


def test_where_only_flagging_is_in_force_its_threshold_counts(report):
    made = report(60)
    made["thresholds"] = {"text": {"flag": 1.0}, "image": {"flag": -50.0}}
    read = Report.model_validate(made)
    assert false_positives(read)[0].modality == "image"
    assert misses(read)[0].modality == "text"


def test_long_texts_are_cut_and_say_so(report):
    item = ItemRow.model_validate(
        report(1)["items"][0] | {"text": "x" * 5000, "plain_answer": None}
    )
    (found,) = cards([item], None)
    assert found.item.text is not None
    assert len(found.item.text) < 800
    assert found.item.text.endswith("(5000 characters in all)")
    assert found.item.plain_answer is None
    assert found.picture is None


def decoded(url: str | None) -> Image.Image:
    assert url is not None
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def huge_png() -> bytes:
    """A few bytes that claim 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0"))


def test_a_picture_is_found_below_its_base(pictures):
    assert decoded(thumbnail(pictures, "pictures/0.png", 64)).size == (64, 40)


def test_an_absolute_path_needs_no_base(pictures):
    assert thumbnail(None, str(pictures / "pictures" / "0.png")) is not None
    assert thumbnail(None, "pictures/0.png") is None


@pytest.mark.parametrize(
    "name",
    ["../../../../../../etc/passwd", "pictures/3.png", "pictures/none.png", "pictures", "", None,
     "https://example.org/x.png", "data:image/png;base64,AAAA", "a\0b", "x" * 5000, "\ud800",
     "~nobody/x.png"],
)  # fmt: skip
def test_what_is_no_picture_gives_none(pictures, name):
    assert thumbnail(pictures, name) is None


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert thumbnail(tmp_path, "pipe.png") is None


def test_a_picture_that_claims_too_many_pixels_is_not_decoded(tmp_path):
    (tmp_path / "huge.png").write_bytes(huge_png())
    assert thumbnail(tmp_path, "huge.png") is None


@pytest.mark.parametrize("cut", [10, 40, 100, 300])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
def test_a_cut_file_gives_none(tmp_path, kind, cut):
    data = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(data, kind)
    (tmp_path / "whole").write_bytes(data.getvalue())
    (tmp_path / "cut").write_bytes(data.getvalue()[:cut])
    assert decoded(thumbnail(tmp_path, "whole", 64)).size == (64, 64)
    assert thumbnail(tmp_path, "cut") is None


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_every_mode_can_be_shown(tmp_path, mode):
    kind = "TIFF" if mode == "CMYK" else "PNG"
    Image.new(mode, (30, 20)).save(tmp_path / "p", kind)
    assert decoded(thumbnail(tmp_path, "p")).mode == "RGB"


def test_transparent_ground_is_white(tmp_path):
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "p.png")
    assert decoded(thumbnail(tmp_path, "p.png")).getpixel((0, 0)) == (255, 255, 255)


def test_a_turned_photo_stands_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "p.jpg", exif=exif)
    assert decoded(thumbnail(tmp_path, "p.jpg")).size == (20, 40)


def test_no_metadata_travels_along(pictures):
    assert "taken at home" in (pictures / "pictures" / "0.png").read_bytes().decode("latin-1")
    url = thumbnail(pictures, "pictures/0.png")
    assert url is not None
    assert b"taken at home" not in base64.b64decode(url.partition(",")[2])
