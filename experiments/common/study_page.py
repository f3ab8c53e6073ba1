"""The page of the study: a table and a plot for each of its questions.

Figures come by name, retrained models last; gaps are to those of the same requests, with intervals over seeds.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import jaxunlearn as ju
from experiments.common import findings, plots, protocol, tables
from experiments.common.findings import Cost, Finding
from experiments.common.outcome import RETRAINED
from experiments.common.protocol import EASIEST, HARDEST, Asked, Figures, gaps, group_kind, share_kind
from experiments.common.report import Column, Section, Table
from jaxunlearn.audit import Difficulty, Interval

AIMS = {
    "rows": "Aim: the influence of these rows. The reference is a model retrained without them, in everything: a row that was "
    "never memorised needs no change, and a forget accuracy below the retrained one is as wrong as one above.",
    "concept": "Aim: a concept that these rows are examples of. A retrained model is not the reference: it may know the "
    "concept from other rows. What counts is what the model does with rows of the concept that nobody listed.",
}
METHOD, SHARE = Column("method", "method"), Column("share", "forgotten")


def asked_for(aim: str, groups: str, asked: Asked | None) -> Section:
    """The first question of the report."""
    text = [AIMS[aim], groups]
    if asked is not None:
        sizes = dict(zip(asked.kinds, asked.sizes, strict=True))
        text.append(f"Rows of a request: {', '.join(f'{kind}: {size}' for kind, size in sizes.items())}.")
    return Section("What is being asked for: rows, or a concept?", "\n\n".join(text))


def verdicts(found: Sequence[Finding]) -> Section:
    """The findings."""
    columns = [Column("claim", "finding"), Column("verdict", "verdict"), Column("figure", "figure")]
    text = (
        "Gaps are in points of accuracy, with intervals over seeds that hold for all gaps of a finding together. Not testable "
        "here: these figures do not decide it."
    )
    table = Table(columns, [one._asdict() for one in found], "findings of the paper, on these data")
    return Section("The five findings", text, [table])


def utility(figures: Mapping[str, Figures], asked: Asked, shares: Sequence[float]) -> Section:
    """Retain, forget and test accuracy, and the attack, against retraining."""
    measures = ("retain", "forget", "test", "auc")
    spans = {x: _over_shares(figures, asked, shares, x) for x in measures}
    rows = [
        {"share": share_kind(share), "method": name, **{x: spans[x][name][place] for x in measures}}
        for place, share in enumerate(shares)
        for name in spans["retain"]
    ]
    columns = [SHARE, METHOD, *(Column(x, f"{x} acc.", "+.1%") for x in measures[:3]), Column("auc", "attack AUC", "+.3f")]
    plot = _against_share(spans["forget"], shares, "gap of forget accuracy [points]", 100)
    table = Table(columns, rows, "signed gaps to retrained models; 95 % intervals over seeds")
    return Section("Does it do what retraining does?", "", [table], [(plot, "Forget accuracy, minus retrained.")])


def generalisation(figures: Mapping[str, Figures], asked: Asked, shares: Sequence[float]) -> Section:
    """Test accuracy against the forget share."""
    rows = [
        {
            "share": share_kind(share),
            **{
                name: findings.interval(protocol.by_seed(found.test, asked.of(share_kind(share))))
                for name, found in figures.items()
            },
        }
        for share in shares
    ]
    plot = _against_share(_over_shares(figures, asked, shares, "test"), shares, "gap of test accuracy [points]", 100)
    columns = [SHARE, *(Column(name, name, ".1%") for name in figures)]
    table = Table(columns, rows, "accuracy on test rows; retraining loses with the rows, too")
    return Section("Does it hurt generalisation?", "", [table], [(plot, "Test accuracy, minus retrained.")])


def by_groups(figures: Mapping[str, Figures], asked: Asked, names: Sequence[str], shares: Sequence[float]) -> Section:
    """Requests from one group only, and models that are looked at by group."""
    every = [place for share in shares for place in asked.of(share_kind(share))]
    rows = []
    for name, found in _compared(figures).items():
        for number, group in enumerate(names):
            own = asked.of(group_kind(group))
            apart = {
                "forget": gaps(found, figures[RETRAINED], "group_forget", own, number),
                "test": gaps(found, figures[RETRAINED], "group_test", every, number),
                "auc": gaps(found, figures[RETRAINED], "group_auc", own, number),
            }
            rows.append({"method": name, "group": group, **{x: findings.interval(gap) for x, gap in apart.items()}})
    shown = {
        name: {
            group: findings.interval(protocol.by_seed(np.asarray(found.group_test)[..., number], every))
            for number, group in enumerate(names)
        }
        for name, found in figures.items()
    }
    columns = [
        METHOD, Column("group", "group"), Column("forget", "forget acc., only its rows asked", "+.1%"),
        Column("test", "test acc., all shares", "+.1%"), Column("auc", "attack AUC in the group", "+.3f"),
    ]  # fmt: skip
    table = Table(columns, rows, "signed gaps to retrained models, by group")
    return Section("Does it treat groups alike?", "", [table], [(plots.accuracy_bars(shown), "Test accuracy of each group.")])


def by_difficulty(
    figures: Mapping[str, Figures], asked: Asked, hard: Difficulty, order: np.ndarray, mislabelled: np.ndarray
) -> Section:
    """Forget sets from the easiest and from the hardest decile.

    Args:
        figures, asked: of the study.
        hard: difficulty of the rows.
        order: rows from the easiest on.
        mislabelled: which rows were given a wrong label.
    """
    rows, shown, kinds = [], {}, (EASIEST, HARDEST)
    for name, found in figures.items():
        shown[name] = {kind: findings.interval(protocol.by_seed(found.forget, asked.of(kind))) for kind in kinds}
        rows.append({"method": name, **shown[name]})
        if name != RETRAINED:
            rows[-1] |= {
                f"{kind} {field}": findings.interval(gaps(found, figures[RETRAINED], field, asked.of(kind)))
                for kind in kinds
                for field in ("forget", "test")
            }
    columns = [METHOD, *(Column(kind, f"forget acc., {kind}", ".1%") for kind in kinds)]
    columns += [Column(f"{kind} {field}", f"{field} gap, {kind}", "+.1%") for kind in kinds for field in ("forget", "test")]
    text = "Rows were ranked by when trainings of their own learned them for good, then by mean loss."
    for kind, part in zip(kinds, protocol.deciles(order), strict=True):
        assert hard.learned is not None  # of classes
        text += (
            f" The {kind} decile was learned after {np.mean(hard.learned[part]):.1f} checkpoints, at a mean loss of "
            f"{np.mean(hard.mean_loss[part]):.2f}; {np.mean(mislabelled[part]):.0%} of its rows carry a wrong label."
        )
    table = Table(columns, rows, "forget sets of half a decile of the rows by difficulty")
    return Section("Does it treat easy and hard rows alike?", text, [table], [(plots.accuracy_bars(shown), "Forget accuracy.")])


def mistakes(figures: Mapping[str, Figures], asked: Asked, shares: Sequence[float], positive: int, what: str) -> Section:
    """Missed rows of the class that must not be missed, and costs.

    Args:
        figures, asked, shares: of the study.
        positive: the class.
        what: costs what, in words.
    """
    missed = _over_shares(figures, asked, shares, "missed", positive)
    cost = _over_shares(figures, asked, shares, "cost")
    rows = [
        {
            "share": share_kind(share), "method": name, "missed": missed[name][place], "cost": cost[name][place],
            "level": findings.interval(protocol.by_seed(figures[name].cost, asked.of(share_kind(share)))),
        }
        for place, share in enumerate(shares)
        for name in cost
    ]  # fmt: skip
    columns = [
        SHARE, METHOD, Column("missed", f"missed of class {positive}", "+.1%"), Column("cost", "cost per row", "+.3f"),
        Column("level", "cost itself", ".3f"),
    ]  # fmt: skip
    plot = _against_share(cost, shares, "gap of cost per test row", 1)
    table = Table(columns, rows, f"signed gaps to retrained models on test rows; {what}")
    return Section("Which mistakes does it make?", "", [table], [(plot, "Cost of the answers, minus retrained.")])


def cost_of(costs: Mapping[str, Cost], seconds: float) -> Section:
    """Time, with tuning counted.

    Args:
        costs: of the methods.
        seconds: of one retraining.
    """
    rows: list[dict[str, Any]] = [{"method": RETRAINED, "unlearn": 1e3 * seconds}]
    counts = np.unique(np.geomspace(1, 300, 40).round())
    lines = {RETRAINED: (counts, seconds * counts)}
    for name, one in costs.items():
        pays_after = one.pays_after if np.isfinite(one.pays_after) else None
        rows.append({
            "method": name, "unlearn": 1e3 * one.unlearn, "advantage": one.advantage, "points": one.points,
            "tuning": one.tuning, "search": one.search, "tuned": one.tuned_advantage, "pays_after": pays_after,
        })  # fmt: skip
        lines[name] = (counts, one.search + one.unlearn * counts)
    columns = [
        METHOD, Column("unlearn", "one request [ms]", ".1f"), Column("advantage", "faster by", ".1f"),
        Column("points", "points tried", "d"), Column("tuning", "points x time [s]", ".2f"),
        Column("search", "search as run [s]", ".2f"), Column("tuned", "faster by, tuned", ".2f"),
        Column("pays_after", "pays after requests", ".0f"),
    ]  # fmt: skip
    plot = plots.curves(lines, x_label="requests, log scale", y_label="seconds, log scale", log_x=True, log_y=True)
    table = Table(
        columns, rows, "time of one forget share; the search as run holds several runs of a point and retrained models"
    )
    return Section("What does it cost, tuning counted?", "", [table], [(plot, "Search once, then answer.")])


def concepts(found: Mapping[str, Any]) -> Section:
    """Whole classes: how much of the concept is left on rows that nobody listed.

    Args:
        found: by name, accuracies `forget`, `unseen` and `retain` [seeds, requests].
    """
    rows, shown = [], {}
    for name, one in found.items():
        forget, unseen, retain = (findings.interval(np.mean(getattr(one, x), axis=1)) for x in ("forget", "unseen", "retain"))
        covered = findings.interval(1 - np.mean(one.unseen, axis=1))
        rows.append({"method": name, "forget": forget, "unseen": unseen, "covered": covered, "retain": retain})
        shown[name] = {"listed rows": forget, "rows not listed": unseen, "retain set": retain}
    columns = [
        METHOD, Column("forget", "acc. on listed rows", ".1%"), Column("unseen", "acc. on rows not listed", ".1%"),
        Column("covered", "concept coverage", ".1%"), Column("retain", "retain acc.", ".1%"),
    ]  # fmt: skip
    table = Table(columns, rows, "coverage: share of unlisted (test) rows of the class that are no longer taken for it")
    text = (
        "Retrained models are shown and judge nothing: a model that never saw the listed rows may know the concept from "
        "others, and one that lost the concept need not resemble them."
    )
    figure = plots.accuracy_bars(shown)
    return Section("Is the concept gone, on rows that nobody listed?", text, [table], [(figure, "Accuracy.")])


def in_words(found: Mapping[str, Any]) -> list[str]:
    """What the study found, for readers who read no table.

    Args:
        found: `findings`, and where the aim is a concept the table of `concepts` as the only one of `sections`.

    Returns:
        Sentences.
    """
    if all(one.figure == findings.NO_REFERENCE for one in found["findings"]):
        return [_of_a_concept(row) for row in found["sections"][0].tables[0].rows]
    said = []
    verbs = {findings.REPRODUCED: "reproduced", findings.NOT: "not reproduced", findings.UNTESTABLE: "not decided here"}
    for verdict, verb in verbs.items():
        claims = [one.claim for one in found["findings"] if one.verdict == verdict]
        if claims:
            said.append(f"{len(claims)} of {len(found['findings'])} findings {verb}: {'; '.join(claims)}.")
    return said


def _of_a_concept(row: Mapping[str, Any]) -> str:
    known, listed, rest = (f"{float(row[name].estimate):.0%}" for name in ("unseen", "forget", "retain"))
    return (
        f"After {row['method']}, {known} of rows of the class that nobody listed are still taken for it, {listed} of listed "
        f"ones. Accuracy on what stays is {rest}."
    )


def as_json(section: Section) -> list[dict[str, Any]]:
    """Rows of a section's first table, for JSON."""

    def plain(value: Any) -> Any:
        if isinstance(value, Interval):
            return [tables.rounded(float(x)) for x in value]
        return tables.rounded(float(value)) if isinstance(value, float | np.floating) else value

    return [{name: plain(value) for name, value in row.items()} for row in section.tables[0].rows]


def _compared(figures: Mapping[str, Figures]) -> dict[str, Figures]:
    return {name: found for name, found in figures.items() if name != RETRAINED}


def _over_shares(
    figures: Mapping[str, Figures], asked: Asked, shares: Sequence[float], field: str, part: int | None = None
) -> dict[str, list[ju.audit.Interval]]:
    """Gaps by method and share."""
    return {
        name: [findings.interval(gaps(found, figures[RETRAINED], field, asked.of(share_kind(share)), part)) for share in shares]
        for name, found in _compared(figures).items()
    }


def _against_share(spans: Mapping[str, list[Interval]], shares: Sequence[float], label: str, scale: float) -> Figure:
    lines, bands = {}, {}
    for name, intervals in spans.items():
        middle, low, high = scale * np.array([[float(x) for x in span] for span in intervals]).T
        lines[name], bands[name] = (100 * np.array(shares), middle), (low, high)
    return plots.curves(
        lines, x_label="rows forgotten [%], log scale", y_label=label, log_x=True, level=(RETRAINED, 0.0), bands=bands
    )
