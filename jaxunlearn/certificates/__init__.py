"""Certificates: (epsilon, delta) statements about removals from convex problems and about runs of any model, their noise and
their release.

A certificate is void unless every assumption holds, and says which one does not. Every mechanism states its theorem, its
constants and what is doubtful about it.
"""

from jaxunlearn.certificates.accounting import Privacy as Privacy
from jaxunlearn.certificates.accounting import compose as compose
from jaxunlearn.certificates.accounting import compose_gaussians as compose_gaussians
from jaxunlearn.certificates.accounting import group as group
from jaxunlearn.certificates.accounting import with_private_extractor as with_private_extractor
from jaxunlearn.certificates.calibration import delta_of as delta_of
from jaxunlearn.certificates.calibration import epsilon_of as epsilon_of
from jaxunlearn.certificates.calibration import gaussian_scale as gaussian_scale
from jaxunlearn.certificates.calibration import textbook_scale as textbook_scale
from jaxunlearn.certificates.certificate import Assumption as Assumption
from jaxunlearn.certificates.certificate import Certificate as Certificate
from jaxunlearn.certificates.certificate import Mechanism as Mechanism
from jaxunlearn.certificates.certify import certify as certify
from jaxunlearn.certificates.costs import Cost as Cost
from jaxunlearn.certificates.costs import compose_costs as compose_costs
from jaxunlearn.certificates.costs import release_costs as release_costs
from jaxunlearn.certificates.delete_then_noise import DeleteThenNoise as DeleteThenNoise
from jaxunlearn.certificates.manifest import Manifest as Manifest
from jaxunlearn.certificates.manifest import Verification as Verification
from jaxunlearn.certificates.manifest import verify as verify
from jaxunlearn.certificates.manifest import verify_all as verify_all
from jaxunlearn.certificates.neel import Neel as Neel
from jaxunlearn.certificates.neel import neel_scale as neel_scale
from jaxunlearn.certificates.neel import neel_sensitivity as neel_sensitivity
from jaxunlearn.certificates.neel import neel_steps as neel_steps
from jaxunlearn.certificates.objective_perturbation import ObjectivePerturbation as ObjectivePerturbation
from jaxunlearn.certificates.objective_perturbation import removal_budget as removal_budget
from jaxunlearn.certificates.publish import Release as Release
from jaxunlearn.certificates.publish import load_release as load_release
from jaxunlearn.certificates.publish import publish as publish
from jaxunlearn.certificates.reachable import Box as Box
from jaxunlearn.certificates.reachable import Stable as Stable
from jaxunlearn.certificates.reachable import reachable as reachable
from jaxunlearn.certificates.reachable import stable_predictions as stable_predictions
from jaxunlearn.certificates.recheck import Recheck as Recheck
from jaxunlearn.certificates.recheck import recheck as recheck
from jaxunlearn.certificates.runs.certify_run import certify_run as certify_run
from jaxunlearn.certificates.runs.descents import growth_per_step as growth_per_step
from jaxunlearn.certificates.runs.descents import langevin_mu as langevin_mu
from jaxunlearn.certificates.runs.descents import published_langevin_epsilon as published_langevin_epsilon
from jaxunlearn.certificates.runs.descents import rewind_sensitivity as rewind_sensitivity
from jaxunlearn.certificates.runs.descents import unlearned_mu as unlearned_mu
from jaxunlearn.certificates.runs.mechanisms import Constant as Constant
from jaxunlearn.certificates.runs.mechanisms import Langevin as Langevin
from jaxunlearn.certificates.runs.mechanisms import NoisyFinetune as NoisyFinetune
from jaxunlearn.certificates.runs.mechanisms import OutputPerturbation as OutputPerturbation
from jaxunlearn.certificates.runs.mechanisms import Rewind as Rewind
from jaxunlearn.certificates.runs.projections import projected_delta as projected_delta
from jaxunlearn.certificates.runs.projections import projected_epsilon as projected_epsilon
from jaxunlearn.certificates.runs.projections import projected_noise as projected_noise
from jaxunlearn.certificates.runs.projections import projected_ratio as projected_ratio
from jaxunlearn.certificates.runs.recollections import HessianFree as HessianFree
from jaxunlearn.certificates.runs.recollections import recollection_error as recollection_error
from jaxunlearn.certificates.runs.shifts import decreasing as decreasing
from jaxunlearn.certificates.runs.shifts import gaussian_mu as gaussian_mu
from jaxunlearn.certificates.runs.shifts import step_noise as step_noise
from jaxunlearn.certificates.sekhari import Sekhari as Sekhari
from jaxunlearn.certificates.sekhari import sekhari_sensitivity as sekhari_sensitivity
from jaxunlearn.service.errors import BudgetError as BudgetError
from jaxunlearn.service.errors import ReleaseError as ReleaseError
from jaxunlearn.service.intents import retract as retract
