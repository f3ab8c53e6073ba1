"""LoRA: low-rank changes of the weights of any model (Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen: LoRA: Low-rank
adaptation of large language models, ICLR 2022, arXiv 2106.09685).

    y = W x + (alpha / rank) B A x,

A drawn at random and B zero, so that the changed model begins as the base. No layer is replaced: the program of the forward
pass is read, and where it multiplies with W it multiplies with A and B too. So it serves layers of all libraries, einsum,
layers in `scan`, and weights used twice; `W + B A` is never made.
"""

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr
from jaxtyping import PRNGKeyArray, PyTree

from jaxunlearn import checks, tree
from jaxunlearn.frozen.int8 import Int8, dense, is_int8
from jaxunlearn.frozen.on_base import OnBase
from jaxunlearn.frozen.reading import Use, run
from jaxunlearn.frozen.weights import Weight
from jaxunlearn.tree import Layers
from jaxunlearn.types import Model, Outputs, Scalar, Variables


class Factors(NamedTuple):
    """How a parameter is cut into axes for its low-rank change."""

    path: str
    shape: tuple[int, ...]
    groups: tuple[int, ...]  # axes that have a change each: layers of a scan, heads or experts of a batched product
    inputs: tuple[int, ...]  # axes that products contract
    outputs: tuple[int, ...]

    def sizes(self, axes: Sequence[int]) -> tuple[int, ...]:
        return tuple(self.shape[axis] for axis in axes)


def lora(
    model: Model,
    like: Variables,
    inputs: PyTree,
    *,
    rank: int = 8,
    alpha: Scalar = 16.0,
    targets: Layers | None = None,
) -> OnBase:
    """Low-rank changes of a model's weights, over a base that stays as it is.

    Args:
        model: any model whose forward pass JAX can trace. What it multiplies in a function with a derivative of its own
            (`jax.custom_jvp`, `jax.custom_vjp`) cannot be changed.
        like: its variables, or their shapes (`jax.eval_shape`).
        inputs: of any batch size, from which the program is read.
        rank: of the changes.
        alpha: they are multiplied with `alpha / rank`; may be traced.
        targets: which leaves are changed: a regular expression that is searched for in their paths, or a function of the path.
            By default all that enter nothing but products, and have two axes or more.

    Returns:
        `OnBase`; its part holds for every path `a` [groups..., inputs..., rank] and `b` [groups..., rank, outputs...] in
        float32, or wider if the parameter is, and the model's state. A regularizer of the model, which is one of whole weights,
        and its head are left out: `on(base)._replace(regularizer=...)` has one of the factors. Leaves of the base may be of any
        floating-point type, or `Int8`.

    Raises:
        ValueError: a leaf that is asked for and cannot be changed this way; the message says why.

    Example:
        >>> parts = jaxunlearn.frozen.lora(model, variables, data.train.inputs[:1], rank=2, targets="body")
        >>> part = parts.start(variables, key)
        >>> jax.tree.map(jnp.shape, part.params)
        {'body': {'a': (4, 2), 'b': (2, 8)}}
        >>> same = parts.on(variables).forward(part, x).logits == model.forward(variables, x).logits
        >>> bool(same.all())
        True
    """
    checks.require_count("rank", rank)
    factors = {x.path: x for x in _found(model, Variables(_shapes(like.params), like.state), inputs, targets)}

    def start(base: Variables, key: PRNGKeyArray) -> Variables:
        leaves = {tree.path_of(path): x for path, x in jax.tree.leaves_with_path(base.params, is_leaf=is_int8)}
        params = {}
        for part_key, one in zip(jax.random.split(key, len(factors)), factors.values(), strict=True):
            dtype = jnp.promote_types(leaves[one.path].dtype, jnp.float32)
            width = max(1, prod(one.sizes(one.inputs)))
            down = jax.random.normal(part_key, (*one.sizes((*one.groups, *one.inputs)), rank), dtype) / width**0.5
            params[one.path] = {"a": down, "b": jnp.zeros((*one.sizes(one.groups), rank, *one.sizes(one.outputs)), dtype)}
        return Variables(params, base.state)

    def merge(base: Variables, part: Variables) -> Variables:
        def whole(path: tuple, leaf: Any) -> Any:
            name = tree.path_of(path)
            stored = dense(leaf)
            if name not in factors:
                return stored
            one, (down, up) = factors[name], _aligned(factors[name], part.params[name])
            change = alpha / rank * jnp.einsum("...r,...r->...", down, up, precision="highest")
            return (stored.astype(change.dtype) + change.reshape(one.shape)).astype(stored.dtype)

        return Variables(jax.tree.map_with_path(whole, base.params, is_leaf=is_int8), part.state)

    def on(base: Variables) -> Model:
        shapes = _shapes(base.params)

        def forward(variables: Variables, inputs: PyTree, *, train: bool = False, key: PRNGKeyArray | None = None) -> Outputs:
            program, form = _program(model, Variables(shapes, variables.state), inputs, train, key)
            arguments = []
            for path, leaf in jax.tree.leaves_with_path(base.params, is_leaf=is_int8):
                name = tree.path_of(path)
                if name in factors:
                    down, up = _aligned(factors[name], variables.params[name])
                    change = {"down": down, "up": up, "strength": jnp.asarray(alpha / rank)}
                    arguments.append(_weight(name, leaf, factors[name].inputs, **change))
                else:
                    arguments.append(_weight(name, leaf) if is_int8(leaf) else leaf)
            return jax.tree.unflatten(form, run(program, [*arguments, *jax.tree.leaves((variables.state, inputs, key))]))

        return Model(forward, model.loss, lambda key: start(base, key), likelihood=model.likelihood)

    return OnBase(start, on, merge)


