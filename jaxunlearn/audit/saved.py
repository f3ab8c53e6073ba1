"""Saved results as a report again: the JSON of an audit, or of a comparison of methods with retraining."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxunlearn.audit import in_short, pages
from jaxunlearn.audit.figures import KINDS
from jaxunlearn.audit.metrics import METRICS
from jaxunlearn.audit.pages import Section, Table, cell
from jaxunlearn.audit.statistics.verdict import MESSAGES
from jaxunlearn.proportions import Interval

HEADINGS = (
    "metric", "unlearned", "over rows too", "floor (retrained)", "ceiling (do nothing)", "p", "verdict", "false positives",
)  # fmt: skip
VERDICT = HEADINGS.index("verdict")
VERDICTS = {verdict.name.lower(): text for verdict, text in MESSAGES.items()}
LEVELS = ("do nothing", "original", "retrained again")  # older files say `original`
WORST = "Worst: the largest gap to retrained models in standard deviations of one retrained model over seeds."


def report_of(found: Mapping[str, Any]) -> tuple[str, list[Section]]:
    """Title and sections of a saved result.

    Args:
        found: what `json.loads` gives of the file.

    Returns:
        The title, and sections for `jaxunlearn.audit.pages`.

    Raises:
        ValueError: neither an audit nor a comparison.

    Example:
        >>> from jaxunlearn.audit.saved import report_of
        >>> found = {"scenarios": {"random": {"methods": {"scrub": {"means": {"test": [0.9, 0.8, 1.0]}, "worst": 2.0}}}}}
        >>> title, (summary, section) = report_of(found)
        >>> summary.text.split('. ')[0]
        'Of 1 method, 1 is not told apart from retrained models by any measure: scrub'
        >>> section.tables[0].rows
        [['scrub', '90.0% [80.0, 100.0]', '–', '+2.0']]
    """  # noqa: RUF002
    keys = set(found) if isinstance(found, Mapping) else set()
    if {"judgements", "means"} <= keys:
        return "jaxunlearn audit", of_audit(found)
    if "scenarios" in keys:
        scenarios = [_scenario(name, one) for name, one in found["scenarios"].items()]
        apart = gaps_of(found["scenarios"])
        summary = [in_short.of_gaps(apart, LEVELS)] if apart else []  # older files hold no gaps
        return "jaxunlearn comparison", [*summary, *scenarios, *_settings(found)]
    raise ValueError(
        "expected the JSON of an audit (keys 'judgements' and 'means') or of a comparison (key 'scenarios'), got the keys "
        f"{', '.join(sorted(map(str, keys))) or 'of no object'}"
    )


def to_markdown(title: str, sections: Sequence[Section]) -> str:
    """Sections as GitHub's Markdown.

    Args:
        title: the first heading.
        sections: their figures are left out.

    Returns:
        The text, which ends with a line break.

    Example:
        >>> from jaxunlearn.audit.pages import Section
        >>> from jaxunlearn.audit.saved import to_markdown
        >>> print(to_markdown("Audit", [Section("Times", "In seconds.")]), end="")
        # Audit
        <BLANKLINE>
        ## Times
        <BLANKLINE>
        In seconds.
    """
    parts = [f"# {title}"]
    for section in sections:
        parts += [f"## {section.title}", section.text, *(pages.to_markdown(table).rstrip() for table in section.tables)]
        parts += [f"**{term}**: {text}" for _, term, text in section.terms]
    return "\n\n".join(part for part in parts if part) + "\n"


def interval(value: Any) -> Interval | None:
    """An interval as JSON files hold it: an object, or three numbers; None where it is missing or was not finite.

    Args:
        value: of the file.

    Returns:
        The interval; limits that are None are NaN.

    Example:
        >>> from jaxunlearn.audit.saved import interval
        >>> interval([0.5, 0.4, None])
        Interval(estimate=0.5, low=0.4, high=nan)
    """
    numbers: list[Any] = list(value.values() if isinstance(value, Mapping) else value or ())
    if not numbers or numbers[0] is None:
        return None
    known: list[Any] = [float("nan") if x is None else x for x in numbers]
    return Interval(*known)


def verdicts(found: Mapping[str, Any]) -> Table:
    """Every metric of an audit beside its floor and its ceiling; gaps have their sign, values an interval.

    Args:
        found: JSON of an audit; what older files lack stays empty.

    Returns:
        A row for each metric, then one for each control.

    Example:
        >>> from jaxunlearn.audit.saved import verdicts
        >>> judged = {"value": [0.1, 0.0, 0.2], "floor": [0.0, -0.1, 0.1], "ceiling": 0.5, "p_value": 0.02, "verdict": "under"}
        >>> verdicts({"judgements": {"forget_accuracy": judged}}).rows[0][-5:]
        ['+0.000 [-0.100, +0.100]', '+0.500', '0.020', 'under', '']
    """
    rows = []
    for part, note in (("judgements", ""), ("controls", "control (do nothing): ")):
        for name, judged in found.get(part, {}).items():
            form = "+.3f" if name in METRICS and METRICS[name].signed else ".3f"
            over, rate = (
                interval(found.get(of, {}).get(name)) if part == "judgements" else None
                for of in ("over_rows", "false_positives")
            )
            rows.append([
                note + _label(name),
                cell(interval(judged["value"]), form),
                "" if over is None else f"[{over.low:{form}}, {over.high:{form}}]",
                cell(interval(judged["floor"]), form),
                cell(judged["ceiling"], form),
                cell(judged["p_value"], ".3f"),
                judged["verdict"],
                "" if rate is None else cell(rate, ".0%"),
            ])  # fmt: skip
    links = {_label(name): name for name in found.get("judgements", {})}
    return Table(HEADINGS, rows, kinds=in_short.KINDS, links=links)


def means(found: Mapping[str, Any]) -> Table:
    """Plain means of each kind of model.

    Args:
        found: JSON of an audit.

    Returns:
        A row for each kind.

    Example:
        >>> from jaxunlearn.audit.saved import means
        >>> means({"means": {"original": {"forget_accuracy": 1.0}}}).rows
        [['do nothing', '1.000']]
    """
    names = list(next(iter(found["means"].values()), {}))
    rows = [[KINDS.get(kind, kind), *(cell(of.get(name), ".3f") for name in names)] for kind, of in found["means"].items()]
    return Table(["models", *map(_label, names)], rows, numbers=range(1, 1 + len(names)))


def remarks(found: Mapping[str, Any]) -> list[str]:
    """What stands in for margins, and which metrics are left out, of models that are no classifiers.

    Args:
        found: JSON of an audit.

    Returns:
        Sentences, none for classifiers.

    Example:
        >>> from jaxunlearn.audit.saved import remarks
        >>> remarks({"settings": {"score": "margin"}})
        []
    """
    settings = found.get("settings", {})
    if settings.get("score", "margin") == "margin":
        return []
    said = [f"Task: {settings['task']}. A score stands in for margins: {settings['score']}, of the model's own loss."]
    if infinite := settings.get("infinite_losses"):
        said.append(f"{infinite} losses are infinite and count as the largest finite one.")
    whys: dict[str, list[str]] = {}
    for name, why in found.get("left_out", {}).items():
        whys.setdefault(why, []).append(_label(name))
    return said + [f"Left out: {', '.join(labels)}, which {_verb(why, len(labels))}." for why, labels in whys.items()]


def _verb(why: str, count: int) -> str:
    return why if count == 1 else why.replace("needs", "need", 1)


def of_audit(found: Mapping[str, Any], *, figures: Sequence[tuple[Any, str]] = (), sides: str = "") -> list[Section]:
    """Sections of an audit.

    Args:
        found: its JSON.
        figures: beside the verdicts, with captions; files hold none.
        sides: how many rows lie on which side of retrained models, in words.

    Returns:
        Sections for `jaxunlearn.audit.pages`.

    Example:
        >>> from jaxunlearn.audit.saved import of_audit
        >>> [section.title for section in of_audit({"means": {}, "judgements": {}})]
        ['In short', 'Means', 'Verdicts', 'Definitions']
    """
    main = verdicts(found)
    said = "\n\n".join(f"{name}: {text}." for name, text in VERDICTS.items() if name in {row[VERDICT] for row in main.rows})
    judged = [
        {_label(name): judged["verdict"] for name, judged in found.get(part, {}).items()} for part in ("judgements", "controls")
    ]
    sections = [
        in_short.of_audit(*judged),
        Section("Means", tables=[means(found)]),
        Section("Verdicts", said, [main], figures),
    ]
    if worst := found.get("worst_examples", []):
        fields = ("shift", "unlearned", "retrained", "original")
        lines = [[str(x["row"]), *(cell(x[name], "+.2f") for name in fields)] for x in worst]
        text = "Rows of the forget set that are furthest from retrained models; shift in their standard deviations."
        shown = Table(["row of the request", "shift [sd]", *fields[1:]], lines, numbers=range(5))
        sections.append(Section("The worst examples", f"{text}\n\n{sides}" if sides else text, [shown]))
    terms = [(name, _label(name), f"{METRICS[name].definition}.") for name in found["judgements"] if name in METRICS]
    return [*sections, Section("Definitions", "\n\n".join(remarks(found)), terms=terms), *_settings(found)]


def _settings(found: Mapping[str, Any]) -> list[Section]:
    rows = [
        [name.replace("_", " "), cell(value) if isinstance(value, str | None) else f"{value}"]
        for part in ("settings", "config", "environment")
        if isinstance(found.get(part), Mapping)
        for name, value in found[part].items()
    ]
    table = Table(["name", "value"], rows)
    return [Section("Settings and versions", tables=[table], role="folded")] if rows else []


def gaps_of(scenarios: Mapping[str, Any]) -> dict[str, dict[tuple[str, str], float | None]]:
    """Gaps in seed spreads by method, scenario and measure; where a file holds the worst only, that.

    Args:
        scenarios: of the file, by name.

    Returns:
        `{method: {(scenario, measure): gap}}`, None where it was not finite.

    Example:
        >>> from jaxunlearn.audit.saved import gaps_of
        >>> gaps_of({"class": {"methods": {"ssd": {"gaps_in_spreads": {"forget": 2.5}}}}})
        {'ssd': {('class', 'forget'): 2.5}}
    """
    gaps: dict[str, dict[tuple[str, str], float | None]] = {}
    for scenario, one in scenarios.items():
        for method, line in one["methods"].items():
            known = line.get("gaps_in_spreads", line.get("gaps_in_seed_spreads"))
            if known is None and "worst" in line:
                known = {line.get("worst_at", "forget"): line["worst"]}
            if known:
                gaps.setdefault(method, {}).update({(scenario, measure): gap for measure, gap in known.items()})
    return gaps


def _label(name: str) -> str:
    return METRICS[name].label if name in METRICS else name.replace("_", " ")


def _scenario(name: str, one: Mapping[str, Any]) -> Section:
    measures = list(dict.fromkeys(measure for method in one["methods"].values() for measure in method.get("means", {})))
    noted = any(line.get("note") for line in one["methods"].values())
    rows = []
    for method, line in one["methods"].items():
        means = [cell(interval(line.get("means", {}).get(x)), ".3f" if x == "auc" else ".1%") for x in measures]
        place = f" ({line['worst_at']})" if line.get("worst_at") else ""
        worst = cell(line.get("worst"), "+.1f") + place
        rows.append(
            [method, *means, cell(line.get("milliseconds"), ".1f"), worst, *([cell(line.get("note"))] if noted else [])]
        )
    left = [f"{method} is left out: it {reason}." for method, reason in one.get("left_out", {}).items()]
    question = f"Question: {one['question']}." if one.get("question") else ""
    headings = ["method", *(x.replace("_", " ") for x in measures), "ms per request", "worst", *(["note"] if noted else [])]
    table = Table(headings, rows, numbers=range(1, len(measures) + 3))
    return Section(name.capitalize(), "\n\n".join(x for x in (question, WORST, *left) if x), [table])
