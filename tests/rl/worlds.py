"""Small maps and agents whose values stand in tables."""

import jax
import jax.numpy as jnp

import jaxunlearn as ju
from jaxunlearn import rl

WORLD = rl.grid_world()


def corridors():
    """Two maps of four cells in a row, the goal on the left; the second one ends before its last cell."""
    plain = rl.grid_map(jnp.zeros((1, 4), bool), (0, 3), (0, 0))
    shorter = rl.grid_map(jnp.array([[False, False, False, True]]), (0, 2), (0, 0))
    return jax.tree.map(lambda *x: jnp.stack(x), plain, shorter)


def table():
    """An agent with a number for every action in every cell of the corridors, told apart by their last cell."""

    def forward(variables, inputs, *, train=False, key=None):
        cell, number = jnp.argmax(inputs[:, 4:], axis=1), inputs[:, 3].astype(jnp.int32)
        return ju.Outputs(variables.params["values"][number, cell])

    return ju.Model(forward, ju.losses.squared_error)


def optimal(maps):
    """The agent that knows all maps."""
    return ju.Variables({"values": jax.vmap(rl.optimal_values)(maps)})


def linear(cells):
    """An agent that is linear in a separable observation."""
    model = ju.Model(lambda v, obs, train=False, key=None: ju.Outputs(obs @ v.params["w"]), ju.losses.squared_error)
    return model, ju.Variables({"w": jnp.zeros((2 * cells, 4))})