def _shapes(params: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params, is_leaf=is_int8)


def _program(model: Model, like: Variables, inputs: Any, train: bool, key: Any) -> tuple[ClosedJaxpr, Any]:
    """The forward pass as a program of parameters, state, inputs and key, and the form of what it returns."""

    def forward(params: Any, state: Any, inputs: Any, key: Any) -> Outputs:
        return model.forward(Variables(params, state), inputs, train=train, key=key)

    program, shape = jax.make_jaxpr(forward, return_shape=True)(like.params, like.state, inputs, key)
    return program, jax.tree.structure(shape)


def _weight(name: str, leaf: Any, inputs: Sequence[int] = (), **change: jax.Array) -> Weight:
    values, scale = leaf if isinstance(leaf, Int8) else (leaf, None)
    axes = tuple(frozenset([axis]) for axis in range(values.ndim))
    down, up, strength = (change.get(part) for part in ("down", "up", "strength"))
    return Weight(values, scale, down, up, strength, name, axes, frozenset(), frozenset(inputs), leaf.dtype)


def _aligned(one: Factors, part: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Both factors along the axes of the parameter, 1 wide where they do not depend on one, with the rank last."""
    rank, count = part["a"].shape[-1], len(one.shape)
    up = jnp.moveaxis(part["b"], len(one.groups), -1)

    def placed(values: jax.Array, axes: tuple[int, ...]) -> jax.Array:
        order = sorted(range(len(axes)), key=lambda place: axes[place])
        sizes = [one.shape[axis] if axis in axes else 1 for axis in range(count)]
        return values.transpose([*order, len(axes)]).reshape([*sizes, rank])

    return placed(part["a"], (*one.groups, *one.inputs)), placed(up, (*one.groups, *one.outputs))


# Which parameters can be changed


def _found(model: Model, like: Variables, inputs: Any, targets: Layers | None) -> list[Factors]:
    leaves = [(tree.path_of(path), x) for path, x in jax.tree.leaves_with_path(like.params)]
    tree.require_own_paths([name for name, _ in leaves])
    uses: dict[str, list[Use]] = {name: [] for name, _ in leaves}

    def read(*values: Any) -> Any:
        weights = [_weight(name, x) for (name, _), x in zip(leaves, values, strict=False)]
        return run(program, [*weights, *values[len(leaves) :]], lambda use: uses[use.name].append(use))

    program, _ = _program(model, like, inputs, False, None)
    jax.eval_shape(read, *program.in_avals)
    found = {name: _factors(name, x.shape, uses[name]) for name, x in leaves}
    if targets is None:
        good = [one for one in found.values() if isinstance(one, Factors)]
        if not good:
            raise ValueError("no parameter of the model enters products alone: " + "; ".join(map(str, found.values())))
        return good
    marks = jax.tree.leaves(tree.matching(like.params, targets))
    asked = [found[name] for (name, _), mark in zip(leaves, marks, strict=True) if mark]
    if not asked:
        raise ValueError(f"{targets!r} names no leaf; there are {', '.join(found)}")
    if bad := [one for one in asked if isinstance(one, str)]:
        raise ValueError("cannot be changed by low-rank factors: " + "; ".join(bad))
    return [one for one in asked if isinstance(one, Factors)]


def _factors(name: str, shape: tuple[int, ...], uses: list[Use]) -> Factors | str:
    """How the parameter is cut, or why it cannot be."""
    if not uses:
        return f"{name} is not used"
    others = sorted({use.primitive for use in uses if use.contracted is None})
    if others:
        return f"{name} enters {', '.join(others)}"
    groups = frozenset().union(*(use.groups for use in uses))
    inputs = frozenset(uses[0].contracted or ())
    outputs = frozenset(range(len(shape))) - inputs - groups
    if not inputs or not outputs or any(use.parts_an_axis() for use in uses):
        return f"{name} has no axes of its own for inputs and outputs (shape {shape})"
    wide = frozenset(axis for axis, size in enumerate(shape) if size > 1)  # others may have been squeezed away
    if any(use.contracted not in (inputs, outputs) or (use.groups ^ groups) & wide for use in uses):
        return f"{name} is multiplied along other axes in one product than in another"
    return Factors(name, shape, *(tuple(sorted(axes)) for axes in (groups, inputs, outputs)))
