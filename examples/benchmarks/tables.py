"""The tables of this folder's README, made from what was measured; no figure is typed by hand."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from guardrail.stats import Rate, auroc, auroc_interval

Figures = Mapping[str, Any]


def put(readme: Path, name: str, lines: Iterable[str]) -> None:
    """Replace what stands between `<!-- table: NAME -->` and `<!-- end -->`.

    Raises:
        SystemExit: the README has no such place, or several.
    """
    text = readme.read_text("utf-8")
    start, end = f"<!-- table: {name} -->\n", "<!-- end -->"
    place = re.compile(re.escape(start) + r".*?(?=" + re.escape(end) + ")", re.S)
    body = start + "\n" + "\n".join(lines) + "\n\n"
    made, count = place.subn(lambda _found: body, text)
    if count != 1:
        raise SystemExit(f"{readme} has {count} places for the table {name!r}")
    readme.write_text(made, "utf-8")


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A table's lines."""
    yield "| " + " | ".join(head) + " |"
    yield "| --- " * len(head) + "|"
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def estimate(found: Figures | None) -> str:
    """A figure and its interval."""
    if found is None:
        return "-"
    return f"{found['value']:.3f} ({found['low']:.3f}-{found['high']:.3f})"


def share(found: Figures | None) -> str:
    """A rate and its interval; its n stands in the table's first row."""
    return "-" if found is None else f"{found['rate']:.3f} ({found['low']:.3f}-{found['high']:.3f})"


def separation(groups: Mapping[str, Figures]) -> Iterator[str]:
    """One column for each group of inputs, named by its key."""
    every = list(groups.values())

    def row(name: str, cell: Callable[[Figures], str]) -> list[str]:
        return [name, *(cell(group) for group in every)]

    def rate(kind: str, label: str, which: str) -> Callable[[Figures], str]:
        return lambda group: share(group[kind].get(label, {}).get(which))

    rows = [
        row("inputs (harmful + harmless)", lambda g: f"{g['n_harmful']} + {g['n_harmless']}"),
        row("AUROC", lambda g: estimate(g["separation"]["auroc"])),
        row("average precision", lambda g: estimate(g["separation"]["average_precision"])),
        *(
            row(f"TPR at {at} % FPR", lambda g, k=key: share(g["separation"]["tpr_at_fpr"][k]))
            for at, key in (("1", "0.01"), ("5", "0.05"), ("10", "0.10"))
        ),
        row("harmful flagged", rate("actions", "harmful", "flagged")),
        row("harmful steered", rate("actions", "harmful", "steered")),
        row("benign flagged", rate("actions", "harmless", "flagged")),
        row("benign steered", rate("actions", "harmless", "steered")),
        row("harmful refused, plain", rate("refusals", "harmful", "plain")),
        row("harmful refused or flagged, guarded", rate("refusals", "harmful", "guarded")),
        row("benign refused, plain", rate("refusals", "harmless", "plain")),
        row("benign refused or flagged, guarded", rate("refusals", "harmless", "guarded")),
    ]
    return markdown(["", *groups], rows)


def controls(report: Figures) -> Iterator[str]:
    """The guard's AUROC of each modality beside what needs no guard."""

    def random(found: Figures | None) -> str:
        if found is None:
            return "-"
        return f"{found['mean']:.3f} (sd {found['sd']:.3f}, {len(found['aurocs'])} seeds)"

    def permuted(found: Figures | None) -> str:
        if found is None:
            return "-"
        worst = f"{found['mean']:.3f} (highest of {found['draws']}: {found['highest']:.3f})"
        return f"{worst}, p = {found['p_value']:.3g}"

    def baseline(found: Figures | None) -> str:
        return estimate(found and found["auroc"])

    def matched(found: Figures | None, key: str) -> str:
        if found is None:
            return "-"
        value = found[key]
        shown = estimate(value) if isinstance(value, Mapping) else f"{value:.3f}"
        return f"{shown}, {found['pairs']} pairs"

    every = report["controls"]
    rows = [
        ["inputs (harmful + harmless)", *(f"{c['n_harmful']} + {c['n_harmless']}" for c in every)],
        ["**the guard**", *(estimate(c["guard"]) for c in every)],
        ["random directions, mean", *(random(c["random_directions"]) for c in every)],
        ["permuted labels, mean", *(permuted(c["permuted_labels"]) for c in every)],
        ["TF-IDF + logistic regression", *(baseline(c["text_baseline"]) for c in every)],
        ["length alone", *(baseline(c["length_only"]) for c in every)],
        ["the guard, length-matched", *(matched(c["length_matched"], "auroc") for c in every)],
        ["length, length-matched", *(matched(c["length_matched"], "length_auroc") for c in every)],
    ]
    return markdown(["AUROC", *(c["modality"] for c in every)], rows)


