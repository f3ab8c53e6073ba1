"""What a model predicts of its targets: the distributions that Fisher matrices are expectations over.

A loss alone does not say it: the same logits may be a softmax over classes, as many independent labels, a mean, a log rate. A
`Model` may carry its `Likelihood`; where it does not, `of` looks at the shapes, and takes a family only if the gradients of
the model's loss are those of its negative log-likelihood, up to one factor. Smoothed labels, margins and weighted classes are
no likelihoods and are refused: say what the model predicts, `Model(..., likelihood=jaxunlearn.likelihoods.categorical())`.
"""

from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from jaxunlearn.types import ExampleLoss, Examples, Likelihood, Model, Outputs

PROBES = 12  # rows of random logits that a loss is tried on
TOLERANCE = 1e-3  # relative, of gradients in float32
NUMBERS = ("gaussian", "poisson")  # families whose targets are numbers, of whatever dtype


def categorical(*, ignore: int | None = None, mean: bool = False, scale: float = 1.0) -> Likelihood:
    """One class for every position of the targets, by a softmax over the last axis of the logits; token sequences included.

    Args:
        ignore: target of positions that do not count, such as -100 for padding; they stay what they are in the data. It is -1
            for the losses of `jaxunlearn.losses.sequences`.
        mean: the loss of a row is the mean over its positions that count, as of `losses.sequence_cross_entropy`, and not their
            sum. Slopes then carry the square root of one over their number, so that second moments belong to that loss.
        scale: of the loss, a negative log-likelihood times this factor.

    Returns:
        A `Likelihood`: logits [b, ..., c], targets Int[b, ...].

    Example:
        >>> jaxunlearn.likelihoods.categorical().slope(jnp.zeros((1, 2)), jnp.array([1]))
        Array([[ 0.5, -0.5]], dtype=float32)
    """

    def counts(targets, logits, rows=True):
        used = jnp.ones(targets.shape, bool) if ignore is None else targets != ignore
        weights = used.astype(logits.dtype)
        if mean:
            number = jnp.sum(weights, axis=tuple(range(int(rows), targets.ndim)), keepdims=True)
            weights = weights * jax.lax.rsqrt(jnp.maximum(number, 1))
        return weights[..., None]

    def slope(logits, targets):
        classes = jax.nn.one_hot(targets, logits.shape[-1], dtype=logits.dtype)
        return (jax.nn.softmax(logits) - classes) * counts(targets, logits)

    def roots(logits, targets):
        p = jax.nn.softmax(logits)
        every = jnp.sqrt(p)[..., None, :] * (p[..., :, None] - jnp.eye(p.shape[-1], dtype=p.dtype))  # [b, ..., c, y]
        every = jnp.moveaxis(every * counts(targets, logits)[..., None], -1, 0)
        return _spread(every, logits.shape[1:-1])

    def draw(key, logits, targets):
        drawn = jax.random.categorical(key, logits).astype(targets.dtype)
        return drawn if ignore is None else jnp.where(targets == ignore, targets, drawn)

    def signed(key, logits, targets):
        p = jax.nn.softmax(logits)
        each = _signs(key, logits) * jnp.sqrt(p)
        return (p * jnp.sum(each, axis=-1, keepdims=True) - each) * counts(targets, logits, rows=False)

    return Likelihood("categorical", slope, draw, roots, scale, signed)


def bernoulli(*, scale: float = 1.0) -> Likelihood:
    """Independent yes or no for every logit: one-logit classifiers, [b] or [b, 1], and multi-label ones, [b, k].

    Args:
        scale: of the loss, a negative log-likelihood times this factor.

    Returns:
        A `Likelihood`: logits and targets of the same shape, up to an axis of length 1.

    Example:
        >>> jaxunlearn.likelihoods.bernoulli().slope(jnp.zeros(1), jnp.array([1]))
        Array([-0.5], dtype=float32)
    """

    def coin(key, logits):
        return jax.random.bernoulli(key, jax.nn.sigmoid(logits))

    return _one_by_one("bernoulli", jax.nn.sigmoid, lambda z: jax.nn.sigmoid(z) * jax.nn.sigmoid(-z), coin, scale)


