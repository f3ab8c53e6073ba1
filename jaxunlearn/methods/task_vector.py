"""Task vector negation (Ilharco, Ribeiro, Wortsman, Gururangan, Schmidt, Hajishirzi, Farhadi: Editing models with task
arithmetic, ICLR 2023, arXiv 2212.04089).

    v <- v - optimizer(grad mean_{forget} loss(v)), starting from the trained model w0;    w = w0 - scale (v - w0)

Learn the forget set even better, then go as far the other way. It does not read the retain set. In one step of plain SGD it
is gradient ascent; in many it walks a path that stays bounded, because the loss that it descends has a minimum. The state
(running statistics) stays that of the trained model. The paper chooses `scale` on held-out rows; `keep_best` chooses the
number of steps there.
"""

import jax
import optax

from jaxunlearn import checks, passes
from jaxunlearn.card import Method
from jaxunlearn.loop.descend import descend, trained_model
from jaxunlearn.types import Model, Scalar, Unlearner

METHOD = Method(
    summary="subtract what fine-tuning on the forget set adds",
    cites="ilharco2023editing",
    family="objective",
    reads=frozenset({"forget"}),
    aliases=("task_arithmetic",),
    search={"learning_rate": (0.0001, 0.001), "scale": (0.1, 0.3, 1.0, 3.0)},
)


def task_vector(model: Model, optimizer: optax.GradientTransformation, *, scale: Scalar = 1.0) -> Unlearner:
    """Subtract from the parameters what fine-tuning on the forget set would add.

    Args:
        model: the model.
        optimizer: any optax transformation, for the fine-tuning.
        scale: how much of the difference is subtracted, at least 0, may be traced.

    Returns:
        An `Unlearner` for `jaxunlearn.iterate`; per-step `stats`: `loss` Float[], that of the fine-tuning.

    Raises:
        ValueError: a negative `scale`.

    Example:
        >>> method = jaxunlearn.task_vector(model, optax.sgd(0.1), scale=0.5)
        >>> result = jax.jit(jaxunlearn.iterate(method, num_steps=10, batch_size=8))(variables, data, request, key)
    """
    checks.check_range("scale", scale, low=0)

    def objective(variables, trained, batch, key):
        forget, moved = passes.train_pass(model, variables, batch.forget, key, side="forget", bn="frozen")
        return forget.loss, (moved.state, {})

    def finalize(state, trained):
        negated = jax.tree.map(
            lambda old, tuned: (old - scale * (tuned - old)).astype(old.dtype), trained.params, state.variables.params
        )
        return trained._replace(params=negated)

    tuning = descend(model, optimizer, objective, context=trained_model, on_empty=METHOD.on_empty, judge=False)
    return tuning._replace(finalize=finalize)
