"""Certificates of runs: accountants of noisy, projected and rewound descents, the mechanisms that use them, `certify_run`."""

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