def steering(report: Figures, sources: Sequence[str]) -> Iterator[str]:
    """What became of the inputs that were steered, one column for each source of inputs."""

    def of(source: str, label: str) -> list[Figures]:
        return [i for i in report["items"] if (i["source"], i["label"]) == (source, label)]

    def cell(rows: Sequence[Figures], holds: Callable[[Figures], bool]) -> str:
        if not rows:
            return "-"
        found = Rate.of([holds(row) for row in rows])
        return f"{found.value:.3f} ({found.hits}/{found.n})"

    harmful = {s: [i for i in of(s, "harmful") if i["action"] == "steer"] for s in sources}
    benign = {s: of(s, "harmless") for s in sources}

    def newly(item: Figures) -> bool:
        return item["guarded_refused"] and not item["plain_refused"]

    rows = [
        ["harmful, steered", *(str(len(harmful[s])) for s in sources)],
        ["refused without", *(cell(harmful[s], lambda i: i["plain_refused"]) for s in sources)],
        ["refused steered", *(cell(harmful[s], lambda i: i["guarded_refused"]) for s in sources)],
        ["benign, newly refused or flagged", *(cell(benign[s], newly) for s in sources)],
    ]
    return markdown(["", *sources], rows)


def quality(report: Figures, judged: Figures) -> Iterator[str]:
    """What the guard does to benign answers, and how far the refusal matcher can be trusted.

    The judge of `report` was tested on answers that are hard to judge, that of `judged` on a random
    sample of the model's own.
    """
    found = report["quality"]

    def of(share_of: Figures) -> str:
        return f"{share(share_of)}, n = {share_of['n']}"

    rows = [
        ["benign inputs answered (steered)", f"{found['n']} ({found['n_steered']})"],
        ["KL(plain, guarded) of the first token, mean", f"{found['kl']:.4f} nats"],
        ["answers equal token by token", of(found["exact_match"])],
        ["the same, of inputs that passed", of(found["exact_match_passed"])],
        ["length, guarded / plain", f"{found['length_ratio']:.3f}"],
    ]
    for name, figures in (("the model's own answers", judged), ("hard cases", report)):
        wrong = figures["judge"]
        rows += [
            [f"refusals seen where none is, {name}", of(wrong["false_refusals"])],
            [f"refusals missed, {name}", of(wrong["missed_refusals"])],
        ]
    return markdown(["", ""], rows)


def timings(first: Figures, second: Figures) -> Iterator[str]:
    """The same evaluation twice."""
    again = {row["stage"]: row for row in second["timings"]}
    rows = [
        [row["stage"], str(row["n"]), f"{row['seconds']:.1f}", f"{other['seconds']:.1f}"]
        for row in first["timings"]
        if (other := again.get(row["stage"]))
    ]
    totals = (sum(r["seconds"] for r in report["timings"]) for report in (first, second))
    return markdown(
        ["stage", "inputs", "first run, s", "second run, s"],
        [*rows, ["all", "", *(f"{total:.1f}" for total in totals)]],
    )


