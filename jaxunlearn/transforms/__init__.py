"""Optax gradient transformations that unlearning methods are made of; they chain with any optimizer."""

from jaxunlearn.transforms.ascend import ascend as ascend
from jaxunlearn.transforms.keep import keep as keep
from jaxunlearn.transforms.restrict import restrict as restrict
from jaxunlearn.transforms.saliency import saliency_mask as saliency_mask
from jaxunlearn.transforms.sparsify import sparsify as sparsify
