"""What stands on top of a report: the answer in plain words, and a verdict for each method or metric."""

from collections.abc import Collection, Mapping
from itertools import groupby

from jaxunlearn.audit.pages import Kind, Section, Table

TITLE = "In short"
LIMIT = 2.0  # seed spreads: gaps within are none
KINDS: dict[str, Kind] = {"inside": "good", "under": "bad", "over": "bad", "mixed": "bad", "unknown": "open"}
SIDES = {
    "inside": "as retrained models",
    "under": "too much is left",
    "over": "driven out too far",
    "mixed": "off the floor on no side",
    "unknown": "no number came out",
}
ALIKE, APART = "not told apart", "told apart"


def of_audit(verdicts: Mapping[str, str], controls: Mapping[str, str]) -> Section:
    """An audit in short.

    Args:
        verdicts: by the label of a metric, the name of its `Verdict` in lower case, or `unknown`.
        controls: the same for rows on which there is nothing to find.

    Returns:
        A section for the top of the page.

    Example:
        >>> from jaxunlearn.audit.in_short import of_audit
        >>> found = of_audit({"accuracy": "inside", "loss": "under"}, {})
        >>> found.text
        'On 1 of 2 metrics, unlearned models are not told apart from retrained ones.'
        >>> found.tables[0].rows[1]
        ['under', 'too much is left', 'loss']
    """
    inside = [name for name, verdict in verdicts.items() if verdict == "inside"]
    said = [f"On {len(inside)} of {len(verdicts)} metrics, unlearned models are not told apart from retrained ones."]
    if len(inside) == len(verdicts):
        said.append("What no metric finds with this many models may still be there.")
    rows = [
        [side, words, ", ".join(name for name, verdict in verdicts.items() if verdict == side)] for side, words in SIDES.items()
    ]
    seen = [name for name, verdict in controls.items() if verdict != "inside"]
    if seen:
        said.append(f"The control shows a signal where none can be: {', '.join(seen)}. Believe these metrics less.")
    table = Table(["verdict", "what it says", "metrics"], [row for row in rows if row[2]], kinds=KINDS)
    return Section(TITLE, " ".join(said), [table], role="summary")


def of_gaps(gaps: Mapping[str, Mapping[tuple[str, str], float | None]], levels: Collection[str] = ()) -> Section:
    """A comparison with retrained models in short.

    Args:
        gaps: by method, then by (scenario, measure), a signed gap to retrained models in seed spreads; None: not finite.
            Measures are `forget`, `auc`, `unseen`, where more is too little forgotten, and `retain`, `test`.
        levels: methods that are there to be compared with and do not count, as doing nothing.

    Returns:
        A section for the top of the page: text, and a row for each method.

    Example:
        >>> from jaxunlearn.audit.in_short import of_gaps
        >>> found = of_gaps({"ssd": {("rows", "forget"): 3.0, ("rows", "test"): -1.0}, "npo": {("rows", "forget"): 0.5}})
        >>> found.text.split(". ")[0]
        'Of 2 methods, 1 is not told apart from retrained models by any measure: npo'
        >>> found.tables[0].rows[1]
        ['ssd', 'told apart', '1 of 2', 'forgets too little on rows']
    """
    rows, share = {}, {}
    for method, found in gaps.items():
        apart = {place: gap for place, gap in found.items() if gap is None or abs(gap) > LIMIT}
        share[method] = len(apart) / max(len(found), 1)
        rows[method] = [method, APART if apart else ALIKE, f"{len(apart)} of {len(found)}", _why(apart)]
    methods = sorted((method for method in gaps if method not in levels), key=share.__getitem__)
    alike = [method for method in methods if not share[method]]
    counted = f"Of {len(methods)} {'method' if len(methods) == 1 else 'methods'}"
    if alike:
        verb = "is" if len(alike) == 1 else "are"
        text = f"{counted}, {len(alike)} {verb} not told apart from retrained models by any measure: {', '.join(alike)}."
    elif methods:
        _, _, number, why = rows[methods[0]]
        text = f"{counted}, none is like retrained models. Closest: {methods[0]}, by {number} measures; it {why}."
    else:
        text = "No method is compared."
    text += f" Told apart: a gap of more than {LIMIT:g} seed spreads; among many measures some come by chance."
    ordered = [rows[method] for method in [*methods, *(method for method in gaps if method in levels)]]
    table = Table(["method", "verdict", "by measures", "why"], ordered, numbers=(2,), kinds={ALIKE: "good", APART: "bad"})
    return Section(TITLE, text, [table], role="summary")


def _why(apart: Mapping[tuple[str, str], float | None]) -> str:
    """In which scenarios a method does what."""
    said = sorted((_words(measure, gap), scenario) for (scenario, measure), gap in apart.items())
    parts = [
        f"{words} on {', '.join(dict.fromkeys(scenario for _, scenario in places))}"
        for words, places in groupby(said, lambda x: x[0])
    ]
    return "; ".join(parts)


def _words(measure: str, gap: float | None) -> str:
    if gap is None:
        return "has no finite gap"
    if measure in ("retain", "test"):
        return "knows the rest better" if gap > 0 else "damages the rest"
    return "forgets too little" if gap > 0 else "forgets too much"
