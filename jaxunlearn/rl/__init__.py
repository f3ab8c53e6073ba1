"""Reinforcement learning: what acts in an environment instead of answering rows."""

from jaxunlearn.rl.information_bottleneck import ActorCritic as ActorCritic
from jaxunlearn.rl.information_bottleneck import Rollout as Rollout
from jaxunlearn.rl.information_bottleneck import actor_critic_objective as actor_critic_objective
from jaxunlearn.rl.information_bottleneck import encoder_loss as encoder_loss
from jaxunlearn.rl.information_bottleneck import information_bottleneck as information_bottleneck
from jaxunlearn.rl.information_bottleneck import n_step_returns as n_step_returns
from jaxunlearn.rl.information_bottleneck import stein_direction as stein_direction
