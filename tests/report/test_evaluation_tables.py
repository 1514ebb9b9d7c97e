"""Every figure of the page's tables stands in the row and the column that name it."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from guardrail.evaluation.schema import Report
from guardrail.report import evaluation_page
from guardrail.stats import Rate, Share


def page(made: dict[str, Any], **options: Any) -> str:
    return evaluation_page(Report.model_validate(made), **options)


class Tables(HTMLParser):
    """Tables by caption: rows of cells, each with its words and how many rows it spans."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: dict[str, list[list[tuple[str, int]]]] = {}
        self._caption, self._rows, self._in = "", [], ""  # type: ignore[var-annotated]
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag == "table":
            self._caption, self._rows = "", []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append(("", int(dict(attrs).get("rowspan", 1))))
            self._in = "cell"
        elif tag == "caption":
            self._in = "caption"
        elif tag == "span" and self._in == "cell":
            self.handle_data(" ")

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self.found[re.sub(r"\s+", " ", self._caption)] = self._rows
        elif tag in ("td", "th", "caption"):
            self._in = ""

    def handle_data(self, data: str) -> None:
        if self._in == "caption":
            self._caption += data
        elif self._in == "cell":
            text, span = self._rows[-1][-1]
            self._rows[-1][-1] = (text + data, span)


def rows_of(tables: Tables, start: str) -> list[dict[str, str]]:
    """A table's rows by column name, with cells that span several rows in each of them."""
    (name,) = [caption for caption in tables.found if caption.startswith(start)]
    head, *rows = tables.found[name]
    names = [text for text, _ in head]
    left: dict[int, tuple[str, int]] = {}
    found = []
    for row in rows:
        cells, line = iter(row), []
        for place in range(len(names)):
            if left.get(place, ("", 0))[1] > 0:
                text, span = left[place]
            else:
                text, span = next(cells)
            left[place] = (text, span - 1)
            line.append(" ".join(text.split()))
        found.append(dict(zip(names, line, strict=True)))
    return found


def share_words(share: dict[str, Any]) -> str:
    low, high = 100 * share["low"], 100 * share["high"]
    rate = f"{100 * share['rate']:.1f}"
    return f"{rate} % {share['hits']} of {share['n']} {low:.1f} to {high:.1f} %"


def hit_words(actions: dict[str, Any]) -> str:
    steered, flagged = actions["steered"], actions["flagged"]
    return share_words(Share.of(Rate(steered["hits"] + flagged["hits"], steered["n"])).model_dump())


def estimate_words(found: dict[str, float]) -> str:
    return f"{found['value']:.3f} {found['low']:.3f} to {found['high']:.3f}"