def costs(bench: Figures) -> Iterator[str]:
    """Guarded and plain runs of the same work."""
    rows = [
        [name, f"{r['ratio']:.3f} ({r['ratio_low']:.3f}-{r['ratio_high']:.3f})", str(r["repeats"])]
        for name, r in bench.items()
        if "ratio" in r
    ]
    return markdown(["comparison", "ratio", "runs"], rows)


def robustness(report: Figures) -> Iterator[str]:
    """What stands around a request, and what that does to its score."""

    def shift(found: Figures) -> str:
        return f"{found['median']:+.2f} ({found['low']:+.2f} to {found['high']:+.2f})"

    def rates(group: Figures) -> str:
        return f"{group['flag']['rate']:.2f}, {group['steer']['rate']:.2f}"

    labels = ("harmful", "harmless")
    head = [
        *("around the request", "n", "tokens added", "shift, harmful", "shift, harmless", "AUROC"),
        *(f"{label} flagged, steered" for label in labels),
        *(f"{label}, last position alone" for label in labels),
        "AUROC, last position alone",
    ]
    rows = [
        [
            row["name"],
            f"{row['guard']['harmful']['n']} + {row['guard']['harmless']['n']}",
            f"{row['tokens_added']:.0f}",
            *(shift(row["guard"][label]["shift"]) for label in labels),
            estimate(row["guard"]["auroc"]),
            *(rates(row[name][label]) for name in ("guard", "last position") for label in labels),
            estimate(row["last position"]["auroc"]),
        ]
        for row in report["conditions"]
    ]
    yield from markdown(head, rows)
    for row in report["random_words"]:
        told = ", ".join(
            f"{name} {row[name]['lost']} of {row[name]['n']}" for name in ("guard", "last position")
        )
        yield ""
        yield (
            f"Flags lost to the worst of {row['strings']} strings of random words "
            f"{row['where']} a harmful request: {told}."
        )


def video(report: Figures) -> Iterator[str]:
    """Videos by what is shown in them: what was sampled, flagged, and named."""

    def rate(found: Sequence[bool]) -> str:
        return share(Rate.of(found).to_dict() if found else None)

    def cells(rows: Sequence[Figures]) -> list[str]:
        harmful = rows[0]["label"] == "harmful"
        seen = [row for row in rows if row["sampled"]]
        flagged = [row for row in seen if row["action"] == "flag"]
        return [
            str(len(rows)),
            f"{statistics.median(row['frames'] for row in rows):.0f}",
            f"{statistics.median(row['windows'] for row in rows):.0f}",
            rate([row["sampled_by_grid"] for row in rows]) if harmful else "-",
            rate([row["sampled"] for row in rows]) if harmful else "-",
            rate([row["action"] == "flag" for row in (seen if harmful else rows)]),
            rate([row["action"] != "pass" for row in (seen if harmful else rows)]),
            rate([row["named"] for row in flagged]) if harmful else "-",
        ]

    groups: dict[str, list[Figures]] = {}
    for row in report["rows"]:
        for name in (f"{row['label']}, {row['kind']}", f"{row['label']}, all"):
            groups.setdefault(name, []).append(row)
    scores = {
        label: [row["score"] for row in groups[f"{label}, all"]]
        for label in ("harmful", "harmless")
    }
    low, high = auroc_interval(scores["harmful"], scores["harmless"])
    value = auroc(scores["harmful"], scores["harmless"])
    head = [
        *("videos", "n", "frames judged", "windows", "title sampled, grid alone"),
        *("title sampled", "flagged", "flagged or steered", "window named rightly"),
    ]
    yield from markdown(head, [[name, *cells(rows)] for name, rows in sorted(groups.items())])
    yield ""
    yield (
        f"Thresholds: {report['n_calibration']} other benign videos, flag rate "
        f"{report['rates']['flag']:.2f}, steer rate {report['rates']['steer']:.2f}. AUROC of "
        f"videos: {value:.3f} ({low:.3f}-{high:.3f})."
    )
