"""Certified runs of a network at equal epsilon, beside noise alone, a fresh start and retraining."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxunlearn as ju
from experiments.common import certified_head, models
from experiments.common.data import Dataset
from experiments.common.outcome import NOTHING
from experiments.common.running import timed
from jaxunlearn import certificates

MARGIN = 1.001  # of the noise, for the rounding of settings and weights to float32
ALONE, FRESH, RETRAINED = "output perturbation", "fresh start, as many steps", "retrained"


class Asked(Protocol):
    """What of the command line is read."""

    epsilons: tuple[float, ...]
    delta: float
    norms: tuple[float, ...]
    requests: int
    request_size: int
    widths: tuple[int, ...]
    channels: tuple[int, ...]
    training_steps: int
    noisy_steps: int
    after_steps: int
    batch_size: int
    rate: float
    pull: float
    seed: int


class Setting(NamedTuple):
    """A method with all that a certificate rests on."""

    name: str
    start: Callable[..., Any]  # (norm, sigma, decay) -> UnlearnFn; the same one is compiled once
    sigma: Callable[[float, float], float]  # (norm, epsilon)
    decay: float = 0.0  # of a noisy step


def settings(config: Asked, model: ju.Model) -> Iterator[Setting]:
    """All that is compared; the rate follows the norm, so that noisy steps may cross the ball once."""
    steps, delta = config.noisy_steps, config.delta
    lost = min(0.5, 2.0 / steps)

    def noisy(norm: float, sigma: float, decay: float, project: Any = "never", decreasing: bool = False):
        clip: dict[str, Any] = {} if project == "before noise" else {"gradient_norm": config.pull}
        rate = norm / (steps * config.pull)
        method = ju.noisy_finetune(
            model, optax.sgd(0.0), sigma=sigma, norm=norm, noisy_steps=steps, noisy_rate=rate,
            noisy_decay=decay / rate, project=project, decreasing=decreasing, **clip,
        )  # fmt: skip
        return ju.iterate(method, steps, batch_size=1, retain_batch_size=config.batch_size, damaged_at=np.inf)

    def alone(norm, sigma, decay):
        del decay
        return ju.output_perturbation(model, sigma=sigma, clip_norm=norm)

    def shifted(norm, epsilon, decay=0.0, profile: Any = 1.0):
        start, drift = 2 * norm, 2 * norm / steps
        return float(certificates.step_noise(start, 1 - decay, drift, epsilon, delta, num_steps=steps, profile=profile))

    def projected(norm, epsilon, **push):
        return float(certificates.projected_noise(norm, epsilon, delta, num_steps=steps, **push))

    def either(norm, epsilon):
        push = {"learning_rate": norm / (steps * config.pull), "gradient_norm": config.pull}
        return min(projected(norm, epsilon, **push), shifted(norm, epsilon))

    falling = certificates.decreasing(1 - lost, num_steps=steps)
    yield Setting(ALONE, alone, lambda norm, epsilon: float(certificates.gaussian_scale(2 * norm, epsilon, delta)))
    yield Setting("clipped gradients", noisy, shifted)
    yield Setting("clipped gradients, decay", noisy, partial(shifted, decay=lost), lost)
    decreasing = partial(noisy, decreasing=True)
    yield Setting("the same, decreasing noise", decreasing, partial(shifted, decay=lost, profile=falling), lost)
    yield Setting("model clipped, then noise", partial(noisy, project="before noise"), projected)
    yield Setting("noise, then model clipped", partial(noisy, project="after noise"), either)


def adam(config: Asked, steps: int) -> optax.GradientTransformation:
    """The optimizer of everything without noise."""
    return optax.adam(optax.cosine_decay_schedule(config.rate, steps))


def built(name: str, dataset: Dataset, config: Asked) -> ju.Model:
    """An MLP, or a CNN without normalisation."""
    shape: dict[str, Any] = {"widths": config.widths} if name == "mlp" else {"channels": config.channels, "width": 32}
    return models.build(name, dataset.train.inputs.shape[1:], dataset.num_classes, **shape)


def network(name: str, dataset: Dataset, config: Asked, tell: Callable[[str], Any]) -> list[dict[str, Any]]:
    """Every method at every epsilon and norm, for all requests in one compiled call each.

    Args:
        name: of the network, see `built`.
        dataset: its training rows are trained on, and some of them asked to go.
        config: see `Asked`.
        tell: gets a line whenever something is done.

    Returns:
        Rows with the columns of `certified_deep`.

    Raises:
        SystemExit: a certificate is void.
    """
    train, test = dataset.train, dataset.test
    data, model = ju.training_data(*train), built(name, dataset, config)
    generator = np.random.default_rng(config.seed)
    lists = [generator.choice(len(train.targets), config.request_size, replace=False) for _ in range(config.requests)]
    requests, keys = ju.from_indices(data, lists), jax.random.split(jax.random.key(config.seed), config.requests)
    measure = measuring(model, data, test, requests)
    like = model.init(jax.random.key(99))  # type: ignore[misc]

    def trained(steps):
        method = ju.iterate(ju.retrain(model, adam(config, steps)), steps, batch_size=1, retain_batch_size=config.batch_size)
        asked = jax.tree.map(lambda x: np.concatenate([x, np.zeros_like(x[:1])]), requests)  # the last request is for nothing
        many = ju.batched(method, in_axes=(None, None, 0, 0), chunk=len(keys) + 1)
        done = timed(many, like, data, asked, jax.random.split(jax.random.key(config.seed), len(keys) + 1))
        tell(f"{name} trained {steps} steps")
        return done.result.variables, 1e3 * done.cpu_seconds / (len(keys) + 1)

    (with_and_without, retraining), (fresh, short) = trained(config.training_steps), trained(config.after_steps)
    original = jax.tree.map(lambda x: x[-1], with_and_without)
    without, fresh = (jax.tree.map(lambda x: x[:-1], each) for each in (with_and_without, fresh))
    rows = [
        {"method": NOTHING, **measure(jax.tree.map(lambda x: jnp.stack([x] * config.requests), original))},
        {"method": RETRAINED, "milliseconds": retraining, **measure(without)},
        {"method": FRESH, "milliseconds": short, **measure(fresh)},
    ]
    rows += certified_head.rows(dataset, model, adam(config, config.training_steps), config)
    tell(f"{name}, head on frozen features")
    plain = ju.finetune(model, adam(config, config.after_steps))
    plain = ju.iterate(
        plain, config.after_steps, batch_size=1, retain_batch_size=config.batch_size, damaged_at=np.inf
    )  # fmt: skip
    then = ju.batched(plain, in_axes=(0, None, 0, 0), chunk=len(keys))
    later = jax.vmap(partial(jax.random.fold_in, data=1))(keys)
    programs: dict[Any, Any] = {}

    def run(program, *arguments):
        """The result and milliseconds of CPU per request, without compilation."""
        if program not in programs:
            programs[program] = jax.jit(program).lower(*arguments).compile()
        began = time.process_time()
        result = jax.block_until_ready(programs[program](*arguments))
        return result, 1e3 * (time.process_time() - began) / config.requests

    starts: dict[Any, Any] = {}
    for each in settings(config, model):
        start = starts.setdefault(each.start, many_of(each, len(keys)))
        for epsilon in config.epsilons:
            for norm in config.norms:
                sigma = each.sigma(norm, epsilon) * MARGIN
                values = tuple(np.float32(x) for x in (norm, sigma, each.decay))
                noised, answering = run(start, values, original, data, requests, keys)
                require_certified(jax.tree.map(lambda x: x[0], noised), data, requests, each, epsilon, config.delta)
                after, training = run(then, noised.variables, data, requests, later)
                bare, found = measure(noised.variables), measure(after.variables)
                own = {"method": each.name, "norm": norm, "epsilon": epsilon, "noise": sigma, "bare": bare["test"], **found}
                rows.append({**own, "alone": answering, "milliseconds": answering + training})
                tell(f"{name}, {each.name}, epsilon {epsilon:g}, norm {norm:g}: {float(found['test'].estimate):.1%}")
    return [{**row, "faster": retraining / row["milliseconds"]} if "milliseconds" in row else row for row in rows]


def many_of(each: Setting, chunk: int) -> Callable[..., ju.Result]:
    """All requests in one call, for every norm and noise."""

    def call(values, original, data, requests, keys):
        method = ju.batched(each.start(*values), in_axes=(None, None, 0, 0), chunk=chunk)
        return method(original, data, requests, keys)

    return call


def measuring(model: ju.Model, data: ju.Data, test: ju.Examples, requests: ju.ForgetRequest) -> Callable[..., dict[Any, Any]]:
    """Accuracies of as many models as there are requests, with intervals over them."""

    def shares(pair):
        variables, request = pair

        def right(examples):
            return jnp.argmax(model.forward(variables, examples.inputs).logits, axis=1) == examples.targets

        own = right(data.train)
        gone = jnp.zeros(own.shape).at[request.indices].max(request.weights)
        return right(test).mean(), (own * (1 - gone)).sum() / (1 - gone).sum(), (own * gone).sum() / gone.sum()

    program = jax.jit(lambda variables: jax.lax.map(shares, (variables, requests)))

    def measure(variables):
        found = program(variables)
        limits: Any = (ju.audit.Interval(*map(float, ju.audit.t_interval(x))) for x in found)  # type: ignore[arg-type]
        return dict(zip(("test", "retain", "forget"), limits, strict=True))

    return measure


def require_certified(
    result: ju.Result, data: ju.Data, requests: ju.ForgetRequest, each: Setting, epsilon: float, delta: float
) -> None:
    """Stop unless the run is certified at the epsilon of its row."""
    mechanism: Any = certificates.NoisyFinetune()
    if each.name == ALONE:
        mechanism = certificates.OutputPerturbation(own_noise=True)
    certificate = certificates.certify_run(
        result, data, jax.tree.map(lambda x: np.asarray(x)[0], requests),
        mechanism=mechanism, epsilon=epsilon, delta=delta, extractor="none", adaptive=False, secret_key=True,
    )  # fmt: skip
    if not certificate.valid:
        raise SystemExit(f"{each.name}: {[one for one in certificate.assumptions if not one.holds]}")
