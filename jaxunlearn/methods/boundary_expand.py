"""Boundary Expanding (Chen, Gao, Liu, Peng, Wang: Boundary unlearning: rapid forgetting of deep networks via shifting the
decision boundary, CVPR 2023, arXiv 2303.11570): give the forget set to a class that is not there, then take that class away.

    L(w, v) = mean_{forget} -log softmax(f_w(x), v . (h_w(x), 1))_{K + 1},    v the row of the shadow class, h the features

It reads no label. In the head, a step moves the row of class k by `-mean p_k(x) h(x)`: logits are pushed down in proportion to
their probability, the forgotten class first. At the end v is dropped, and the model has the K outputs that it had. The row lies
beside the parameters and not in the head, whose shape stays. The authors initialise a head of K + 1 outputs and copy the K
old rows into it; what is left of that is v, Xavier-normal for K + 1 outputs. They train in training mode, so that BatchNorm's
running statistics become those of the forget set; here it goes through the model in evaluation mode by default. Another
implementation (SalUn's) keeps the shadow class and counts it as forgotten: its numbers are not comparable.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from jaxunlearn import checks, passes
from jaxunlearn.card import Method
from jaxunlearn.heads.maps import layer_of, require_head
from jaxunlearn.heads.moments import checked_kernel
from jaxunlearn.loop.descend import descend
from jaxunlearn.losses import cross_entropy
from jaxunlearn.passes import BatchNormPolicy
from jaxunlearn.types import Examples, Model, Outputs, Unlearner, Variables

METHOD = Method(
    summary="give the forget set to a shadow class, then drop that; reads no label and no row of the retain set",
    cites="chen2023boundary",
    family="objective",
    reads=frozenset({"forget", "head", "layer"}),
    targets="classes",
    aliases=("boundary_expanding",),
    search={"learning_rate": (3e-4, 5e-4, 7e-4, 1e-3)},
)


class Shadow(NamedTuple):
    """The row of the shadow class."""

    kernel: Float[Array, " D"]
    bias: Float[Array, ""]


class Widened(NamedTuple):
    """What is trained: the model's parameters, and the row of one more class beside its head."""

    model: PyTree
    shadow: Shadow


def boundary_expand(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    layer: str = "penultimate",
    bn: BatchNormPolicy = "evaluate",
) -> Unlearner:
    """Give the forget set to a shadow class, and drop that class at the end.

    Meant for a whole class. The forget set alone decides where the descent ends: too large a step, or too many, and other
    classes go too.

    Args:
        model: a classifier with logits [b, c], a head and `features[layer]`; its loss is not read.
        optimizer: any optax transformation; it sees the tree `Widened(model=params, shadow=...)`, so masks by path work and
            masks of the form of the parameters do not. Published: `optax.sgd(1e-5, momentum=0.9)`, 10 epochs of batches of 64.
        layer: what the head acts on.
        bn: which passes may move BatchNorm statistics; there is no retain pass, so only "all" moves them, as published. With
            any but "evaluate" the forget set is normalised by its own batches, which are often of one class.

    Returns:
        An `Unlearner` for `jaxunlearn.iterate`; per-step `stats`: `loss` Float[], that of the shadow class.

    Raises:
        ValueError: a model without a head; at trace time, logits that are no classes, a layer that the model does not return
            or that the head does not act on.

    References:
        Chen, Gao, Liu, Peng, Wang: Boundary unlearning: rapid forgetting of deep networks via shifting the decision boundary,
        CVPR 2023, arXiv 2303.11570.

    Example:
        >>> method = jaxunlearn.boundary_expand(headed, optax.sgd(0.1))
        >>> result = jax.jit(jaxunlearn.iterate(method, num_steps=10, batch_size=8))(headed_variables, data, request, key)
        >>> result.stats["loss"].shape
        (10,)
    """
    head = require_head(model, "boundary_expand puts a class beside the others in the head")

    def widened(variables: Variables, key: PRNGKeyArray) -> Variables:
        kernel, bias = head.get(variables)
        width, classes = kernel.shape
        row = jax.random.normal(key, (width,)) * jnp.sqrt(2 / (width + classes + 1))
        shadow = Shadow(row.astype(kernel.dtype), jnp.zeros((), bias.dtype))
        return variables._replace(params=Widened(variables.params, shadow))

    def pruned(variables: Variables) -> Variables:
        return variables._replace(params=variables.params.model)

    def objective(variables: Variables, context, batch, key):
        forget, moved = passes.train_pass(model, pruned(variables), batch.forget, key, side="forget", bn=bn)
        logits, features = forget.outputs.logits, layer_of(forget.outputs, layer)
        checks.require_classes("boundary_expand", logits)
        checked_kernel(head, pruned(variables), features.shape[1])
        kernel, bias = variables.params.shadow
        shadow = features @ kernel.astype(features.dtype) + bias
        wide = jnp.concatenate([logits, shadow[:, None]], axis=1)
        last = jnp.full(wide.shape[0], logits.shape[1])
        return forget.mean(cross_entropy(Outputs(wide), Examples((), last))), (moved.state, {})

    inner = descend(model, optimizer, objective, start=widened, on_empty=METHOD.on_empty, judge=False)
    return inner._replace(finalize=lambda state, context: pruned(state.variables))
