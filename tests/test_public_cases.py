"""Faults that users of other libraries reported, tried here. The others of the kind stand beside what they are about:

- one loss, or relabelling and repair in turns: `methods/test_random_label.py`;
- curvature in chunks smaller than the request: `methods/test_newton.py`;
- offline likelihood ratios by density and by tail: `audit/ensembles/test_ensembles.py`;
- gradients of single rows under shared weights: `curvature/test_sharing.py`, `curvature/test_layer_tracing.py`.
"""

import jax

import jaxunlearn as ju
from tests.methods.runs import DATA, MODEL, REQUEST, answer
from tests.problems import distance, held_out


def test_an_attack_that_ends_at_zero_is_no_success():
    found = answer("gradient_ascent", rate=1.0)
    scores = jax.jit(lambda v: ju.audit.loss_scores(MODEL, v, DATA, REQUEST, held_out()))(found.variables)
    area = float(ju.audit.auc(*scores))
    assert area < 0.2
    assert float(ju.audit.indiscernibility(1 - area)) < 0.4  # the attack turned around is nearly always right
    assert float(ju.audit.privacy_leak(area, 0.5)) > 60  # positive: driven out so hard that it shows
    still = answer("gradient_ascent", rate=0.0).variables
    assert area < float(ju.audit.auc(*ju.audit.loss_scores(MODEL, still, DATA, REQUEST, held_out()))) - 0.2


def test_a_step_does_not_grow_with_the_batch():
    """Sums in place of means would reproduce published settings at one batch size only."""
    answers = [answer("gradient_ascent", steps=2, static={"batch_size": size}).variables for size in (4, 16)]
    assert distance(*answers) < 1e-6
