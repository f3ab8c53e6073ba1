"""Settings that are checked, and what the cards say of empty requests."""

import optax
import pytest

import jaxunlearn as ju
from tests.problems import OPTIONS, method, model_of, network, takes_optimizer


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("l1_sparse", {"gamma": -1.0}, "gamma"),
        ("random_label", {"alpha": 1.1}, "alpha"),
        ("gradient_difference", {"alpha": 1.5}, "alpha"),
        ("natmu", {"delta": -1.1}, "delta"),
        ("npo", {"beta": 0.0}, "beta"),
        ("npo", {"retain_weight": -1.0}, "retain_weight"),
        ("simnpo", {"beta": 0.0}, "beta"),
        ("simnpo", {"retain_weight": -1.0}, "retain_weight"),
        ("bad_teacher", {"alpha": -0.1}, "alpha"),
        ("bad_teacher", {"temperature": 0.0}, "temperature"),
        ("regun", {"alpha": 1.1}, "alpha"),
        ("regun", {"temperature": 0.0}, "temperature"),
        ("scrub", {"alpha": -1.0}, "alpha"),
        ("scrub", {"temperature": 0.0}, "temperature"),
        ("scrub", {"forget_steps": 0, "retain_steps": 0}, "forget_steps \\+ retain_steps"),
        ("scrub", {"forget_epochs": -1}, "forget_epochs"),
        ("task_vector", {"scale": -1.0}, "scale"),
        ("unsir", {"impair_share": -1}, "impair_share"),
        ("unsir", {"impair_share": 1.5}, "impair_share"),
        ("unsir", {"noise_penalty": -1.0}, "noise_penalty"),
        ("output_perturbation", {"sigma": -1.0}, "sigma"),
    ],
)
def test_values_out_of_range_are_refused(name, options, message):
    with pytest.raises(ValueError, match=f"{message} must lie in"):
        method(name, network(), **options)


@pytest.mark.parametrize("name", [x for x, card in ju.METHODS.items() if takes_optimizer(x) and card.takes == "model"])
def test_what_an_empty_request_gets_is_what_the_card_says(name):
    needed = OPTIONS.get(name, {})
    model = model_of(name)
    unlearner = ju.METHODS[name].factory(model, optax.sgd(0.1), **(needed(model) if callable(needed) else needed))
    assert unlearner.on_empty == ju.METHODS[name].on_empty
