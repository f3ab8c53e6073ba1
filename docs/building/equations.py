"""Equations of docstrings, which are plain text, as HTML: Greek letters, arrows, indices below and powers above the line."""

import re
from html import escape

_NAMES = (
    "alpha beta gamma delta epsilon zeta eta theta kappa lambda mu nu xi pi rho sigma tau phi chi psi omega "
    "Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega"
)
GREEK = dict(zip(_NAMES.split(), "αβγδεζηθκλμνξπρστφχψωΓΔΘΛΞΠΣΦΨΩ", strict=True))
WORDS = {**GREEK, "grad": "∇", "sum": "∑", "sqrt": "√", "infinity": "∞"}
SIGNS = {"&lt;-": "←", "-&gt;": "→", "&lt;=": "≤", "&gt;=": "≥", "!=": "≠", "||": "‖", " ~ ": " ∼ "}  # noqa: RUF001
_BASE = r"(?:\b[A-Za-zα-ωΑ-Ω]|\b(?:mean|max|min|argmin|argmax|softmax|percentile|log|KL|CE|diag)|[∇∑∞)\]‖'}])"  # noqa: RUF001
_BELOW = re.compile(rf"({_BASE})_(\{{[^{{}}]*\}}|[A-Za-zα-ω0-9](?!\w)|[A-Za-zα-ω0-9]+(?![\w(]))")  # noqa: RUF001
_ABOVE = re.compile(r"\^(\{[^{}]*\}|\([^()]*\)|-?[A-Za-z0-9α-ω]+|[*+'])")  # noqa: RUF001


def to_html(text: str) -> str:
    """An equation as HTML that keeps its lines and spaces; identifiers such as `retain_weight` stay as they are.

    Args:
        text: as it stands in a docstring.

    Returns:
        Text with `sub` and `sup` in it, for an element that keeps spaces.

    Example:
        >>> from docs.building.equations import to_html
        >>> to_html("w_j <- w_j - alpha^2 retain_weight K_S^{-1}")
        'w<sub>j</sub> ← w<sub>j</sub> - α<sup>2</sup> retain_weight K<sub>S</sub><sup>-1</sup>'
    """  # noqa: RUF002
    text = escape(text, quote=False)
    for sign, shown in SIGNS.items():
        text = text.replace(sign, shown)
    for word, letter in WORDS.items():
        text = re.sub(rf"(?<![A-Za-z_]){word}(?![A-Za-z])(?!_[a-z]{{2}})", letter, text)
    text = _ABOVE.sub(lambda match: f"<sup>{_bare(match[1])}</sup>", text)
    return _BELOW.sub(lambda match: f"{match[1]}<sub>{_bare(match[2])}</sub>", text)


def _bare(text: str) -> str:
    return text[1:-1] if text[0] == "{" else text


def block(text: str) -> str:
    """An equation as a block of a Markdown page.

    Args:
        text: its lines, without their common indentation.

    Returns:
        Markdown with HTML in it.
    """
    return f'```{{raw}} html\n<pre class="equation" tabindex="0">{to_html(text)}</pre>\n```'
