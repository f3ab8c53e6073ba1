"""The restoration test: can the rest of an unlearned model still use a class, once its features are put back?

Jang, Lee, Kim, Jo, Woo: Suppression or deletion: a restoration-based representation-level analysis of machine unlearning, 2026,
arXiv 2602.18505. A model is cut into a prefix and a suffix. At the cut, a few directions that belong to the forgotten class,
found by a sparse autoencoder of the original model's states, are moved to where the original model has them; if the suffix then
names the class again, it was suppressed behind the cut, or in the prefix alone.

The test looks at the suffix: where only the prefix was changed, everything comes back, and where only the head was, nothing
does. It knows the original model and the true class, so it bounds attackers from above. Features of a retrained model can be
restored as well: compare every rate with that of retrained models.

Training of the autoencoder and the choice of experts are not in the authors' published code: those here are reconstructions.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxunlearn import checks
from jaxunlearn.types import Scalar

Mode: TypeAlias = Literal["safe", "paper"]
Suffix: TypeAlias = Callable[[Array], Array]  # states [n, ..., D] -> logits [n, c]


class SparseAutoencoder(NamedTuple):
    """`h ~ G a + b`, `a = topk(relu(E (h - b) + e))`; as rows, `a = (h - b) E' + e`."""

    centre: Float[Array, " D"]  # b
    encoder: Float[Array, "D s"]  # E'
    latent_bias: Float[Array, " s"]  # e
    decoder: Float[Array, "s D"]  # G', rows of length 1


def encode(autoencoder: SparseAutoencoder, states: Float[Array, "... D"], *, sparsity: int) -> Float[Array, "... s"]:
    """Sparse codes of states: of the largest `sparsity` entries those that are positive, 0 elsewhere; ties keep more.

    Args:
        autoencoder: of width s.
        states: leading axes are kept.
        sparsity: how many features a state may use.

    Returns:
        Codes, at least 0.

    Example:
        >>> same = jaxunlearn.audit.SparseAutoencoder(jnp.zeros(3), jnp.eye(3), jnp.zeros(3), jnp.eye(3))
        >>> jaxunlearn.audit.encode(same, jnp.array([3.0, 2.0, -1.0]), sparsity=1).tolist()
        [3.0, 0.0, 0.0]
    """
    codes = jnp.dot(states - autoencoder.centre, autoencoder.encoder, precision="highest") + autoencoder.latent_bias
    least = jax.lax.top_k(codes, sparsity)[0][..., -1:]
    return jnp.where(codes >= least, jax.nn.relu(codes), 0)


def decode(autoencoder: SparseAutoencoder, codes: Float[Array, "... s"]) -> Float[Array, "... D"]:
    """States that codes stand for.

    Args:
        autoencoder: of width s.
        codes: leading axes are kept.

    Returns:
        States of D entries.

    Example:
        >>> same = jaxunlearn.audit.SparseAutoencoder(jnp.ones(3), jnp.eye(3), jnp.zeros(3), jnp.eye(3))
        >>> jaxunlearn.audit.decode(same, jnp.array([3.0, 0.0, 0.0])).tolist()
        [4.0, 1.0, 1.0]
    """
    return jnp.dot(codes, autoencoder.decoder, precision="highest") + autoencoder.centre


def fit_sparse_autoencoder(
    states: Float[Array, "n D"],
    key: PRNGKeyArray,
    *,
    width: int,
    sparsity: int,
    num_steps: int = 1000,
    batch_size: int = 256,
    optimizer: optax.GradientTransformation | None = None,
) -> SparseAutoencoder:
    """Train a sparse autoencoder on states of the original model, by the squared error of reconstruction.

    Args:
        states: of n rows; positions of images and tokens count as rows.
        key: one typed key, for weights and batches.
        width: s, how many features there are.
        sparsity: how many features a state may use.
        num_steps, batch_size: of training.
        optimizer: by default Adam with learning rate 1e-3.

    Returns:
        `SparseAutoencoder`. It starts with its centre at the mean state and with equal encoder and decoder.

    Raises:
        ValueError: counts that are not positive integers, a sparsity above the width.
        TypeError: a key that is not typed.

    Example:
        >>> z = jax.random.normal(key, (64, 8))
        >>> made = jaxunlearn.audit.fit_sparse_autoencoder(z, key, width=16, sparsity=4, num_steps=5)
        >>> made.decoder.shape
        (16, 8)
    """
    for name, value in {"width": width, "sparsity": sparsity, "num_steps": num_steps, "batch_size": batch_size}.items():
        checks.require_count(name, value)
    if sparsity > width:
        raise ValueError(f"sparsity {sparsity} is more than the width {width}")
    checks.check_key(key)
    chosen = optax.adam(1e-3) if optimizer is None else optimizer
    start_key, batch_key = jax.random.split(key)
    states = states.astype(jnp.promote_types(states.dtype, jnp.float32))
    decoder = _unit(jax.random.normal(start_key, (width, states.shape[1]), states.dtype))
    first = SparseAutoencoder(jnp.mean(states, axis=0), decoder.T, jnp.zeros(width, states.dtype), decoder)

    def loss(autoencoder, rows):
        return jnp.mean(jnp.sum((decode(autoencoder, encode(autoencoder, rows, sparsity=sparsity)) - rows) ** 2, axis=1))

    def step(carry, number):
        autoencoder, state = carry
        drawn = jax.random.bits(jax.random.fold_in(batch_key, number), (batch_size,)) % jnp.uint32(states.shape[0])
        updates, state = chosen.update(jax.grad(loss)(autoencoder, states[drawn]), state, autoencoder)
        moved = optax.apply_updates(autoencoder, updates)
        return (moved._replace(decoder=_unit(moved.decoder)), state), None  # type: ignore[attr-defined]

    (made, _), _ = jax.lax.scan(step, (first, chosen.init(first)), jnp.arange(num_steps))
    return made


def experts(codes: Float[Array, "n s"], labels: Int[Array, " n"], *, num_classes: int, count: int = 10) -> Bool[Array, "c s"]:
    """Features that belong to each class, by a rule of this library: mean code on the class less the largest mean on any other.

    Args:
        codes: of n training rows; where rows have many positions, the mean or maximum over them.
        labels: of the rows.
        num_classes: c.
        count: most features per class; those without a positive score are left out.

    Returns:
        Bool[c, s], True where a feature is an expert of a class.

    Raises:
        ValueError: a count that is not a positive integer.

    Example:
        >>> codes = jax.nn.one_hot(jnp.array([0, 1, 1]), 3)
        >>> jaxunlearn.audit.experts(codes, jnp.array([0, 1, 1]), num_classes=2).tolist()
        [[True, False, False], [False, True, False]]
    """
    checks.require_count("count", count)
    member = jax.nn.one_hot(labels, num_classes, dtype=codes.dtype)
    means = jnp.dot(member.T, codes, precision="highest") / jnp.maximum(jnp.sum(member, axis=0), 1)[:, None]
    largest, second = jax.lax.top_k(means.T, min(2, num_classes))[0].T[jnp.array([0, -1])]
    others = jnp.where(means == largest, second, largest)
    score = means - others
    least = jax.lax.top_k(score, min(count, score.shape[1]))[0][:, -1:]
    return (score > 0) & (score >= least)


def restore(
    suffix: Suffix,
    unlearned: Float[Array, "n ... D"],
    original: Float[Array, "n ... D"],
    autoencoder: SparseAutoencoder,
    mask: Bool[Array, " s"],
    *,
    strength: Scalar,
    mode: Mode = "safe",
    class_token: bool = False,
) -> Float[Array, "n c"]:
    """Logits after the experts' codes are moved towards those of the original model, with the codes linear, without a bias.

        safe:  h_u + strength (m * (p_o - p_u)) G'              strength 0 changes nothing
        paper: (p_u + strength m * (p_o - p_u)) G' + b          every state is replaced by a linear reconstruction

    Args:
        suffix: the rest of the unlearned model, states -> logits.
        unlearned, original: states of both models at the cut, for n rows of the forgotten class.
        autoencoder: of the original model's states.
        mask: the experts of the class.
        strength: 1 moves codes to where the original has them; published are 1, 5 and 10.
        mode: see above.
        class_token: states are [n, 1 + positions, D] and the first is a class token, which the authors move as a whole, past
            the autoencoder. That alone can restore a class, whatever the experts.

    Returns:
        Logits [n, c].

    Raises:
        ValueError: an unknown mode, states of different shapes, a class token without positions.

    Example:
        >>> z = jax.random.normal(key, (5, 8))
        >>> made = jaxunlearn.audit.fit_sparse_autoencoder(z, key, width=16, sparsity=4, num_steps=5)
        >>> same = jaxunlearn.audit.restore(lambda h: h, z, 2 * z, made, jnp.ones(16, bool), strength=0.0)
        >>> bool(jnp.array_equal(same, z))
        True
    """
    if mode not in ("safe", "paper"):
        raise ValueError(f"mode must be 'safe' or 'paper', got {mode!r}")
    if unlearned.shape != original.shape:
        raise ValueError(f"states of both models must have one shape, got {unlearned.shape} and {original.shape}")
    if class_token and unlearned.ndim != 3:
        raise ValueError(f"a class token stands in front of positions, [n, 1 + positions, D]; got {unlearned.shape}")
    tokens, patches = (unlearned[:, :1], original[:, :1]), (unlearned, original)
    if class_token:
        patches = unlearned[:, 1:], original[:, 1:]
    before, after = (jnp.dot(h - autoencoder.centre, autoencoder.encoder, precision="highest") for h in patches)
    change = strength * jnp.where(mask, after - before, 0)
    if mode == "safe":
        states = patches[0] + jnp.dot(change, autoencoder.decoder, precision="highest")
    else:
        states = decode(autoencoder, before + change)
    if class_token:
        states = jnp.concatenate([tokens[0] + strength * (tokens[1] - tokens[0]), states], axis=1)
    return suffix(states)


def restoration_rate(restored: Scalar, unlearned: Scalar, original: Scalar) -> Float[Array, ""]:
    """Share of the lost accuracy that came back, `(restored - unlearned) / (original - unlearned)`, cut to [0, 1].

    A definition of this library; the paper's was not available.

    Args:
        restored, unlearned, original: accuracies on the forgotten class, fractions; shapes broadcast.

    Returns:
        In [0, 1]. NaN where unlearning took no accuracy, so that there is nothing to restore.

    Example:
        >>> float(jaxunlearn.audit.restoration_rate(0.5, 0.0, 1.0))
        0.5
    """
    lost = jnp.asarray(original) - unlearned
    return jnp.where(lost > 0, jnp.clip((restored - unlearned) / jnp.where(lost > 0, lost, 1), 0, 1), jnp.nan)


class Restoration(NamedTuple):
    """Accuracies on rows of the forgotten class."""

    unlearned: Float[Array, ""]
    restored: Float[Array, " a"]  # for every strength
    random: Float[Array, " a"]  # with as many random features in place of the experts
    everything: Float[Array, ""]  # with the whole state of the original model


def restoration_curve(
    suffix: Suffix,
    unlearned: Float[Array, "n ... D"],
    original: Float[Array, "n ... D"],
    autoencoder: SparseAutoencoder,
    mask: Bool[Array, " s"],
    label: int | Int[Array, ""],
    key: PRNGKeyArray,
    *,
    strengths: Float[Array, " a"],
    mode: Mode = "safe",
    class_token: bool = False,
) -> Restoration:
    """`restore` at several strengths, with its controls.

    Args:
        suffix, unlearned, original, autoencoder, mask, mode, class_token: as in `restore`.
        label: the forgotten class.
        key: one typed key, for the random features.
        strengths: a strengths to try.

    Returns:
        `Restoration`. Strength 0 in mode `safe` gives the accuracy without restoration.

    Raises:
        ValueError: as `restore`.

    Example:
        >>> z = jax.random.normal(key, (5, 8))
        >>> made = jaxunlearn.audit.fit_sparse_autoencoder(z, key, width=16, sparsity=4, num_steps=5)
        >>> found = jaxunlearn.audit.restoration_curve(
        ...     lambda h: h, z, z, made, jnp.ones(16, bool), 0, key, strengths=jnp.array([0.0, 1.0]))
        >>> found.restored.shape
        (2,)
    """

    def accuracy(logits):
        return jnp.mean((jnp.argmax(logits, axis=-1) == label).astype(jnp.float32))

    order = jnp.argsort(jax.random.uniform(key, mask.shape))
    others = jnp.argsort(order) < jnp.sum(mask)
    run = partial(restore, suffix, unlearned, original, autoencoder, mode=mode, class_token=class_token)

    def at(chosen):
        return jax.lax.map(lambda strength: accuracy(run(chosen, strength=strength)), jnp.asarray(strengths, jnp.float32))

    return Restoration(accuracy(suffix(unlearned)), at(mask), at(others), accuracy(suffix(original)))


def _unit(rows: Float[Array, "s D"]) -> Float[Array, "s D"]:
    return rows / jnp.maximum(jnp.linalg.norm(rows, axis=1, keepdims=True), jnp.finfo(rows.dtype).tiny)
