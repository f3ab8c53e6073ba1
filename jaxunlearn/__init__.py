"""Machine unlearning in JAX: every update a pure function, many requests in one compiled call."""

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

from jaxunlearn import convex, curvature, features, losses, transforms
from jaxunlearn.batching import batched, end_of_stream, replicate, request_mesh, streamed
from jaxunlearn.catalogue import METHODS, citation
from jaxunlearn.closed_form.amnesiac import amnesiac
from jaxunlearn.closed_form.assd import assd as assd
from jaxunlearn.closed_form.certified_newton_step import certified_newton_step as certified_newton_step
from jaxunlearn.closed_form.descent_to_delete import descent_to_delete
from jaxunlearn.closed_form.fisher_forgetting import fisher_forgetting as fisher_forgetting
from jaxunlearn.closed_form.influence import influence as influence
from jaxunlearn.closed_form.influence_removal import influence_removal
from jaxunlearn.closed_form.lcodec import lcodec as lcodec
from jaxunlearn.closed_form.lfssd import lfssd as lfssd
from jaxunlearn.closed_form.newton import newton as newton
from jaxunlearn.closed_form.newton_removal import newton_removal
from jaxunlearn.closed_form.ntk_forgetting import ntk_forgetting as ntk_forgetting
from jaxunlearn.closed_form.output_perturbation import output_perturbation
from jaxunlearn.closed_form.projective_residual import projective_residual as projective_residual
from jaxunlearn.closed_form.ssd import ssd as ssd
from jaxunlearn.closed_form.woodbury_removal import woodbury_removal
from jaxunlearn.closed_form.woodfisher import woodfisher as woodfisher
from jaxunlearn.driver import descend, feed, filtered, iterate, one_shot, then
from jaxunlearn.exact.refit import refit
from jaxunlearn.exact.retrain import retrain
from jaxunlearn.features.maps import insert_map as insert_map
from jaxunlearn.objective.bad_teacher import bad_teacher
from jaxunlearn.objective.cf_k import cf_k
from jaxunlearn.objective.eu_k import eu_k
from jaxunlearn.objective.finetune import finetune
from jaxunlearn.objective.gradient_ascent import gradient_ascent
from jaxunlearn.objective.gradient_difference import gradient_difference
from jaxunlearn.objective.l1_sparse import l1_sparse
from jaxunlearn.objective.npo import npo
from jaxunlearn.objective.oracle_matching import oracle_matching
from jaxunlearn.objective.random_label import random_label
from jaxunlearn.objective.salun import salun as salun
from jaxunlearn.objective.scrub import scrub
from jaxunlearn.objective.task_vector import task_vector
from jaxunlearn.objective.unsir import unsir
from jaxunlearn.representation.affine_representation_unlearning import (
    affine_representation_unlearning as affine_representation_unlearning,
)
from jaxunlearn.representation.attribute_unlearning import attribute_unlearning as attribute_unlearning
from jaxunlearn.representation.concept_erasure import concept_erasure as concept_erasure
from jaxunlearn.representation.contrastive_unlearning import contrastive_unlearning as contrastive_unlearning
from jaxunlearn.representation.dimensional_alignment import dimensional_alignment as dimensional_alignment
from jaxunlearn.representation.nullspace_projection import nullspace_projection as nullspace_projection
from jaxunlearn.representation.prototype_erasure import prototype_erasure as prototype_erasure
from jaxunlearn.representation.representation_unlearning import representation_unlearning as representation_unlearning
from jaxunlearn.requests import (
    buckets,
    empty_request,
    from_attributes,
    from_classes,
    from_groups,
    from_indices,
    merge,
    remove,
    training_data,
)
from jaxunlearn.risk import uniform
from jaxunlearn.rum import rum
from jaxunlearn.status import Status, UnlearningError, check
from jaxunlearn.types import (
    Batch,
    Data,
    Examples,
    ForgetRequest,
    Head,
    Model,
    Outputs,
    Result,
    Unlearner,
    UnlearnFn,
    Variables,
    Weighted,
)

if TYPE_CHECKING:
    from jaxunlearn import audit, certificates

__version__ = "0.1.0"
_ON_FIRST_USE = ("audit", "certificates")  # not every program needs them, and import time is counted

# name: (what to write instead, the object or None once it is gone)
_DEPRECATED: dict[str, tuple[str, Any]] = {}

__all__ = [
    "Batch",
    "Data",
    "Examples",
    "ForgetRequest",
    "Head",
    "METHODS",
    "Model",
    "Outputs",
    "Result",
    "Status",
    "UnlearnFn",
    "Unlearner",
    "UnlearningError",
    "Variables",
    "Weighted",
    "affine_representation_unlearning",
    "amnesiac",
    "assd",
    "attribute_unlearning",
    "audit",
    "bad_teacher",
    "batched",
    "buckets",
    "certificates",
    "certified_newton_step",
    "cf_k",
    "check",
    "citation",
    "concept_erasure",
    "contrastive_unlearning",
    "convex",
    "curvature",
    "descend",
    "descent_to_delete",
    "dimensional_alignment",
    "empty_request",
    "end_of_stream",
    "eu_k",
    "features",
    "feed",
    "filtered",
    "finetune",
    "fisher_forgetting",
    "from_attributes",
    "from_classes",
    "from_groups",
    "from_indices",
    "gradient_ascent",
    "gradient_difference",
    "influence",
    "influence_removal",
    "insert_map",
    "iterate",
    "l1_sparse",
    "lcodec",
    "lfssd",
    "losses",
    "merge",
    "newton",
    "newton_removal",
    "npo",
    "ntk_forgetting",
    "nullspace_projection",
    "one_shot",
    "oracle_matching",
    "output_perturbation",
    "projective_residual",
    "prototype_erasure",
    "random_label",
    "refit",
    "remove",
    "replicate",
    "representation_unlearning",
    "request_mesh",
    "retrain",
    "rum",
    "salun",
    "scrub",
    "ssd",
    "streamed",
    "task_vector",
    "then",
    "training_data",
    "transforms",
    "uniform",
    "unsir",
    "woodbury_removal",
    "woodfisher",
]


def __getattr__(name: str) -> Any:
    if name in _ON_FIRST_USE:
        return import_module(f"jaxunlearn.{name}")
    if name in _DEPRECATED:
        advice, value = _DEPRECATED[name]
        if value is None:
            raise AttributeError(f"jaxunlearn.{name} was removed: {advice}")
        warnings.warn(f"jaxunlearn.{name} is deprecated: {advice}", DeprecationWarning, stacklevel=2)
        return value
    raise AttributeError(f"module 'jaxunlearn' has no attribute '{name}'")
