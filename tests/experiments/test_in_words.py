"""What reports say in plain words on top, from rows of their tables."""

from types import SimpleNamespace

import pytest

from experiments import certified_stream, curvature, remind
from experiments.common import findings, stream_page, study_page
from experiments.common.findings import Finding
from experiments.common.outcome import AGAIN, NOTHING
from jaxunlearn.audit import Interval

APART, CLOSE = Interval(0.031, 0.01, 0.05), Interval(-0.002, -0.01, 0.01)


def test_a_study_counts_its_findings():
    found = [
        Finding("1. close", findings.REPRODUCED, "", {}),
        Finding("2. falls", findings.NOT, "", {}),
        Finding("3. alike", findings.REPRODUCED, "", {}),
        Finding("4. hard", findings.UNTESTABLE, "", {}),
    ]
    assert study_page.in_words({"findings": found}) == [
        "2 of 4 findings reproduced: 1. close; 3. alike.",
        "1 of 4 findings not reproduced: 2. falls.",
        "1 of 4 findings not decided here: 4. hard.",
    ]
    assert study_page.in_words({"findings": found[:1]}) == ["1 of 1 findings reproduced: 1. close."]


def test_a_concept_is_told_by_rows_that_nobody_listed():
    accuracies = {"forget": [[0.1], [0.1]], "unseen": [[0.3], [0.3]], "retain": [[0.9], [0.9]]}
    page = study_page.concepts({"salun": SimpleNamespace(**accuracies)})
    (said,) = study_page.in_words({"findings": findings.of_a_concept(), "sections": [page]})
    assert said == (
        "After salun, 30% of rows of the class that nobody listed are still taken for it, 10% of listed ones. Accuracy on "
        "what stays is 90%."
    )


def test_a_stream_tells_gaps_that_are_none_from_others():
    row = {"requests": 5, "retain": APART, "forgotten": APART, "test": APART}
    last = [
        row | {"requests": 10, "method": "scrub", "retain": CLOSE, "test": CLOSE},
        row | {"requests": 10, "method": NOTHING, "retain": CLOSE, "test": CLOSE, "forgotten": CLOSE},
        row | {"requests": 10, "method": AGAIN},
    ]
    assert stream_page.drift_in_words([row | {"method": "scrub"}, *last]) == [
        "After 10 requests, scrub: accuracy is off that of retrained models by +3.1 points on forgotten rows.",
        f"After 10 requests, {NOTHING}: no accuracy is told from retrained.",
    ]
    rules = [{"method": "scrub", "over_fixed": gap} for gap in (APART, CLOSE, Interval(-1.0, -2.0, -0.5), CLOSE)]
    assert stream_page.retraining_in_words(rules) == [
        "When to retrain, scrub: of 4 prices the rule costs more than the best fixed interval at 1, less at 1, and is not told "
        "from it at 2."
    ]


@pytest.mark.parametrize("refusal", [[], ["extractor: it saw them"]])
def test_a_certified_stream_says_what_holds_and_what_not(refusal):
    row = {
        "head": "pixels", "removals": 10, "milliseconds": 1.23, "refit_milliseconds": 45.6, "certificates": 2, "distance": 1e-9,
        "distance_bound": 2e-8, "accuracy": None if refusal else Interval(0.95, 0.94, 0.96), "retrained_accuracy": 0.96,
    }  # fmt: skip
    said = certified_stream.in_words(certified_stream.Config(), row, refusal)
    assert said.startswith("Head on pixels: 10 rows left one after another, 1.2 ms each")
    if refusal:
        assert said.endswith("No certificate: extractor: it saw them.")
    else:
        assert "2 certificates hold; at the end it is 1e-09 from a retrained head, and at most 2e-08 by the bound." in said
        assert said.endswith("right on 95.0% of test rows, a retrained head on 96.0%.")


def test_curvature_names_what_is_closest_and_what_is_worse_than_nothing():
    cost = {"damping": 1e-2, "fit_seconds": 0.5, "solve_ms": 2.0}
    rows = [
        {"representation": "dense GGN", "error": 0.0, "left": 0.2, **cost},
        {"representation": "EK-FAC", "error": 0.3, "left": 0.4, **cost},
        {"representation": "diagonal", "error": 0.9, "left": 1.2, **cost},
    ]
    assert curvature.in_words(rows, "the dense GGN") == [
        "Steps closest to those with the reference (the dense GGN): EK-FAC at damping 1e-02, relative error 0.30; 0.5 s to "
        "fit, 2 ms for a solve.",
        "Closest to retrained: dense GGN at damping 1e-02, 20% of the way is left; 0.5 s to fit, 2 ms for a solve.",
        "Worse than doing nothing at some damping: diagonal.",
    ]
    moving = [row | {"left": None} for row in rows]
    assert curvature.in_words(moving, "x")[-1] == "Training had not ended, so that no distance to retrained is reported."


def test_remind_says_what_is_more_than_in_a_retrained_model():
    row = {"method": "npo", "auc": 0.61, "excess": -0.02, "alone": 0.58}
    assert remind.in_words(row) == (
        "After npo, forgotten texts are told from unseen ones with an AUC of 0.61, 0.02 less than in a retrained model; the "
        "loss of the text alone gives 0.58."
    )