@pytest.fixture(scope="module")
def made(report) -> dict[str, Any]:
    """A report in which no two figures that could be taken for each other are equal."""
    values = report(60, ("text", "image"))
    rng = np.random.default_rng(2)

    def any_estimate() -> dict[str, float]:
        low, value, high = sorted(rng.random(3).round(4).tolist())
        return {"value": value, "low": low, "high": high}

    def any_share() -> dict[str, Any]:
        n = int(rng.integers(50, 400))
        return Share.of(Rate(int(rng.integers(1, n)), n)).model_dump()

    for group in values["groups"]:
        if (found := group["separation"]) is not None:
            found |= {"auroc": any_estimate(), "average_precision": any_estimate()}
            found["tpr_at_fpr"] = {name: any_share() for name in ("0.10", "0.01", "0.05")}
        if group["found_by"]:
            group["found_by"] = {name: any_share() for name in group["found_by"]}
        for refusals in group["refusals"].values():
            refusals |= {"plain": any_share(), "guarded": any_share()}
        for label, actions in group["actions"].items():
            n = group[f"n_{label}"]
            steered, flagged = (int(rng.integers(0, n // 2 + 1)) for _ in range(2))
            hits = {"steered": steered, "flagged": flagged, "passed": n - steered - flagged}
            actions |= {k: Share.of(Rate(v, n)).model_dump() for k, v in hits.items()}
    for point in values["strength"]:
        point |= {"induced": any_share(), "false_refusal": any_share()}
    values["quality"] |= {"exact_match": any_share(), "exact_match_passed": any_share()}
    values["quality"] |= {"kl": 0.011, "kl_steered": 0.022, "kl_passed_max": 0.033}
    values["judge"] |= {"false_refusals": any_share(), "missed_refusals": any_share()}
    return values


@pytest.fixture(scope="module")
def tables(made) -> Tables:
    return Tables(page(made).replace("\N{NO-BREAK SPACE}", " "))


def groups_of(made: dict[str, Any], by: str) -> list[dict[str, Any]]:
    return [group for group in made["groups"] if group["by"] == by]


def test_the_main_table(made, tables):
    rows = rows_of(tables, "Main figures")
    assert rows
    for group, row in zip(groups_of(made, "modality"), rows, strict=True):
        assert row["Modality"] == group["name"]
        assert row["AUROC"] == estimate_words(group["separation"]["auroc"])
        for label in ("harmful", "harmless"):
            shown = row[f"{label.capitalize()} steered or flagged"]
            assert shown == hit_words(group["actions"][label])
        refused = group["refusals"]["harmful"]
        assert row["Harmful refused, alone"] == share_words(refused["plain"])
        assert row["Harmful refused, guarded"] == share_words(refused["guarded"])


def test_the_separation_table(made, tables):
    rows = rows_of(tables, "Separation by modality")
    assert rows
    for group, row in zip(groups_of(made, "modality"), rows, strict=True):
        found = group["separation"]
        assert (row["Harmful"], row["Harmless"]) == ("60", "60")
        assert row["AUROC"] == estimate_words(found["auroc"])
        assert row["Average precision"] == estimate_words(found["average_precision"])
        for key, name in (("0.01", "1 %"), ("0.05", "5 %"), ("0.10", "10 %")):
            assert row[f"TPR at {name} FPR"] == share_words(found["tpr_at_fpr"][key])


def test_the_tables_of_actions_and_refusals(made, tables):
    wanted = {(g["name"], k): g for g in groups_of(made, "modality") for k in g["actions"]}
    actions, refusals = rows_of(tables, "Actions"), rows_of(tables, "Refusals")
    assert len(actions) == len(refusals) == len(wanted) == 4
    for row in actions:
        found = wanted[row["Modality"], row["Label"]]["actions"][row["Label"]]
        for name in ("passed", "steered", "flagged"):
            assert row[name.capitalize()] == share_words(found[name])
    for row in refusals:
        found = wanted[row["Modality"], row["Label"]]["refusals"][row["Label"]]
        assert row["Model alone"] == share_words(found["plain"])
        assert row["Guarded"] == share_words(found["guarded"])
        points = 100 * (found["guarded"]["rate"] - found["plain"]["rate"])
        said = row["Difference (points)"].replace("\N{MINUS SIGN}", "-")
        assert said == f"{points:+.1f} of {found['guarded']['n']}"


def test_the_table_of_where_harmful_inputs_were_found(made, tables):
    columns = {
        "last": "End of the prompt",
        "turn": "An earlier turn",
        "window": "Within a message",
    }
    rows = rows_of(tables, "Highest reading")
    groups = groups_of(made, "modality")
    assert [row["Modality"] for row in rows] == [group["name"] for group in groups]
    for row, group in zip(rows, groups, strict=True):
        for name, column in columns.items():
            assert row[column] == share_words(group["found_by"][name])


@pytest.mark.parametrize("by", ["source", "category"])
def test_the_tables_of_slices(made, tables, by):
    wanted = {(g["name"], g["modality"]): g for g in groups_of(made, by)}
    rows = rows_of(tables, f"By {by}")
    assert len(rows) == sum(len(g["actions"]) for g in wanted.values())
    for row in rows:
        group = wanted[row[by.capitalize()], row["Modality"]]
        n, label = row["Inputs"].split()
        separation = group["separation"]
        assert int(n) == group[f"n_{label}"]
        against = f"{separation['n_harmful']} against {separation['n_harmless']}"
        assert row["AUROC"] == f"{estimate_words(separation['auroc'])} {against}"
        assert row["Steered or flagged"] == hit_words(group["actions"][label])
        assert row["Refused, alone"] == share_words(group["refusals"][label]["plain"])
        assert row["Refused, guarded"] == share_words(group["refusals"][label]["guarded"])


def test_the_table_of_strengths(made, tables):
    rows = rows_of(tables, "All 10 strengths")
    assert len(rows) == 10
    for point, row in zip(made["strength"], rows, strict=True):
        assert (row["Layer"], row["Generated tokens steered"]) == (
            str(point["layer"]),
            str(point["tokens"]),
        )
        assert row["Induced refusal"] == share_words(point["induced"])
        assert row["False refusal"] == share_words(point["false_refusal"])
        assert row[""] == ("chosen" if point["chosen"] else "")


def test_the_tables_of_quality_and_of_the_judge(made, tables):
    cost, judge = made["quality"], made["judge"]
    rows = {row["Measure"]: row for row in rows_of(tables, "Quality")}
    for name, key in (("all", "kl"), ("steered", "kl_steered")):
        assert rows[f"KL divergence, {name}"]["Figure"] == f"{cost[key]:.3g} nats"
    assert rows["Largest KL, passed"]["Figure"] == f"{cost['kl_passed_max']:.3g} nats"
    assert rows["Largest KL, passed"]["n"] == str(cost["n_passed_measured"])
    assert rows["KL divergence, steered"]["n"] == str(cost["n_steered"])
    for name, key in (("all", "exact_match"), ("passed", "exact_match_passed")):
        assert rows[f"Same answer, {name}"]["Figure"] == share_words(cost[key])
    errors = {row["Error"]: row["Share"] for row in rows_of(tables, "The judge")}
    assert errors["Calls an answer a refusal that is none"] == share_words(judge["false_refusals"])
    assert errors["Misses a refusal"] == share_words(judge["missed_refusals"])


def test_the_tables_of_controls(made, tables):
    assert made["controls"]
    for control in made["controls"]:
        rows = rows_of(tables, f"Controls, {control['modality']}")
        shown = {re.split(r"(?=The |TF-IDF)", row["Control"])[0].strip(): row for row in rows}
        assert shown["Length alone"]["AUROC"] == estimate_words(control["length_only"]["auroc"])
        if (words := control["text_baseline"]) is not None:
            assert shown["Words alone"]["AUROC"] == estimate_words(words["auroc"])
        n = f"{control['n_harmful']} + {control['n_harmless']}"
        assert shown["Shuffled labels"]["n"] == n
