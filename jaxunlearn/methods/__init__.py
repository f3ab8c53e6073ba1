"""One file per paper. A new method is its file and one line here."""

from jaxunlearn.methods.affine_representation_unlearning import (
    affine_representation_unlearning as affine_representation_unlearning,
)
from jaxunlearn.methods.amnesiac import amnesiac as amnesiac
from jaxunlearn.methods.assd import assd as assd
from jaxunlearn.methods.attribute_unlearning import attribute_unlearning as attribute_unlearning
from jaxunlearn.methods.bad_teacher import bad_teacher as bad_teacher
from jaxunlearn.methods.boundary_expand import boundary_expand as boundary_expand
from jaxunlearn.methods.boundary_shrink import boundary_shrink as boundary_shrink
from jaxunlearn.methods.cf_k import cf_k as cf_k
from jaxunlearn.methods.concept_erasure import concept_erasure as concept_erasure
from jaxunlearn.methods.contrastive_unlearning import contrastive_unlearning as contrastive_unlearning
from jaxunlearn.methods.convolution_transpose import convolution_transpose as convolution_transpose
from jaxunlearn.methods.decoupled_distillation import decoupled_distillation as decoupled_distillation
from jaxunlearn.methods.dimensional_alignment import dimensional_alignment as dimensional_alignment
from jaxunlearn.methods.duck import duck as duck
from jaxunlearn.methods.eu_k import eu_k as eu_k
from jaxunlearn.methods.finetune import finetune as finetune
from jaxunlearn.methods.fisher_forgetting import fisher_forgetting as fisher_forgetting
from jaxunlearn.methods.gradient_ascent import gradient_ascent as gradient_ascent
from jaxunlearn.methods.gradient_difference import gradient_difference as gradient_difference
from jaxunlearn.methods.hyperforget import hyperforget as hyperforget
from jaxunlearn.methods.idk import idk as idk
from jaxunlearn.methods.influence import influence as influence
from jaxunlearn.methods.just_in_time import just_in_time as just_in_time
from jaxunlearn.methods.l1_sparse import l1_sparse as l1_sparse
from jaxunlearn.methods.lcodec import lcodec as lcodec
from jaxunlearn.methods.lfssd import lfssd as lfssd
from jaxunlearn.methods.lightweight import lightweight as lightweight
from jaxunlearn.methods.masked_small_gradients import masked_small_gradients as masked_small_gradients
from jaxunlearn.methods.minnorm_og import minnorm_og as minnorm_og
from jaxunlearn.methods.natmu import natmu as natmu
from jaxunlearn.methods.newton import newton as newton
from jaxunlearn.methods.npo import npo as npo
from jaxunlearn.methods.ntk_forgetting import ntk_forgetting as ntk_forgetting
from jaxunlearn.methods.nullspace_projection import nullspace_projection as nullspace_projection
from jaxunlearn.methods.oracle_matching import oracle_matching as oracle_matching
from jaxunlearn.methods.output_perturbation import output_perturbation as output_perturbation
from jaxunlearn.methods.preference_optimization import preference_optimization as preference_optimization
from jaxunlearn.methods.prototype_erasure import prototype_erasure as prototype_erasure
from jaxunlearn.methods.random_label import random_label as random_label
from jaxunlearn.methods.regun import regun as regun
from jaxunlearn.methods.representation_unlearning import representation_unlearning as representation_unlearning
from jaxunlearn.methods.retrain import retrain as retrain
from jaxunlearn.methods.rmu import rmu as rmu
from jaxunlearn.methods.salun import salun as salun
from jaxunlearn.methods.scrub import scrub as scrub
from jaxunlearn.methods.simnpo import simnpo as simnpo
from jaxunlearn.methods.ssd import ssd as ssd
from jaxunlearn.methods.stochastic_newton import stochastic_newton as stochastic_newton
from jaxunlearn.methods.task_vector import task_vector as task_vector
from jaxunlearn.methods.undial import undial as undial
from jaxunlearn.methods.unseen_matching import unseen_matching as unseen_matching
from jaxunlearn.methods.unsir import unsir as unsir
from jaxunlearn.methods.woodfisher import woodfisher as woodfisher
