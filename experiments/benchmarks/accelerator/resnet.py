"""(g) ResNet-18 on images of 32x32x3: steps per second and memory of one request, and of several side by side."""

from functools import partial

import jax
import optax

import jaxunlearn as ju
from experiments.benchmarks.accelerator import networks
from experiments.benchmarks.accelerator.harness import Part, Size, compiled, mib, timed
from experiments.benchmarks.accelerator.side_by_side import side_by_side

SHORTEST = 10.0  # seconds below which compiling is not begun, at full size


def run(part: Part, size: Size) -> None:
    """gradient_difference with SGD and batches of both sides; synthetic images."""
    from experiments.common.models import build  # imports flax

    width, *blocks = size.resnet
    model = build("resnet18", (32, 32, 3), networks.CLASSES, width=width, blocks=tuple(blocks), implementation="native")
    assert model.init is not None  # models of the experiments have one
    variables = jax.jit(model.init)(jax.random.key(0))
    data = networks.noise_images(size.resnet_rows, 32, 3)
    method = ju.gradient_difference(model, optax.sgd(networks.LEARNING_RATE))
    unlearn = side_by_side(ju.iterate(method, num_steps=size.resnet_steps, batch_size=size.batch))
    weights, expected = sum(x.nbytes for x in jax.tree.leaves(variables)), SHORTEST if width == 64 else 0.0
    for count in size.resnet_requests:
        what = f"ResNet-18, {count} requests"
        if not part.fits(what, expected):
            continue
        with part.attempt(what):
            arguments = (variables, data, *networks.asked(data, count))
            made = compiled(unlearn, *arguments)
            done = timed(partial(made.call, *arguments), size)
            statistics = jax.devices()[0].memory_stats() or {}
            part.row(
                requests=count,
                ms_per_step=1e3 * done.median / size.resnet_steps,
                steps_per_s=size.resnet_steps / done.median,
                request_steps_per_s=count * size.resnet_steps / done.median,
                temporaries_mib=mib(made.temporaries),
                in_weights_of_all_requests=None if made.temporaries is None else made.temporaries / (count * weights),
                peak_mib_of_the_process=mib(statistics.get("peak_bytes_in_use")),
                compile_s=made.seconds,
            )
            expected = made.seconds + 3 * done.median * 8