def gaussian(*, scale: float = 1.0) -> Likelihood:
    """A mean for every logit, of unit variance: least squares. `scale` is one over the variance, 2 for a loss `(z - y)^2`.

    Args:
        scale: of the loss, `(z - y)^2 / 2` times this factor.

    Returns:
        A `Likelihood`: logits and targets of the same shape, up to an axis of length 1.

    Example:
        >>> jaxunlearn.likelihoods.gaussian().slope(jnp.ones(1), jnp.zeros(1))
        Array([1.], dtype=float32)
    """

    def near(key, logits):
        return logits + jax.random.normal(key, logits.shape, logits.dtype)

    return _one_by_one("gaussian", lambda z: z, jnp.ones_like, near, scale)


def poisson(*, scale: float = 1.0) -> Likelihood:
    """A count for every logit, which is the logarithm of its rate.

    Args:
        scale: of the loss, a negative log-likelihood times this factor.

    Returns:
        A `Likelihood`: logits and targets of the same shape, up to an axis of length 1.

    Example:
        >>> jaxunlearn.likelihoods.poisson().slope(jnp.zeros(1), jnp.array([3]))
        Array([-2.], dtype=float32)
    """
    return _one_by_one("poisson", jnp.exp, jnp.exp, lambda key, logits: jax.random.poisson(key, jnp.exp(logits)), scale)


def product(parts: Sequence[tuple[Likelihood, int]]) -> Likelihood:
    """Independent heads side by side: logits [b, sum of widths], targets [b, heads].

    Args:
        parts: a likelihood and its number of logits, for each head in turn.

    Returns:
        A `Likelihood`; the loss is the sum of those of the heads.

    Raises:
        ValueError: no head, or a width below 1.

    Example:
        >>> classes, flag = jaxunlearn.likelihoods.categorical(), jaxunlearn.likelihoods.bernoulli()
        >>> both = jaxunlearn.likelihoods.product([(classes, 3), (flag, 1)])
        >>> both.slope(jnp.zeros((1, 4)), jnp.array([[2, 1]])).shape
        (1, 4)
    """
    widths = [width for _, width in parts]
    if not parts or min(widths) < 1:
        raise ValueError(f"product takes at least one head, each with at least one logit, got widths {widths}")
    ends = np.cumsum(widths)

    def heads(logits, targets):
        if logits.shape[-1] != ends[-1] or targets.shape[-1] != len(parts):
            raise ValueError(
                f"a product of {len(parts)} heads needs logits [b, {ends[-1]}] and targets [b, {len(parts)}], got "
                f"{logits.shape} and {targets.shape}"
            )
        pieces = jnp.split(logits, ends[:-1], axis=-1)
        return [(part, z, targets[..., i]) for i, ((part, _), z) in enumerate(zip(parts, pieces, strict=True))]

    def slope(logits, targets):
        return jnp.concatenate([part.scale**0.5 * part.slope(z, y) for part, z, y in heads(logits, targets)], axis=-1)

    def roots(logits, targets):
        found, left = [], 0
        for part, z, y in heads(logits, targets):
            own = part.scale**0.5 * exact_roots(part, z, y)
            right = logits.shape[-1] - left - z.shape[-1]
            found.append(jnp.pad(own, [(0, 0)] * (own.ndim - 1) + [(left, right)]))
            left += z.shape[-1]
        return jnp.concatenate(found)

    def draw(key, logits, targets):
        keys = jax.random.split(key, len(parts))
        found = [part.draw(k, z, y) for k, (part, z, y) in zip(keys, heads(logits, targets), strict=True)]
        return jnp.stack(found, axis=-1).astype(targets.dtype)

    def signed(key, logits, targets):
        keys = jax.random.split(key, len(parts))
        found = zip(keys, heads(logits, targets), strict=True)
        return jnp.concatenate([part.scale**0.5 * signed_root(part, k, z, y) for k, (part, z, y) in found], axis=-1)

    return Likelihood("product", slope, draw, roots, signed=signed)


def exact_roots(likelihood: Likelihood, logits: jax.Array, targets: jax.Array) -> jax.Array:
    """The exact roots of a likelihood.

    Args:
        likelihood: of the rows.
        logits: [b, ...].
        targets: of the data; they say what is padding.

    Returns:
        Columns u, Float[s, b, ...], with `sum_s u u' = E[slope slope']` for every row.

    Raises:
        ValueError: it can only be drawn from.

    Example:
        >>> jaxunlearn.likelihoods.exact_roots(jaxunlearn.likelihoods.categorical(), jnp.zeros((1, 3)), jnp.array([0])).shape
        (3, 1, 3)
    """
    if likelihood.roots is None:
        raise ValueError(f"likelihood {likelihood.name!r} can only be drawn from: take kind='sampled'")
    return likelihood.roots(logits, targets)


