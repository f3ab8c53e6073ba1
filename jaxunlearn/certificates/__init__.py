"""Certificates: (epsilon, delta) statements about removals from convex problems, their noise and their release.

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
from jaxunlearn.certificates.recheck import Recheck as Recheck
from jaxunlearn.certificates.recheck import recheck as recheck
from jaxunlearn.certificates.sekhari import Sekhari as Sekhari
from jaxunlearn.certificates.sekhari import sekhari_sensitivity as sekhari_sensitivity
from jaxunlearn.service.errors import BudgetError as BudgetError
from jaxunlearn.service.errors import ReleaseError as ReleaseError
from jaxunlearn.service.intents import retract as retract
