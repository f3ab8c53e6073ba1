"""The script at its smallest, its precondition, and a measure that it does not use."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import rl_grid
from experiments.common.scale import Scale
from jaxunlearn import rl

ONE_DEVICE = Scale(mesh=False)


@pytest.mark.slow
@pytest.mark.parametrize("agent", ["exact", "dqn"])
def test_a_smoke_run_writes_its_report_or_stops_at_its_precondition(tmp_path, agent):
    config = rl_grid.Config(scale=ONE_DEVICE, smoke=True, out=tmp_path, agent=agent)
    if agent == "dqn":  # twenty steps teach it nothing
        with pytest.raises(SystemExit, match="nothing can be said of forgetting"):
            rl_grid.main(config)
        return
    with pytest.warns(rl.AliasingWarning):
        summary = rl_grid.main(config)
    rows = {row["method"]: row for row in summary["agents"]}
    assert list(rows) == ["do nothing", "decremental", "environment_poisoning", "random actions", "retrained"]
    assert rows["do nothing"]["agreement"][0] == 1
    assert rows["decremental"]["success_retained"][0] >= 0.95
    assert rows["random actions"]["inference"][0] == 0
    assert max(summary["aliased_separable"]) == 0 < min(summary["aliased_local"])
    assert json.loads((tmp_path / "rl_grid.json").read_text())["config"]["seeds"] == 2
    assert "</html>" in (tmp_path / "report.html").read_text()


def agents(success, returns=0.0):
    """Two agents, each for two requests, on three maps."""
    shape = (2, 2, 3)
    values = np.zeros((*shape, 4, 4), np.float32)
    return rl_grid.Agents(values, np.broadcast_to(returns, shape), np.broadcast_to(success, shape))


def test_both_sides_are_told_apart():
    success = np.array([[[0.0, 0.9, 0.8], [0.7, 0.1, 0.5]], [[0.2, 0.9, 0.8], [0.7, 0.1, 0.5]]])
    row = rl_grid.fares("x", agents(success), 2)
    assert float(row["success_revoked"].estimate) == pytest.approx((0.0 + 0.1 + 0.2 + 0.1) / 4)
    assert float(row["success_retained"].estimate) == pytest.approx((0.85 + 0.6) / 2)
    one = agents(success)._replace(success=success[:, :1], returns=success[:, :1])  # of no request
    assert float(rl_grid.fares("x", one, 2)["success_revoked"].estimate) == pytest.approx((0.0 + 0.9 + 0.2 + 0.9) / 4)


def test_agents_that_learnt_too_little_are_refused():
    config = rl_grid.Config(requests=2)
    rl_grid.require_success(agents(1.0), config)
    with pytest.raises(SystemExit, match=r"succeed in 90.0% .* nothing can be said of forgetting"):
        rl_grid.require_success(agents(0.9), config)


def published_utility(rewards):
    """The authors' measure for one agent, rewards [maps, episodes]: running totals, normalised within the agent."""
    totals = np.cumsum(rewards, axis=1)
    low, high = totals.min(axis=1, keepdims=True), totals.max(axis=1, keepdims=True)
    return np.mean(np.sum((totals - low) / (high - low), axis=1))


def test_the_published_utility_is_blind_and_return_is_not():
    never, always = (np.full((19, 50), reward) for reward in (-500.0, 55.0))
    assert published_utility(never) == pytest.approx(published_utility(always)) == pytest.approx(25)
    levels = [-500.0, -100.0, 0.0, 55.0]
    found = [float(rl_grid.fares("x", agents(0.5, level), 2)["return_retained"].estimate) for level in levels]
    assert found == levels


def test_a_walk_follows_the_values():
    maps = jax.vmap(lambda key: rl.random_map(key, size=4, obstacles=2))(jax.random.split(jax.random.key(0), 2))
    best, keys = jax.vmap(rl.optimal_values)(maps), jax.random.split(jax.random.key(1), (2, 3))
    found = rl_grid.walks(maps, best, jnp.float32(0), keys, num_steps=16)
    start = jnp.sum(maps.starts[:, :, None] * best, axis=1).max(axis=1)
    steps = found.length[:, 0]
    np.testing.assert_allclose(600 * 0.99 ** (steps - 1.0) - 500, start, rtol=1e-4)
    assert found.finished.all()