def signed_root(likelihood: Likelihood, key: PRNGKeyArray, logits: jax.Array, targets: jax.Array) -> jax.Array:
    """The exact roots of one row, each with a random sign of its own, added up: `E[u u']` is their matrix.

    The families of this module take memory for one vector, whatever the number of classes: `u = p sum_y(e_y) - e` with
    `e_y = +-sqrt(p_y)` for a softmax, signs of their own at every position. Others make all roots for it.

    Args:
        likelihood: of the row.
        key: of the signs.
        logits: [...], of one row.
        targets: of one row; they say what is padding.

    Returns:
        u, Float[...].

    Raises:
        ValueError: it can only be drawn from.

    References:
        Hutchinson: A stochastic estimator of the trace of the influence matrix for Laplacian smoothing splines, 1989, doi
        10.1080/03610918908812806.

    Example:
        >>> u = jaxunlearn.likelihoods.signed_root(jaxunlearn.likelihoods.gaussian(), key, jnp.zeros(3), jnp.zeros(3))
        >>> jnp.abs(u).tolist()
        [1.0, 1.0, 1.0]
    """
    if likelihood.signed is not None:
        return likelihood.signed(key, logits, targets)
    roots = exact_roots(likelihood, logits[None], targets[None])[:, 0]
    return jnp.tensordot(_signs(key, roots[(slice(None), *[0] * logits.ndim)]), roots, axes=1)


def _signs(key: PRNGKeyArray, like: jax.Array) -> jax.Array:
    return jax.random.rademacher(key, like.shape, like.dtype)


def of(model: Model, outputs: Outputs, examples: Examples) -> Likelihood:
    """The likelihood of a model: its own, or the one that its loss agrees with.

    Args:
        model: its `likelihood` is taken as it is, else its loss is tried on random logits and targets.
        outputs, examples: of some rows; only shapes and dtypes count.

    Returns:
        A `Likelihood`.

    Raises:
        ValueError: the loss is no negative log-likelihood of a family that fits the shapes.

    Example:
        >>> jaxunlearn.likelihoods.of(model, model.forward(variables, data.train.inputs), data.train).name
        'categorical'
    """
    if model.likelihood is not None:
        return model.likelihood
    rest = outputs._replace(logits=()), examples._replace(targets=())
    leaves, form = jax.tree.flatten(rest)
    held = form, tuple((jnp.shape(x)[1:] if jnp.ndim(x) else None, str(jnp.result_type(x))) for x in leaves)
    shapes = (outputs.logits.shape[1:], str(outputs.logits.dtype), jnp.shape(examples.targets)[1:])
    arguments = model.loss, *shapes, str(jnp.result_type(examples.targets)), held
    return (_inferred if isinstance(model.loss, Hashable) else _inferred.__wrapped__)(*arguments)


def family(model: Model, outputs: Outputs, examples: Examples) -> str | None:
    """The name of a model's likelihood; None where the loss is none that is known.

    Args:
        model, outputs, examples: as in `of`.

    Returns:
        E.g. "poisson".

    Example:
        >>> jaxunlearn.likelihoods.family(model, model.forward(variables, data.train.inputs), data.train)
        'categorical'
    """
    try:
        return of(model, outputs, examples).name
    except ValueError:
        return None


def num_classes(model: Model, outputs: Outputs, examples: Examples) -> int | None:
    """How many classes one label of each row can have.

    Args:
        model, outputs, examples: as in `of`.

    Returns:
        c for integer targets [b] and logits [b, c], 2 for one logit; None where targets are no such labels, counts included.

    Example:
        >>> jaxunlearn.likelihoods.num_classes(model, model.forward(variables, data.train.inputs), data.train)
        3
    """
    logits, targets = outputs.logits, examples.targets
    if not hasattr(targets, "dtype") or not jnp.issubdtype(targets.dtype, jnp.integer) or targets.ndim != 1:
        return None
    if logits.ndim == 2 and logits.shape[1] > 1:
        return logits.shape[1]
    if logits.ndim > 2 or logits.shape[1:] not in ((), (1,)):
        return None
    return None if family(model, outputs, examples) in NUMBERS else 2


