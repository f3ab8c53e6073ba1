"""Does it come back? What unlearned models know of the forget set after they are relearned, rounded or pruned a little.

Knowledge that was hidden returns with a few steps on a few forgotten rows, and sometimes by mere rounding of the weights.

- Hu, Fu, Wu, Smith: Jogging the memory of unlearned models through targeted relearning attacks, 2024, arXiv 2406.13356;
- Zhang, Wang, Li, Wu, Tang, Liu, He, Yin, Wang: Catastrophic failure of LLM unlearning via quantization, 2024,
  arXiv 2410.16454;
- Jia, Liu, Ram, Yao, Liu, Liu, Sharma, Liu: Model sparsity can simplify machine unlearning, 2023, arXiv 2304.04934 (pruning).

Relearning teaches a retrained model as well, and rounding moves every model: each cell stands beside retrained models that went
through the same.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from jaxunlearn import checks, sampling, tree
from jaxunlearn.audit.statistics.verdict import permutation_p_value
from jaxunlearn.loop.iterate import iterate
from jaxunlearn.methods.finetune import finetune
from jaxunlearn.requests import empty_request
from jaxunlearn.types import Data, ForgetRequest, Model, Scalar, Variables

Measure: TypeAlias = Callable[[Variables], PyTree]  # a number, or a tree of numbers, that is higher the more a model knows


class Returned(NamedTuple):
    """One cell of `comes_back`; each a tree like what `measure` returns."""

    unlearned: PyTree  # Float[n], one number per model
    retrained: PyTree  # Float[m]
    gap: PyTree  # Float[], difference of the means
    p_value: PyTree  # Float[], of a gap as large or larger if it did not matter which models are called unlearned


def comes_back(
    model: Model,
    optimizer: optax.GradientTransformation,
    unlearned: Variables,
    retrained: Variables,
    data: Data,
    request: ForgetRequest,
    key: PRNGKeyArray,
    *,
    measure: Measure,
    rows: Sequence[int] = (1, 8),
    steps: Sequence[int] = (1, 10),
    bits: Sequence[int] = (8, 4),
    pruned: Sequence[float] = (0.3, 0.6),
    batch_size: int = 8,
    num_permutations: int = 199,
) -> dict[str, Returned]:
    """A grid of small changes after unlearning, and what models know behind each of them.

    Cells: `nothing`; `int8`, `int4` (`rounded`); `bfloat16`; `pruned 0.3` (`pruned_smallest`); and `relearned 8 rows 10 steps`,
    fine-tuning on the first so many rows of the request. Models go through one after the other, in one program: jit the call.

    Args:
        model, optimizer: for the fine-tuning; BatchNorm statistics stay.
        unlearned: of n models, stacked.
        retrained: of m models, stacked; the more, the smaller a p-value can be: at least `1 / (n + m choose n)`.
        data, request: one request; slots that count for nothing are skipped.
        key: one typed key; every model draws its own batches.
        measure: `Variables -> number`, or a tree of numbers, higher for models that know more, e.g. extraction strength on the
            forget set, or on rows of it that are not relearned; accuracy of `nearest_mean_accuracy` for what features know.
        rows: how many rows are relearned; more than there are means all.
        steps: how long.
        bits: of rounded weights, each from 2 to 16.
        pruned: shares of the weights that are set to 0.
        batch_size: rows per step of fine-tuning, drawn with replacement.
        num_permutations: random labels for each p-value; with one unlearned model it is ranked instead.

    Returns:
        `Returned` by the name of the cell; `jit` sorts the names. p-values are not corrected for their number.

    Raises:
        ValueError: rows, steps, bits or shares out of range, weights that do not fit, stacked requests.

    Example:
        >>> trained = jax.vmap(model.init)(jax.random.split(key, 4))
        >>> first, others = (jax.tree.map(lambda x: x[part], trained) for part in (slice(1), slice(1, 4)))
        >>> accuracy = lambda v: jnp.mean(jnp.argmax(model.forward(v, x[:3]).logits, axis=1) == data.train.targets[:3])
        >>> found = jaxunlearn.audit.language.comes_back(
        ...     model, optax.sgd(0.1), first, others, data, request, key,
        ...     measure=accuracy, rows=(2,), steps=(1,), pruned=(0.5,))
        >>> list(found)
        ['nothing', 'int8', 'int4', 'bfloat16', 'pruned 0.5', 'relearned 2 rows 1 steps']
    """
    checks.check_key(key)
    for name, sizes in (("rows", rows), ("steps", steps)):
        for size in sizes:
            checks.require_count(name, size)
    for number in bits:
        _check_bits(number)
    for share in pruned:
        checks.check_range("pruned", share, low=0, high=1)
    if jnp.ndim(request.indices) != 1:
        raise ValueError(
            f"comes_back takes one request, got indices {jnp.shape(request.indices)}; call it for each one of them"
        )
    first, second = (tree.leading_axis(x, name) for x, name in ((unlearned, "unlearned"), (retrained, "retrained")))

    changes: dict[str, Callable[[PyTree], PyTree]] = {"nothing": lambda params: params}
    changes |= {f"int{number}": (lambda params, number=number: rounded(params, number)) for number in bits}
    changes["bfloat16"] = in_bfloat16
    changes |= {f"pruned {share:g}": (lambda params, share=share: pruned_smallest(params, share)) for share in pruned}
    tunes = [iterate(finetune(model, optimizer, bn="frozen"), num_steps=count, batch_size=batch_size) for count in steps]
    usable = sampling.usable_slots(data, request)

    def only(count: Int[Array, ""]) -> Data:
        """Data of which the first rows of the request are all that is there to retain."""
        taken = request._replace(weights=jnp.where(usable & (jnp.cumsum(usable) <= count), request.weights, 0))
        return data._replace(present=jnp.where(sampling.retain_weights(data, taken) > 0, 0, data.present))

    def one(variables: Variables, key: PRNGKeyArray) -> PyTree:
        def changed(place: Int[Array, ""]) -> PyTree:
            return measure(variables._replace(params=jax.lax.switch(place, list(changes.values()), variables.params)))

        def relearned(count: Int[Array, ""]) -> list[PyTree]:
            return [measure(tune(variables, only(count), empty_request(), key).variables) for tune in tunes]

        found = [jax.lax.map(changed, jnp.arange(len(changes)))]
        if rows:
            found += jax.lax.map(relearned, jnp.asarray(rows))
        return jax.tree.map(lambda *x: jnp.concatenate(x), *found)

    names = [*changes, *(f"relearned {count} rows {number} steps" for number in steps for count in rows)]
    everyone = jax.tree.map(lambda *x: jnp.concatenate(x), unlearned, retrained)
    run, drawing = jax.random.split(key)
    values = jax.lax.map(lambda x: one(*x), (everyone, jax.random.split(run, first + second)))  # [n + m, cells]

    def gap(candidate: Array, reference: Array) -> Float[Array, ""]:
        return jnp.mean(candidate) - jnp.mean(reference)

    def beside(values: Float[Array, " n"]) -> tuple:
        sides = values[:first], values[first:]
        return *sides, gap(*sides), permutation_p_value(gap, *sides, drawing, num_permutations=num_permutations)

    def by_cell(values: Float[Array, "n cells"]) -> tuple:
        return jax.vmap(beside)(values.astype(jnp.float32).T)

    leaves, form = jax.tree.flatten(values)
    judged = [by_cell(leaf) for leaf in leaves]
    return {
        name: Returned(*(form.unflatten([told[part][place] for told in judged]) for part in range(4)))
        for place, name in enumerate(names)
    }


def rounded(params: PyTree, bits: int) -> PyTree:
    """Weights to integers of a few bits and back, symmetric about zero, with one scale for all inputs of an output.

    Args:
        params: of a model; leaves with fewer than two axes, and those of no floating type, stay as they are.
        bits: from 2 to 16; with 8 it is `jaxunlearn.frozen.int8` and back.

    Returns:
        The tree, dtypes kept.

    Raises:
        ValueError: another number of bits.

    Example:
        >>> jaxunlearn.audit.language.rounded({"w": jnp.array([[1.0], [0.2], [-0.6]])}, 2)["w"].tolist()
        [[1.0], [0.0], [-1.0]]
    """
    _check_bits(bits)
    steps = 2 ** (bits - 1) - 1

    def one(leaf: jax.Array) -> jax.Array:
        if jnp.ndim(leaf) < 2 or not _is_floating(leaf):
            return leaf
        wide = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
        largest = jnp.max(jnp.abs(wide), axis=-2, keepdims=True)
        scale = jnp.where(largest > 0, largest, 1) / steps
        return (jnp.round(wide / scale) * scale).astype(leaf.dtype)

    return jax.tree.map(one, params)


def in_bfloat16(params: PyTree) -> PyTree:
    """Weights to bfloat16 and back.

    Args:
        params: of a model; leaves of no floating type stay as they are.

    Returns:
        The tree, dtypes kept.

    Example:
        >>> float(jaxunlearn.audit.language.in_bfloat16(jnp.array(1.001)))
        1.0
    """

    def one(leaf: jax.Array) -> jax.Array:
        if not _is_floating(leaf):
            return leaf
        # XLA may drop a cast to fewer bits and back
        return jax.lax.reduce_precision(jnp.asarray(leaf).astype(jnp.float32), 8, 7).astype(leaf.dtype)

    return jax.tree.map(one, params)


def pruned_smallest(params: PyTree, share: Scalar) -> PyTree:
    """The smallest weights of every matrix set to 0.

    Args:
        params: of a model; leaves with fewer than two axes, and those of no floating type, stay as they are.
        share: in [0, 1], may be traced: `floor(share * size)` entries of each leaf, by their magnitude.

    Returns:
        The tree. Of equal entries the first go.

    Raises:
        ValueError: a share outside [0, 1].

    Example:
        >>> jaxunlearn.audit.language.pruned_smallest(jnp.array([[1.0, -0.1], [0.2, -3.0]]), 0.5).tolist()
        [[1.0, 0.0], [0.0, -3.0]]
    """
    checks.check_range("share", share, low=0, high=1)

    def one(leaf: jax.Array) -> jax.Array:
        if jnp.ndim(leaf) < 2 or not _is_floating(leaf):
            return leaf
        rank = jnp.argsort(jnp.argsort(jnp.abs(leaf).ravel())).reshape(leaf.shape)
        return jnp.where(rank < jnp.floor(share * leaf.size), 0, leaf)

    return jax.tree.map(one, params)


def _is_floating(leaf: jax.Array) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def _check_bits(bits: int) -> None:
    checks.require_count("bits", bits, least=2)
    if bits > 16:
        raise ValueError(f"bits are from 2 to 16, got {bits}")
