"""Convex problems: linear models with an L2 penalty, whose optimum is known to machine precision.

    L(W; D) = sum_{i in D} loss(x_i W, y_i) + l2 |D| / 2 ||W||^2 + <B, W>

with rows `x` [d], weights `W` [d, c] and, for objective perturbation only, a secret `B` in `Data.extra["perturbation"]`.
`L` is strongly convex with the constant `l2 |D|`, so a small gradient proves a small distance to the optimum, which is what
certificates are made of. Everything here runs in float64, whatever the session's default; rows keep the dtype they are
stored in and are widened block by block.
"""

from jaxunlearn.convex.descent_to_delete import descent_to_delete as descent_to_delete
from jaxunlearn.convex.factorisation import Factorisation as Factorisation
from jaxunlearn.convex.factorisation import prepare as prepare
from jaxunlearn.convex.fitting import fit as fit
from jaxunlearn.convex.fitting import with_perturbation as with_perturbation
from jaxunlearn.convex.influence_removal import influence_removal as influence_removal
from jaxunlearn.convex.langevin import langevin as langevin
from jaxunlearn.convex.newton_removal import newton_removal as newton_removal
from jaxunlearn.convex.pnsgd import pnsgd as pnsgd
from jaxunlearn.convex.problems import Problem as Problem
from jaxunlearn.convex.problems import logistic as logistic
from jaxunlearn.convex.problems import ridge as ridge
from jaxunlearn.convex.problems import softmax as softmax
from jaxunlearn.convex.projective_residual import projective_residual as projective_residual
from jaxunlearn.convex.refit import refit as refit
from jaxunlearn.convex.rows import check_data as check_data
from jaxunlearn.convex.rows import check_request as check_request
from jaxunlearn.convex.rows import feature_rows as feature_rows
from jaxunlearn.convex.woodbury_removal import woodbury_removal as woodbury_removal
