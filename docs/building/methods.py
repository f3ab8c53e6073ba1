"""Pages from the cards of the catalogue: one for each method, one for each task, and which method to take."""

import ast
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from docs.building import comparison, docstrings, equations
from jaxunlearn import catalogue
from jaxunlearn.audit import metrics, pages

CARDS = {name: catalogue.METHODS[name] for name in sorted(catalogue.METHODS)}
EMPTY = {"identity": "the model as it is", "finetune": "more training on all rows", "train": "a training on all rows"}


def link(name: str, folder: str = "methods/") -> str:
    """A link to the page of a method."""
    return f"[`{catalogue.path_of(name).replace('jaxunlearn.', 'ju.')}`]({folder}{name}.md)"


def table(cards: Iterable[str], folder: str = "methods/") -> str:
    """Methods with what they read and guarantee.

    Args:
        cards: names.
        folder: of the methods' pages, seen from the page.

    Returns:
        Markdown.
    """
    rows = [
        [link(name, folder), CARDS[name].summary, ", ".join(sorted(CARDS[name].reads)) or "nothing", CARDS[name].guarantee]
        for name in cards
    ]
    return pages.to_markdown(pages.Table(["method", "what it does", "reads", "guarantee"], rows)) if rows else "None.\n"


def signature(function: Callable[..., Any]) -> str:
    """A function's head as it stands in the source, one argument a line.

    Args:
        function: with a source.

    Returns:
        Python.

    Example:
        >>> from docs.building.methods import signature
        >>> print(signature(signature))
        signature(
            function: Callable[..., Any],
        ) -> str
    """
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    given = node.args
    plain = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(plain) - len(given.defaults)) + list(given.defaults)

    def one(argument: ast.arg, default: ast.expr | None) -> str:
        kind = f": {ast.unparse(argument.annotation)}" if argument.annotation else ""
        equal = " = " if kind else "="
        return argument.arg + kind + (f"{equal}{ast.unparse(default)}" if default is not None else "")

    lines = [one(*pair) for pair in zip(plain, defaults, strict=True)]
    if given.posonlyargs:
        lines.insert(len(given.posonlyargs), "/")
    if given.vararg:
        lines.append(f"*{one(given.vararg, None)}")
    elif given.kwonlyargs:
        lines.append("*")
    lines += [one(*pair) for pair in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    lines += [f"**{one(given.kwarg, None)}"] if given.kwarg else []
    returned = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    body = "".join(f"\n    {line}," for line in lines) + ("\n" if lines else "")
    return f"{node.name}({body}){returned}"


def page_of(name: str) -> str:
    """The page of one method, from its file.

    Args:
        name: in the catalogue.

    Returns:
        Markdown.
    """
    card, factory = CARDS[name], CARDS[name].factory
    module = sys.modules[factory.__module__]
    facts = [
        ["other names", ", ".join(f"`{alias}`" for alias in card.aliases) or "none"],
        ["family", card.family],
        ["reads", ", ".join(sorted(card.reads)) or "nothing"],
        ["guarantee", card.guarantee],
        ["takes", f"a {card.takes}" if card.takes != "environment" else "an environment"],
        ["targets", catalogue.TARGETS.get(card.takes, card.targets)],
        ["forgets", card.requests],
        ["an empty request gets", EMPTY[card.on_empty]],
    ]
    if card.reconstruction:
        facts.append(["source", "a reconstruction, from an abstract or a summary, not from the paper's own equations"])
    searched = [[f"`{key}`", ", ".join(f"{value:g}" for value in values)] for key, values in card.search.items()]
    reported = comparison.section(name)
    parts = [
        f"# `{catalogue.path_of(name).removeprefix('jaxunlearn.')}`",
        f"{card.summary[0].upper()}{card.summary[1:]}.",
        pages.to_markdown(pages.Table(["property", "value"], facts)).rstrip(),
        "## What it does",
        docstrings.to_markdown(inspect.getdoc(module) or "", equations.block),
        "## How to call it",
        f"```python\n{signature(factory)}\n```",
        docstrings.to_markdown(inspect.getdoc(factory) or ""),
        *(
            ["## Settings worth trying", pages.to_markdown(pages.Table(["setting", "values"], searched)).rstrip()]
            * bool(searched)
        ),
        *(["## Measured on digits", reported] if reported else []),
        "## What to cite",
        f"```bibtex\n{catalogue.references()[card.cites]}\n```",
    ]
    return "\n\n".join(parts) + "\n"


# Which method

READS = (
    ("The forget set alone", {"forget"}),
    ("The forget set, and the model's head or features", {"forget", "head", "layer", "forget labels"}),
    ("The forget set, and what was prepared once for all requests", {
        "forget", "head", "layer", "moments", "curvature", "fisher_diagonal", "importances", "sensitivities", "factorisation",
        "updates", "features",
    }),
    ("The retain set alone, with or without fresh weights", {"retain", "init"}),
)  # fmt: skip


def which() -> str:
    """Which method: questions whose answers narrow the list, from the cards and the comparison.

    Returns:
        Markdown.
    """
    parts = [
        "# Which method?",
        "Answer from the top; each answer narrows the list. Whatever you choose, [tune it](../howto/tuning.md) and "
        "[audit it](../concepts.md#floors-and-verdicts). `python -m jaxunlearn methods --reads forget` filters the same cards.",
        "## Must it be proved?",
        "Then only these: *exact* is retraining in effect, *certified* holds for a result that `certificates.certify` accepts.",
        table(name for name, card in CARDS.items() if card.guarantee != "none"),
        "## What may still be read?",
        "Rows of the retain set may be gone, or too many. What a card does not name is not read: tests overwrite it with NaN.",
    ]
    seen: set[str] = set()
    for title, allowed in READS:
        names = [x for x, card in CARDS.items() if card.takes == "model" and card.reads <= allowed and x not in seen]
        seen |= set(names)
        parts += [f"### {title}", table(names)]
    rest = [x for x, card in CARDS.items() if card.takes == "model" and x not in seen]
    parts += ["### Forget set and retain set, or more", table(rest)]
    parts += ["## What is to be forgotten?"]
    for kind in ("rows", "classes", "attributes"):
        names = [name for name, card in CARDS.items() if card.requests == kind]
        shown = f"All methods but those below: {len(names)} of {len(CARDS)}." if kind == "rows" else table(names)
        parts += [f"### {kind.capitalize()}", shown]
    parts += [
        "## Which task?",
        "\n".join(f"- [{written(name)[0]}](tasks/{name}.md)" for name in TASKS),
        "## How long may a request take?",
        "Of the families *closed form* and *representation*, those that read no retain set answer in one pass over the forget "
        "set; *objective* takes steps, retraining all of them.",
        "## What came closest to retraining?",
        "On digits, settings searched apart; the gap is the largest over all measures, in seed spreads. It is one data set and "
        "one small network: a first guess and no ranking.",
    ]
    for scenario, words in (
        ("random", "Random rows"),
        ("class", "A class"),
        ("backdoor", "Poisoned rows"),
        ("group", "A group"),
    ):
        rows = [
            [link(x), pages.cell(m.worst, "+.1f"), pages.cell(m.milliseconds, ".1f")]
            for x, m in comparison.closest(scenario, 6)
        ]
        floor = comparison.closest(scenario, 1)[0][1].floor
        shown = pages.Table(["method", "worst gap", "ms a request"], rows, numbers=(1, 2))
        parts += [f"### {words}", f"A second retraining: {pages.cell(floor, '+.1f')}.", pages.to_markdown(shown)]
    return "\n\n".join(parts) + "\n"


# Tasks: what is written by hand, in `docs/tasks`, and behind it what fits by the cards

WRITTEN = Path(__file__).parents[1] / "tasks"
# by name of the page, what the targets are, see `catalogue.fits`
TASKS = {"classes": "classes", "tokens": "tokens", "labels": "labels", "values": "values", "recommender": "values"}
CERTIFIED = {
    "classes": "`convex.logistic` and `convex.softmax` heads on features that never saw the forgotten rows",
    "labels": "`convex.logistic` heads, one for each label",
    "values": "`convex.ridge` heads on features that never saw the forgotten rows",
    "tokens": "",
}


def written(name: str) -> tuple[str, str, str]:
    """What is written of a task by hand.

    Args:
        name: a key of `TASKS`.

    Returns:
        Its title, its first paragraph, and all of it; links as from the folder of the tasks' generated pages.
    """
    text = (WRITTEN / f"{name}.md").read_text().replace("](../", "](../../").replace("](../../generated/", "](../")
    title, form, *_ = text.split("\n\n")
    return title.removeprefix("# "), form.replace("\n", " "), text.rstrip()


def task(name: str) -> str:
    """The page of one task: an example, and methods, audits and certificates that apply.

    Args:
        name: a key of `TASKS`.

    Returns:
        Markdown.
    """
    kind = TASKS[name]
    audits = [
        [f"`{key}`", metric.label, metric.definition] for key, metric in metrics.METRICS.items() if metrics.fits(metric, kind)
    ]
    others = [metric.label for metric in metrics.METRICS.values() if not metrics.fits(metric, kind)]
    proofs = [x for x, card in CARDS.items() if card.takes in ("problem", "learner") and card.guarantee != "none"]
    parts = [
        written(name)[2],
        "## Methods",
        table(catalogue.chosen(task=kind), "../methods/"),
        "## Audits",
        "Metrics of `audit.run`, each between retrained models and doing nothing:",
        pages.to_markdown(pages.Table(["name", "label", "what it is"], audits)).rstrip(),
        f"Left out here: {', '.join(others)}." if others else "All metrics apply.",
        "## Certificates",
    ]
    if CERTIFIED[kind]:
        parts += [f"For {CERTIFIED[kind]}, and for learners that are functions of sums:", table(proofs, "../methods/")]
    else:
        parts.append("None: no convex head of token sequences is there.")
    parts.append(
        "Runs of any model whose steps are noisy and bounded: [`certificates.certify_run`](../reference/certificates.md)."
    )
    if name == "tokens":
        parts.append("More audits of language models: [`audit.language`](../reference/audit.language.md).")
    return "\n\n".join(parts) + "\n"


def index() -> str:
    """The list of methods, with the pages below it.

    Returns:
        Markdown.
    """
    words: dict[str, list[str]] = {}
    for name, card in CARDS.items():
        words.setdefault(card.family, []).append(name)
    parts = ["# Methods", "One page for each, from its file. [Which method?](which.md) narrows them."]
    for family, names in words.items():
        parts += [f"## {family.capitalize()}", table(names)]
    return "\n\n".join([*parts, toctree(f"methods/{name}" for name in CARDS)]) + "\n"


def toctree(names: Iterable[str]) -> str:
    """A hidden list of the pages below this one."""
    return "```{toctree}\n:hidden:\n\n" + "\n".join(names) + "\n```"


def all_pages() -> dict[str, str]:
    """Pages by their paths in the folder of generated ones."""
    found = {f"methods/{name}.md": page_of(name) for name in CARDS}
    found |= {f"tasks/{name}.md": task(name) for name in TASKS}
    listed = "\n".join(f"- [{title}](tasks/{name}.md): {form}" for name in TASKS for title, form, _ in [written(name)])
    listed = listed.replace("](../../", "](../")
    tasks = f"# Tasks\n\nWhat fits which task.\n\n{listed}\n\n{toctree(f'tasks/{name}' for name in TASKS)}\n"
    return {**found, "which.md": which(), "methods.md": index(), "tasks.md": tasks}
