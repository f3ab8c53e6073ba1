"""What the cards say beside what the code does."""

from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn import catalogue, convex, guards, methods
from jaxunlearn.card import Method
from tests.problems import OPTIONS, asked, lane, method, model_of, parameters_of, recorded, takes_optimizer, trained

PACKAGE = Path(ju.__file__).parent
WORDS = {"forget", "forget labels", "retain", "init", "head", "layer"}  # of `reads`, besides names of slots


def cards(folder):
    """Names of the files of a folder that hold a card."""
    return {path.stem for path in (PACKAGE / folder).glob("*.py") if "\nMETHOD = Method(" in path.read_text()}


def test_every_file_of_methods_is_a_method_and_every_card_is_in_the_catalogue():
    files = {path.stem for path in (PACKAGE / "methods").glob("*.py")} - {"__init__"}
    assert cards("methods") == files
    assert set(ju.METHODS) == files | cards("convex") | cards("guards") | cards("rl") | cards("summation") | cards("sisa")
    assert set(methods.__dict__) & set(ju.METHODS) == files


@pytest.mark.parametrize("name", ju.METHODS)
def test_a_file_has_the_name_of_its_factory(name):
    card = ju.METHODS[name]
    homes = {"problem": ("convex", convex), "learner": ("summation", ju.summation), "trainer": ("sisa", ju.sisa)}
    homes |= {"generator": ("guards", guards), "environment": ("rl", ju.rl)}
    folder, home = homes.get(card.takes, ("methods", ju))
    assert isinstance(card, Method)
    assert card.factory is getattr(home, name)
    assert card.factory.__name__ == name
    assert card.factory.__module__ == f"jaxunlearn.{folder}.{name}"


@pytest.mark.parametrize("name", ju.METHODS)
def test_factories_share_their_first_arguments(name):
    parameters = parameters_of(name)
    first = [ju.METHODS[name].takes, *["optimizer"] * takes_optimizer(name)]
    assert list(parameters)[: len(first)] == first
    assert all(p.kind is p.KEYWORD_ONLY or p.kind is p.VAR_KEYWORD for p in list(parameters.values())[len(first) :])
    assert "num_steps" not in parameters  # of a run, not of a method


@pytest.mark.parametrize("name", ju.METHODS)
def test_settings_worth_trying_are_settings(name):
    for setting, values in ju.METHODS[name].search.items():
        assert values
        if setting == "learning_rate":  # the optimizer's, and for recorded updates that of training
            assert takes_optimizer(name) or "updates" in ju.METHODS[name].reads
            continue
        assert setting in parameters_of(name)
        for value in values:
            method(name, model_of(name), **{setting: value})  # none is out of its range


@pytest.mark.parametrize("name", ju.METHODS)
def test_words_of_a_card_are_known(name):
    card = ju.METHODS[name]
    assert card.reads <= WORDS | set(ju.slots.SLOTS)
    assert card.summary.strip(" .") == card.summary != ""
    assert (card.family == "exact") == (card.guarantee == "exact")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(name for name, card in ju.METHODS.items() if card.search))
def test_what_a_card_searches_may_be_traced(name):
    """A search answers all its points with one program."""
    model, variables, (data, _) = model_of(name), trained(name), recorded()
    request = asked(name, lane(ju.from_indices(data, [[3, 4, 5]]), 0))

    def run(learning_rate, settings):
        unlearn = method(name, model, optax.sgd(learning_rate), **settings)
        return unlearn(variables, data, request, jax.random.key(0)).variables

    settings = {x: jnp.float32(values[0]) for x, values in ju.METHODS[name].search.items() if x != "learning_rate"}
    shapes = jax.eval_shape(run, jnp.float32(0.1), settings)
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, variables)


def test_every_slot_is_read_by_some_method_or_set_by_its_users():
    read = {word for card in ju.METHODS.values() for word in card.reads}
    # users fill `user` and `base`, objective perturbation brings its secret, the others are optional for those who read them
    assert set(ju.slots.SLOTS) - read <= {"user", "perturbation", "initial_params", "features", "refusals", "base"}
    assert set(OPTIONS) <= set(ju.METHODS)


def test_other_names_are_unique_and_no_names_of_methods():
    aliases = Counter(alias for card in ju.METHODS.values() for alias in card.aliases)
    assert not [alias for alias, times in aliases.items() if times > 1]
    assert not set(aliases) & set(ju.METHODS)
    for name, card in ju.METHODS.items():
        assert [catalogue.method_of(alias) for alias in (name, *card.aliases)] == [name] * (1 + len(card.aliases))


def test_every_reference_is_used_and_every_method_has_one():
    assert {card.cites for card in ju.METHODS.values()} == set(catalogue.references())
    text = (PACKAGE / "methods" / "references.bib").read_text()
    assert text.count("\n@") + text.startswith("@") == len(catalogue.references())


def test_citation_prints_each_entry_once(capsys):
    ju.citation("scrub", "gradient_difference")
    assert capsys.readouterr().out.count("@inproceedings{kurmanji2023towards,") == 1
    ju.citation()
    assert capsys.readouterr().out.count("@") == len(catalogue.references())
    ju.citation("leace")
    by_its_alias = capsys.readouterr().out
    ju.citation("concept_erasure")
    assert capsys.readouterr().out == by_its_alias
    with pytest.raises(ValueError, match="unknown method 'scrab'; did you mean scrub"):
        ju.citation("scrab")
