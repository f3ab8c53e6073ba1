"""Reinforcement learning: agents that forget an environment.

world, maps = grid_world(), jax.vmap(random_map)(keys)                   # environments as pure functions
data = states(world, maps)                                               # their states as rows, for `jaxunlearn.decremental`
poison = environment_poisoning(world, optimizer, model=agent)            # or by changing what leads where
episode = rollout(world, grid, policy, key, num_steps=100)               # what an agent does
"""

from jaxunlearn.rl.aliasing import AliasingWarning as AliasingWarning
from jaxunlearn.rl.aliasing import aliased_share as aliased_share
from jaxunlearn.rl.aliasing import check_aliasing as check_aliasing
from jaxunlearn.rl.attackers import Attacker as Attacker
from jaxunlearn.rl.attackers import outer_dqn as outer_dqn
from jaxunlearn.rl.attackers import random_search as random_search
from jaxunlearn.rl.dqn import dqn as dqn
from jaxunlearn.rl.environment_poisoning import environment_poisoning as environment_poisoning
from jaxunlearn.rl.environments import Environment as Environment
from jaxunlearn.rl.environments import Rollout as Rollout
from jaxunlearn.rl.environments import epsilon_greedy as epsilon_greedy
from jaxunlearn.rl.environments import from_gymnax as from_gymnax
from jaxunlearn.rl.environments import rollout as rollout
from jaxunlearn.rl.grids import Grid as Grid
from jaxunlearn.rl.grids import Observation as Observation
from jaxunlearn.rl.grids import grid_map as grid_map
from jaxunlearn.rl.grids import grid_world as grid_world
from jaxunlearn.rl.grids import open_cells as open_cells
from jaxunlearn.rl.grids import optimal_values as optimal_values
from jaxunlearn.rl.grids import policy_values as policy_values
from jaxunlearn.rl.grids import random_map as random_map
from jaxunlearn.rl.grids import reachable as reachable
from jaxunlearn.rl.grids import reward_of as reward_of
from jaxunlearn.rl.grids import states as states
from jaxunlearn.rl.inference import Inference as Inference
from jaxunlearn.rl.inference import environment_inference as environment_inference
from jaxunlearn.rl.information_bottleneck import ActorCritic as ActorCritic
from jaxunlearn.rl.information_bottleneck import Experience as Experience
from jaxunlearn.rl.information_bottleneck import actor_critic_objective as actor_critic_objective
from jaxunlearn.rl.information_bottleneck import encoder_loss as encoder_loss
from jaxunlearn.rl.information_bottleneck import information_bottleneck as information_bottleneck
from jaxunlearn.rl.information_bottleneck import n_step_returns as n_step_returns
from jaxunlearn.rl.information_bottleneck import stein_direction as stein_direction
