"""Camouflaged poison: rows that do nothing until a request takes away the rows that hide them.

Di, Douglas, Acharya, Kamath, Sekhari: Hidden poison: machine unlearning enables camouflaged poisoning attacks, 2022,
arXiv 2212.10717. Both sets are made by matching gradients (Geiping et al.: Witches' brew, 2021, arXiv 2009.02276): with g the
mean gradient of the crafted rows and t that of the target,

    min_shift  1 - cos(t, g(rows + shift)),    |shift| <= radius for every input,

where t is taken with the wrong label for the poison, and with the right one for the camouflage. Labels of crafted rows are
those they came with. An unlearning method that removes the camouflage exactly switches the poison on: the fault lies in the
data, and no comparison with retrained models can show it.

Simplified from the authors' procedure: one model that gradients are taken of, no restarts, no augmentation.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from jaxunlearn import checks, tree
from jaxunlearn.evaluation import class_labels, evaluate
from jaxunlearn.types import Examples, Model, Scalar, Variables


class CamouflagedPoison(NamedTuple):
    """Rows to be added to the training set. The request that switches the poison on names the camouflage."""

    poison: Examples
    camouflage: Examples
    matched: Float[Array, " 2"]  # cosines that poison and camouflage reached


def camouflaged_poison(
    model: Model,
    variables: Variables,
    target: Examples,
    wrong: int,
    poison: Examples,
    camouflage: Examples,
    *,
    radius: Scalar,
    num_steps: int = 100,
    learning_rate: Scalar = 0.1,
) -> CamouflagedPoison:
    """Craft poison and its camouflage from clean rows.

    Args:
        model: whose gradients are matched, in all parameters.
        variables: trained on clean rows.
        target: the one row that shall be misclassified, with its right label.
        wrong: the class it shall get.
        poison: rows of the wrong class.
        camouflage: rows of the right class.
        radius: how far every input may move.
        num_steps: of signed Adam, as published.
        learning_rate: of them, in units of the radius; it falls to 0 along a line.

    Returns:
        `CamouflagedPoison`, labels as they were.

    Raises:
        ValueError: several targets, labels that are none, where they are known a target of the wrong class.

    Example:
        >>> part = lambda label, count: jax.tree.map(lambda a: a[data.train.targets == label][:count], data.train)
        >>> made = jaxunlearn.audit.camouflaged_poison(
        ...     model, variables, part(0, 1), 1, part(1, 4), part(0, 4), radius=0.5, num_steps=5)
        >>> bool(jnp.abs(made.poison.inputs - part(1, 4).inputs).max() <= 0.5 + 1e-6)
        True
    """
    checks.require_count("num_steps", num_steps)
    checks.check_range("radius", radius, low=0)
    right = class_labels(target.targets)
    if tree.leading_axis(target, "target") != 1:
        raise ValueError(f"camouflaged_poison: one target, got {right.shape[0]}")
    if checks.is_concrete(right) and checks.is_concrete(wrong) and int(right[0]) == int(wrong):
        raise ValueError(f"camouflaged_poison: the target is of class {int(wrong)} already, so nothing is to be poisoned")

    def gradient(examples: Examples) -> PyTree:
        def mean(params: PyTree) -> Array:
            return jnp.mean(evaluate(model, variables._replace(params=params), examples)[1])

        return jax.grad(mean)(variables.params)

    def craft(aim: Examples, rows: Examples) -> tuple[Examples, Array]:
        goal = gradient(aim)

        def moved(shift: PyTree) -> Examples:
            return rows._replace(inputs=jax.tree.map(jnp.add, rows.inputs, shift))

        def likeness(shift: PyTree) -> Array:
            own = gradient(moved(shift))
            product = sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(goal), jax.tree.leaves(own), strict=True))
            return product / jnp.maximum(tree.norm(goal) * tree.norm(own), 1e-30)

        def step(carry: tuple, number: Array) -> tuple:
            shift, state = carry
            ascent = jax.tree.map(jnp.negative, jax.grad(likeness)(shift))
            updates, state = adam.update(ascent, state)
            rate = learning_rate * radius * (1 - number / num_steps)
            shift = jax.tree.map(lambda s, u: jnp.clip(s - rate * jnp.sign(u), -radius, radius).astype(s.dtype), shift, updates)
            return (shift, state), None

        adam = optax.scale_by_adam()
        start = jax.tree.map(jnp.zeros_like, rows.inputs)
        (shift, _), _ = jax.lax.scan(step, (start, adam.init(start)), jnp.arange(num_steps))
        return moved(shift), likeness(shift)

    bad, first = craft(target._replace(targets=jnp.full_like(right, wrong)), poison)
    hiding, second = craft(target, camouflage)
    return CamouflagedPoison(bad, hiding, jnp.stack([first, second]))
