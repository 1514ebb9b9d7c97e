"""The dashboard, the alerts and the scrape configuration against the metrics that there are."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from guardrail.observe.metrics import Metrics, Scraped, State
from guardrail.types import Modality

yaml = pytest.importorskip("yaml")

FOLDER = Path(__file__).parents[2] / "examples" / "deploy"
SERVER = {"job", "instance"}  # what Prometheus adds
OF_THE_PROCESS = ("process_resident_memory_bytes", "process_cpu_seconds_total")  # on Linux alone
DASHBOARD = json.loads((FOLDER / "grafana-dashboard.json").read_text())
ALERTS = yaml.safe_load((FOLDER / "alerts.yml").read_text())

PANELS = [
    (panel["title"], target["expr"], target["legendFormat"])
    for panel in DASHBOARD["panels"]
    for target in panel["targets"]
]
RULES = [(r["alert"], r["expr"], str(r)) for group in ALERTS["groups"] for r in group["rules"]]


@pytest.fixture
def known(verdict_of) -> dict[str, set[str]]:
    """Every name that a scrape may hold, and its labels."""
    metrics = Metrics()
    state = State(
        info={"version": "1", "artefact_id": "a", "model": "m", "mode": "enforce"},
        waiting=0,
        running=0,
        places=1,
        thresholds={("text", "flag"): 1.0},
        drift={"text": (False, 0.1)},
    )
    Scraped(lambda: state, metrics.registry)
    for modality in Modality:
        metrics(verdict_of(modality=modality), {"event": "verdict", "queue_s": 0, "verdict_s": 0})
    facts = {"event": "answer", "total_s": 1, "prompt_tokens": 1, "completion_tokens": 1}
    metrics(verdict_of(), facts)
    metrics.answered("/x", 200, 1.0, 0.5)
    metrics.near_duplicate("web")
    found = {name: set[str]() for name in OF_THE_PROCESS}
    for family in metrics.registry.collect():
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def names_of(expr: str) -> set[str]:
    return set(re.findall(r"\b(?:guardrail|process|python)_[a-z_]+", expr))


@pytest.mark.parametrize(("title", "expr", "words"), PANELS + RULES)
def test_every_expression_is_of_metrics_and_labels_that_exist(known, title, expr, words):
    names = names_of(expr)
    assert names
    assert names <= known.keys(), title
    labels = set().union(*(known[name] for name in names)) | SERVER
    used = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=(?!=))\s*\"", expr))
    grouped = re.findall(r"\b(?:by|without)\s*\(([^)]*)\)", expr)
    used |= {label.strip() for group in grouped for label in group.split(",")}
    shown = set(re.findall(r"\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}", words))
    assert used | shown <= labels, title
    assert expr.count("(") == expr.count(")")


def test_counters_are_asked_for_as_rates():
    counters = [
        (title, expr, name)
        for title, expr, _ in PANELS + RULES
        for name in re.findall(r"\w+_(?:total|bucket)\b", expr)
    ]
    assert counters
    for title, expr, name in counters:
        assert expr[: expr.index(name)].endswith(("rate(", "increase(")), title


@pytest.mark.parametrize(
    "name",
    [
        "guardrail_requests_total",
        "guardrail_verdicts_total",
        "guardrail_score_bucket",
        "guardrail_queue_seconds_bucket",
        "guardrail_verdict_seconds_bucket",
        "guardrail_answer_seconds_bucket",
        "guardrail_queue_waiting",
        "guardrail_outages_total",
        "guardrail_drift_alarm",
    ],
)
def test_what_operators_look_for_is_on_the_dashboard(name):
    assert any(name in names_of(expr) for _, expr, _ in PANELS)


def test_panels_lie_beside_each_other_and_have_numbers_of_their_own():
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(numbers)) == len(numbers)


def test_the_scrape_sends_a_token_from_a_file_and_holds_none():
    found = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    (job,) = found["scrape_configs"]
    assert job["authorization"] == {
        "type": "Bearer",
        "credentials_file": "/run/secrets/metrics_token",
    }
    assert job.get("metrics_path", "/metrics") == "/metrics"
