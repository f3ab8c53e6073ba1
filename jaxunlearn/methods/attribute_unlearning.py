"""Attribute unlearning (Guo, Guo, Zhang, Xu, Wang: Efficient attribute unlearning: towards selective removal of input
attributes from feature representations, 2022, arXiv 2202.13295): features keep what the label needs and lose an attribute.

**A reconstruction** from the abstract and from third-party code; the schedule and the clipping are ours.

    L(w) = loss(w) + l1 R(x | h) + l2 CE(y | h) + l3 sum_z min(CE(z | h), H(z)),    h features of w
    l1 = alpha (1 - beta),    l2 = alpha beta,    l3 = alpha (beta - gamma)

bounds `alpha (-I(h, x) + beta I(rest, h) + gamma I(h, z))`, so an attribute z is removed only where `gamma > beta`. R,
CE(y | h) and CE(z | h) come from probes on h: a decoder of the inputs, one head for the label, one for each attribute. Every
step trains them `probe_steps` times on fixed features, always to know as much as they can, then moves the model once
through fixed probes. Beyond H(z), the entropy of the attribute among the rows, an error of a probe is no sign of removal,
only of a probe that was fooled; hence the minimum. A fresh probe may find what these no longer find: measure with a fresh one.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from jaxunlearn import checks, passes, sampling
from jaxunlearn.card import Method
from jaxunlearn.heads.attributes import attributes_of, entropy_of, frequencies
from jaxunlearn.heads.maps import layer_of
from jaxunlearn.loop.descend import GradientState, descend
from jaxunlearn.passes import BatchNormPolicy
from jaxunlearn.types import Model, Outputs, Scalar, Unlearner, Weighted

METHOD = Method(
    summary="forget an attribute of all rows: features lose it and keep the label",
    cites="guo2022efficient",
    family="representation",
    reads=frozenset({"attributes", "layer", "retain"}),
    targets="classes",
    requests="attributes",
    reconstruction=True,
)


class State(NamedTuple):
    """What the method carries from step to step."""

    model: GradientState
    probes: PyTree
    optimizer: optax.OptState  # of the probes


class Context(NamedTuple):
    """What stays as it is during a run."""

    attributes: Int[Array, "n A"]  # of every training row
    asked: Bool[Array, " A"]
    seen: Bool[Array, "A V"]  # values that some row has
    entropy: Float[Array, " A"]  # H(z), nats


class Errors(NamedTuple):
    """Errors of the probes on some features."""

    reconstruction: Float[Array, ""]  # mean squared error of an input's entry
    label: Float[Array, ""]
    attributes: Float[Array, " A"]  # nats


def bound_weights(alpha: Scalar, beta: Scalar, gamma: Scalar) -> tuple[Scalar, Scalar, Scalar]:
    """`l1, l2, l3`: weights of the errors on input, label and attribute in the bound.

    Example:
        >>> from jaxunlearn.methods.attribute_unlearning import bound_weights
        >>> bound_weights(1.0, 0.5, 1.5)
        (0.5, 0.5, -1.0)
    """
    return alpha * (1 - beta), alpha * beta, alpha * (beta - gamma)


def _start_probe(key: PRNGKeyArray, inside: int, outside: int, width: int, dtype: Any) -> PyTree:
    first, second = jax.random.split(key)
    initial = jax.nn.initializers.he_normal()
    if width == 0:
        return {"out": initial(first, (inside, outside), dtype), "out_bias": jnp.zeros(outside, dtype)}
    return {
        "in": initial(first, (inside, width), dtype),
        "in_bias": jnp.zeros(width, dtype),
        "out": initial(second, (width, outside), dtype),
        "out_bias": jnp.zeros(outside, dtype),
    }


def _probe(params: PyTree, features: Float[Array, "b D"]) -> Float[Array, "b m"]:
    hidden = jax.nn.relu(features @ params["in"] + params["in_bias"]) if "in" in params else features
    return hidden @ params["out"] + params["out_bias"]


def _entries(inputs: PyTree) -> Float[Array, "b p"]:
    checks.require_floating(inputs, "attribute_unlearning reconstructs its inputs")
    rows = [x.reshape(x.shape[0], -1) for x in jax.tree.leaves(inputs)]
    return jnp.concatenate([x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in rows], axis=1)


def attribute_unlearning(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    num_values: int,
    alpha: Scalar = 1.0,
    beta: Scalar = 0.5,
    gamma: Scalar = 1.5,
    warmup: Scalar = 1 / 3,
    probe_steps: int = 3,
    probe_width: int = 64,
    probe_optimizer: optax.GradientTransformation | None = None,
    layer: str = "penultimate",
    bn: BatchNormPolicy = "retain",
) -> Unlearner:
    """Keep training until probes no longer find an attribute in the features; a reconstruction.

    It forgets no row: `request.target` says which attributes go, and every present row is trained on (rows that the request
    names as well are left out). No default is the paper's; where an attribute goes with the label, one of them must give way.
    `alpha`, `beta`, `gamma` and `warmup` may be traced.

    Args:
        model: any model of floating-point inputs that returns features.
        optimizer: any optax transformation, e.g. Adam at 1e-3.
        num_values: values of an attribute, static: slot `attributes` holds Int[n, A] in `0 .. num_values - 1`. Anything else,
            -1 by convention, is unknown: that row counts for everything but this attribute.
        alpha: weight of the bound, at least 0. 0 is `jaxunlearn.finetune`.
        beta: at least 0; what is neither label nor attribute goes from the features, too. Below 1 a decoder is to find the
            inputs again, the attribute included.
        gamma: at least 0; how much the attribute goes: above `beta` it is removed, below it is kept.
        warmup: share of the steps over which the weight of the attribute grows linearly to its full value.
        probe_steps: of the probes before every step of the model, on its batch; static.
        probe_width: hidden units of a probe, static; 0 makes it linear.
        probe_optimizer: by default Adam at 1e-3.
        layer: which of `Outputs.features`.
        bn: which passes may move BatchNorm statistics, see `jaxunlearn.passes`.

    Returns:
        An `Unlearner` for `jaxunlearn.iterate`; per-step `stats`: `loss`, `task_loss`, `reconstruction_error` (mean squared
        error), `label_error` (of the label's probe, in the model's loss) Float[], `attribute_information` Float[A] (H(z) minus
        the error of its probe, nats, on the batch that the probe was just trained on; 0 for attributes that are not asked for).

    Raises:
        ValueError: a setting out of its range; at trace time, no attributes in the data, a request that names none, a layer
            that the model does not return.
        TypeError: at trace time, inputs that are not floating-point.

    References:
        Guo, Guo, Zhang, Xu, Wang: Efficient attribute unlearning, 2022, arXiv 2202.13295.
        Wang, Ni, Song, Yang, Huang: Revisiting locally supervised learning: an alternative to end-to-end training, ICLR 2021,
        arXiv 2101.10832, whose bound it extends.

    Example:
        >>> attributes = jnp.stack([data.train.inputs[:, 0] > 0, data.train.inputs[:, 1] > 0], axis=1).astype(int)
        >>> with_attributes = jaxunlearn.slots.ATTRIBUTES.put(data, attributes)
        >>> second = jax.tree.map(lambda x: x[0], jaxunlearn.from_attributes(with_attributes, [[1]]))
        >>> method = jaxunlearn.attribute_unlearning(model, optax.adam(1e-3), num_values=2)
        >>> unlearn = jaxunlearn.iterate(method, num_steps=10, batch_size=8)
        >>> result = jax.jit(unlearn)(variables, with_attributes, second, key)
    """
    checks.require_count("num_values", num_values, least=2)
    checks.require_count("probe_steps", probe_steps, least=0)
    checks.require_count("probe_width", probe_width, least=0)
    for name, value in {"alpha": alpha, "beta": beta, "gamma": gamma, "warmup": warmup}.items():
        checks.check_range(name, value, low=0)
    probe_optimizer = optax.adam(1e-3) if probe_optimizer is None else probe_optimizer
    on_input, on_label, on_attribute = bound_weights(alpha, beta, gamma)

    def start_probes(variables, data, num_attributes, key):
        one = jax.tree.map(lambda x: x[:1], data.train.inputs)
        outputs = jax.eval_shape(lambda v, x: model.forward(v, x, train=False), variables, one)
        features = jax.eval_shape(lambda out: layer_of(out, layer), outputs)
        entries = jax.eval_shape(_entries, one)
        decoder, label, heads = jax.random.split(key, 3)

        def start(key, outside):
            return _start_probe(key, features.shape[1], outside, probe_width, features.dtype)

        return {
            "decoder": start(decoder, entries.shape[1]),
            "label": start(label, outputs.logits.size),
            "attributes": jax.vmap(lambda key: start(key, num_values))(jax.random.split(heads, num_attributes)),
        }

    def errors(probes, outputs: Outputs, features, part: Weighted, context: Context) -> Errors:
        logits = _probe(probes["label"], features).reshape(outputs.logits.shape)
        off = jnp.mean((_probe(probes["decoder"], features) - _entries(part.examples.inputs)) ** 2, axis=-1)
        values = context.attributes[part.slots].T
        known = (values >= 0) & (values < num_values)

        def head(params, values, known, seen):
            guesses = jnp.where(seen, _probe(params, features), -1e30)
            found = optax.losses.softmax_cross_entropy_with_integer_labels(guesses, jnp.where(known, values, 0))
            return sampling.masked_mean(found, part.weights * known, empty=0)

        return Errors(
            sampling.masked_mean(off, part.weights, empty=0),
            sampling.masked_mean(model.loss(outputs._replace(logits=logits), part.examples), part.weights, empty=0),
            jnp.where(context.asked, jax.vmap(head)(probes["attributes"], values, known, context.seen), 0),
        )

    def objective(variables, context_and_probes, batch, key):
        context, probes, share = context_and_probes
        retain, moved = passes.train_pass(model, variables, batch.retain, key, side="retain", bn=bn)
        left = errors(probes, retain.outputs, layer_of(retain.outputs, layer), batch.retain, context)
        detached = on_input * left.reconstruction + on_label * left.label
        detached = detached + share * on_attribute * jnp.sum(jnp.minimum(left.attributes, context.entropy))
        known = jnp.where(context.asked, context.entropy - left.attributes, 0)
        stats = {
            "task_loss": retain.loss,
            "reconstruction_error": left.reconstruction,
            "label_error": left.label,
            "attribute_information": known,
        }
        return retain.loss + passes.penalty(model, variables.params) + detached, (moved.state, stats)

    inner = descend(model, optimizer, objective)

    def init(variables, data, request, key):
        inner_key, probe_key = jax.random.split(key)
        values, asked = attributes_of(data, request)
        counts = frequencies(data, request, values, num_values)
        probes = start_probes(variables, data, values.shape[1], probe_key)
        _, state = inner.init(variables, data, request, inner_key)
        context = Context(values, asked, counts > 0, entropy_of(counts))
        return context, State(state, probes, probe_optimizer.init(probes))

    def step(state: State, context: Context, batch, key):
        seen_key = jax.random.fold_in(key, 1)  # the model's own pass keeps the key that `finetune` would give it
        part = batch.retain
        outputs = model.forward(state.model.variables, part.examples.inputs, train=True, key=seen_key)
        outputs = jax.lax.stop_gradient(outputs._replace(state=()))
        features = layer_of(outputs, layer)

        def learn(carried, _):
            probes, optimizer_state = carried

            def error(probes):
                return sum(map(jnp.sum, errors(probes, outputs, features, part, context)))

            updates, optimizer_state = probe_optimizer.update(jax.grad(error)(probes), optimizer_state, probes)
            return (optax.apply_updates(probes, updates), optimizer_state), None

        (probes, optimizer_state), _ = jax.lax.scan(learn, (state.probes, state.optimizer), length=probe_steps)
        share = jnp.minimum((batch.step + 1) / jnp.maximum(warmup * batch.num_steps, 1), 1)
        moved, stats = inner.step(state.model, (context, probes, share), batch, key)
        return State(moved, probes, optimizer_state), stats

    return inner._replace(init=init, step=step, finalize=lambda state, context: state.model.variables, on_empty=METHOD.on_empty)
