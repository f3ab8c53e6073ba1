"""(c) EK-FAC: the fit, and solves for many requests in one call or one after the other."""

from functools import partial

import jax
import jax.numpy as jnp

import jaxunlearn as ju
from experiments.benchmarks.accelerator import networks
from experiments.benchmarks.accelerator.harness import Part, Size, compiled, timed
from jaxunlearn import tree

WIDTHS = (256, 128)
DAMPING = 1e-3
TOLERANCE = 1e-3  # relative residual of a solve, in float32


def run(part: Part, size: Size) -> None:
    """On an MLP, 784-256-128-10 in full size."""
    from experiments.common.models import build  # imports flax

    side = size.curvature_side
    model = build("mlp", (side, side, 1), networks.CLASSES, widths=WIDTHS if side == 28 else (8,))
    assert model.init is not None  # models of the experiments have one
    data, variables = networks.noise_images(size.curvature_rows, side), jax.jit(model.init)(jax.random.key(0))
    for kind in size.kinds:
        what = f"fit of EK-FAC, {kind}"
        if part.fits(what):
            with part.attempt(what):
                arguments = (variables, data.train, data.present, jax.random.key(1))
                fit = compiled(ju.curvature.ekfac(model, kind=kind), *arguments)
                done = timed(partial(fit.call, *arguments), size)
                part.row(what=f"{what}, {size.curvature_rows} rows", ms=1e3 * done.median, compile_s=fit.seconds)
                if kind == "sampled":
                    solves(part, size, model, variables, data, done.result)


def solves(part: Part, size: Size, model: ju.Model, variables: ju.Variables, data: ju.Data, made) -> None:
    """Of the gradients of 8 rows of each request."""

    def pull(rows):
        examples = jax.tree.map(lambda x: x[rows], data.train)
        return ju.curvature.gradient_sum(model, variables, examples, jnp.ones(len(rows)))

    requests, _ = networks.asked(data, size.solves)
    pulls = jax.block_until_ready(jax.jit(jax.vmap(pull))(requests.indices[:, :8]))

    def solve(made, b):
        return made.solve(b, DAMPING)

    together = compiled(jax.vmap(solve, (None, 0)), made, pulls)
    done = timed(partial(together.call, made, pulls), size)
    part.row(what=f"{size.solves} solves in one call", ms=1e3 * done.median, compile_s=together.seconds)
    each = [networks.entry(pulls, place) for place in range(size.solves)]
    alone = compiled(solve, made, each[0])
    loop = timed(lambda: [alone.call(made, b) for b in each], size)
    part.row(what=f"{size.solves} solves in as many calls", ms=1e3 * loop.median, compile_s=alone.seconds)

    def residual(made, x, b):
        image = jax.tree.map(lambda image, x: image + DAMPING * x, made.matvec(x), x)
        return tree.norm(jax.tree.map(jnp.subtract, image, b)) / tree.norm(b)

    worst = float(jnp.max(jax.jit(jax.vmap(residual, (None, 0, 0)))(made, done.result, pulls)))
    part.row(what="largest relative residual of a solve", value=worst)
    if not worst <= TOLERANCE:
        raise AssertionError(f"a solve leaves a relative residual of {worst}")
