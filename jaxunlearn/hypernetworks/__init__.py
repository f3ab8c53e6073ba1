"""Networks that make networks: diffusion over the weights of a model, for methods that sample a whole model.

vector = to_vector(params, scale)                                        # what a hypernetwork reads and makes
loss = denoising_loss(hypernetwork, start, goal, prompt, key)            # what it is trained on, one pair of networks
made = sample(hypernetwork, start, prompt, key)                          # a network, by diffusion
"""

from jaxunlearn.hypernetworks.diffusion import Denoise as Denoise
from jaxunlearn.hypernetworks.diffusion import Hypernetwork as Hypernetwork
from jaxunlearn.hypernetworks.diffusion import Schedule as Schedule
from jaxunlearn.hypernetworks.diffusion import denoising_loss as denoising_loss
from jaxunlearn.hypernetworks.diffusion import linear_schedule as linear_schedule
from jaxunlearn.hypernetworks.diffusion import noised as noised
from jaxunlearn.hypernetworks.diffusion import respaced as respaced
from jaxunlearn.hypernetworks.diffusion import sample as sample
from jaxunlearn.hypernetworks.vectors import condition as condition
from jaxunlearn.hypernetworks.vectors import permuted as permuted
from jaxunlearn.hypernetworks.vectors import scale_of as scale_of
from jaxunlearn.hypernetworks.vectors import to_params as to_params
from jaxunlearn.hypernetworks.vectors import to_vector as to_vector
