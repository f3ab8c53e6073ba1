"""Matrices of second derivatives (Hessian, Gauss-Newton, Fisher): products, representations to solve with, solvers, bounds.

product = hvp(model, variables, examples)                     # v -> H v, see `matvecs` for which matrix is which
curvature = ekfac(model)(variables, examples, weights, key)   # a pytree that solves, see `approximations`
solved = cg(product, b, damping=1e-2, preconditioner=curvature)
"""

from jaxunlearn.curvature.approximations import Diagonal as Diagonal
from jaxunlearn.curvature.approximations import Fit as Fit
from jaxunlearn.curvature.approximations import LowRank as LowRank
from jaxunlearn.curvature.approximations import Representation as Representation
from jaxunlearn.curvature.approximations import RowFit as RowFit
from jaxunlearn.curvature.approximations import fit_blocks as fit_blocks
from jaxunlearn.curvature.approximations import prepare as prepare
from jaxunlearn.curvature.dense import dense as dense
from jaxunlearn.curvature.dense import gram as gram
from jaxunlearn.curvature.diagonals import diagonal as diagonal
from jaxunlearn.curvature.gradient_products import gradient_products as gradient_products
from jaxunlearn.curvature.importances import batch_means as batch_means
from jaxunlearn.curvature.kronecker import Kronecker as Kronecker
from jaxunlearn.curvature.kronecker import ekfac as ekfac
from jaxunlearn.curvature.kronecker import kfac as kfac
from jaxunlearn.curvature.low_rank import lanczos as lanczos
from jaxunlearn.curvature.low_rank import nystrom as nystrom
from jaxunlearn.curvature.matvecs import Matvec as Matvec
from jaxunlearn.curvature.matvecs import damped as damped
from jaxunlearn.curvature.matvecs import empirical_fisher_vp as empirical_fisher_vp
from jaxunlearn.curvature.matvecs import fisher_vp as fisher_vp
from jaxunlearn.curvature.matvecs import ggn_vp as ggn_vp
from jaxunlearn.curvature.matvecs import gradient_sum as gradient_sum
from jaxunlearn.curvature.matvecs import hvp as hvp
from jaxunlearn.curvature.matvecs import jacobian_vp as jacobian_vp
from jaxunlearn.curvature.matvecs import regularizer_vp as regularizer_vp
from jaxunlearn.curvature.matvecs import sampled_fisher_vp as sampled_fisher_vp
from jaxunlearn.curvature.single_rows import per_example_gradients as per_example_gradients
from jaxunlearn.curvature.solve import Inversion as Inversion
from jaxunlearn.curvature.solvers import Downdated as Downdated
from jaxunlearn.curvature.solvers import Solved as Solved
from jaxunlearn.curvature.solvers import cg as cg
from jaxunlearn.curvature.solvers import lissa as lissa
from jaxunlearn.curvature.solvers import safe_scale as safe_scale
from jaxunlearn.curvature.solvers import woodbury as woodbury
from jaxunlearn.curvature.spectral import spectral_norm_bound as spectral_norm_bound
