"""Training passes over weighted batches, and what BatchNorm does in them.

In training mode a batch is normalised by its own mean and variance. A forget batch of one class is then seen as no row is seen
in evaluation, and the loss that a method climbs on is another one than the loss that is reported. `bn="evaluate"` takes
the forget side through the model in evaluation mode, with the running statistics and without dropout. For a class of digits and
a small residual network `npo` begins at a forget loss of 2.6 in training mode where evaluation says 0.006, and ends
at the retrained accuracies; in evaluation mode it begins at 0.006 and, at the same learning rate, loses the retain set
(`experiments/results`).
"""

from typing import Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from jaxunlearn import checks, tree
from jaxunlearn.sampling import masked_mean
from jaxunlearn.types import Batch, Model, Outputs, Scalar, Variables, Weighted

BatchNormPolicy: TypeAlias = Literal["frozen", "retain", "all", "evaluate"]


class Pass(NamedTuple):
    """One training pass over a weighted batch."""

    outputs: Outputs
    losses: Float[Array, " b"]  # the model's loss, one value per row
    weights: Float[Array, " b"]

    @property
    def loss(self) -> Float[Array, ""]:
        """Weighted mean of the model's loss."""
        return self.mean(self.losses)

    def mean(self, values: Float[Array, " b"]) -> Float[Array, ""]:
        """Weighted mean of other values of the same rows."""
        return masked_mean(values, self.weights, empty=0)


def train_pass(
    model: Model,
    variables: Variables,
    part: Weighted,
    key: PRNGKeyArray,
    *,
    side: Literal["forget", "retain"],
    bn: BatchNormPolicy,
) -> tuple[Pass, Variables]:
    """Run the model in training mode on one side of a batch.

    Args:
        model: the model.
        variables: its parameters and state.
        part: one side of a batch; rows of weight 0 count for nothing.
        key: for dropout and the like.
        side: which side it is.
        bn: the sides that may move BatchNorm statistics: "frozen" (none), "retain" or "all"; "evaluate" is "retain" with the
            forget side in evaluation mode, see the module. A batch in which no row counts never moves any.

    Returns:
        The pass, and the variables with the state that survives it.

    Raises:
        ValueError: an unknown policy; a loss that is not one value per row; a forward pass that loses the state.

    Example:
        >>> from jaxunlearn.passes import train_pass
        >>> part = jaxunlearn.forget_rows(data, request)
        >>> found, moved = train_pass(model, variables, part, key, side="forget", bn="retain")
        >>> found.loss.shape, found.losses.shape == part.weights.shape
        ((), True)
    """
    if bn not in get_args(BatchNormPolicy):
        raise ValueError(f"bn must be one of {', '.join(get_args(BatchNormPolicy))}, got {bn!r}")
    trains = side == "retain" or bn != "evaluate"
    outputs = model.forward(variables, part.examples.inputs, train=trains, key=key if trains else None)
    losses = checks.row_losses(model, outputs, part.examples)
    if bn in ("all", side) or (bn, side) == ("evaluate", "retain"):
        variables = variables._replace(state=_moved_state(variables.state, outputs.state, jnp.any(part.weights > 0)))
    return Pass(outputs, losses, part.weights), variables


def both_passes(
    model: Model, variables: Variables, batch: Batch, key: PRNGKeyArray, *, bn: BatchNormPolicy
) -> tuple[Pass, Pass, Variables]:
    """Training passes over the retain side and then the forget side of a batch, and the variables that survive them."""
    retain_key, forget_key = jax.random.split(key)
    retain, moved = train_pass(model, variables, batch.retain, retain_key, side="retain", bn=bn)
    forget, moved = train_pass(model, moved, batch.forget, forget_key, side="forget", bn=bn)
    return retain, forget, moved


def _moved_state(old: PyTree, new: PyTree, counts: Bool[Array, ""]) -> PyTree:
    if jax.tree.structure(old) != jax.tree.structure(new):
        raise ValueError(
            "forward(train=True) must return the whole model state in Outputs.state: "
            f"expected {jax.tree.structure(old)}, got {jax.tree.structure(new)}"
        )
    return tree.select(counts, new, old)


def penalty(model: Model, params: PyTree) -> Scalar:
    """The model's regularizer, which was part of the training objective; 0 if there was none."""
    return model.regularizer(params) if model.regularizer is not None else 0.0