@lru_cache(maxsize=64)
def _inferred(loss: ExampleLoss, logits: tuple, precision: str, targets: tuple, kind: str, held) -> Likelihood:
    candidates = _candidates(logits, targets, jnp.issubdtype(jnp.dtype(kind), jnp.floating))
    found = {}
    with jax.ensure_compile_time_eval():
        rng = np.random.default_rng(0)
        z = jnp.asarray(
            rng.normal(size=(PROBES, *logits)) * np.linspace(0.3, 2, PROBES).reshape(-1, *[1] * len(logits)), precision
        )
        form, rest = held
        zeros = [jnp.zeros(() if shape is None else (PROBES, *shape), dtype) for shape, dtype in rest]
        outputs, examples = form.unflatten(zeros)
        gradient = jax.jit(
            jax.grad(lambda z, y: jnp.sum(loss(outputs._replace(logits=z), examples._replace(targets=y)).astype(jnp.float32)))
        )
        for likelihood, sample in candidates:
            y = jnp.asarray(sample(rng, (PROBES, *targets)), kind)
            own = np.asarray(likelihood.slope(z.astype(jnp.float32), y), np.float64).ravel()
            theirs = np.asarray(gradient(z, y), np.float64).ravel()
            scale = float(theirs @ own / (own @ own))
            off = float(np.linalg.norm(theirs - scale * own) / max(np.linalg.norm(theirs), np.finfo(float).tiny))
            found[likelihood.name] = off
            if scale > 0 and off < max(TOLERANCE, 8 * float(jnp.finfo(precision).eps)):
                return likelihood._replace(scale=1.0 if abs(scale - 1) < TOLERANCE else scale)
    tried = ", ".join(f"{name} ({off:.2g} of the gradient differs)" for name, off in found.items()) or "none fits these shapes"
    raise ValueError(
        "a Fisher matrix is an expectation over what the model predicts, and its loss does not say what that is: tried "
        f"{tried}. Logits are [b{_dims(logits)}], targets {kind}[b{_dims(targets)}]: pass Model(..., likelihood=jaxunlearn."
        "likelihoods.categorical()), or bernoulli, gaussian, poisson, product or your own; or take kind='ggn', which needs none"
    )


def _dims(shape: tuple) -> str:
    return "".join(f", {size}" for size in shape)


def _candidates(logits: tuple, targets: tuple, real: bool) -> list[tuple[Likelihood, Callable]]:
    """Families whose shapes fit, with draws of probing targets."""
    single = logits in (targets, (*targets, 1))
    coin = (bernoulli(), lambda rng, shape: rng.integers(0, 2, shape))
    counts = (poisson(), lambda rng, shape: rng.integers(0, 5, shape))
    if single:
        return [(gaussian(), lambda rng, shape: rng.normal(size=shape)), coin, counts] if real else [coin, counts]
    if not real and len(logits) == 1 and targets == () and logits[0] > 1:
        return [(categorical(), lambda rng, shape: rng.integers(0, logits[0], shape))]
    return []


def _one_by_one(name, mean, variance, sample, scale) -> Likelihood:
    """Independent logits: slope `mean(z) - y`, second moment `variance(z)` of each, draws `sample(key, z)`."""

    def slope(logits, targets):
        return mean(logits) - targets.reshape(logits.shape).astype(logits.dtype)

    def roots(logits, targets):
        return _spread(jnp.sqrt(variance(logits))[None], logits.shape[1:])

    def draw(key, logits, targets):
        return sample(key, logits).reshape(targets.shape).astype(targets.dtype)

    def signed(key, logits, targets):
        return _signs(key, logits) * jnp.sqrt(variance(logits))

    return Likelihood(name, slope, draw, roots, scale, signed)


def _spread(columns: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Columns [s, b, *shape, ...] of independent positions as columns [s * positions, ...], each zero at all others."""
    count = int(np.prod(shape, dtype=int))
    rest = (1,) * (columns.ndim - 2 - len(shape))
    one = jnp.eye(count, dtype=columns.dtype).reshape(1, count, 1, *shape, *rest)
    return (one * columns[:, None]).reshape(-1, *columns.shape[1:])
