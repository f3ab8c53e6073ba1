"""Guards: they suppress outputs and remove nothing. The weights stay as they are, and so does what they know.

Whoever reaches the model without the guard finds all of it: membership inference, relearning and attacks on the weights are
untouched. A guard is for a model that cannot be changed, or cannot be changed yet.

tries = jax.vmap(guarded(generator, verifier=verifier, budget=20, refusal=refusal))(prompts, keys).stopping_time
budget = calibrate(tries, alpha=0.1)                                     # how many tries 90 % of prompts need, or infeasible
answer = guarded(generator, verifier=verifier, budget=budget, refusal=refusal)
answer(prompt, key)                                                      # the first accepted output, or the refusal
"""

from jaxunlearn.guards.conformal import Budget as Budget
from jaxunlearn.guards.conformal import calibrate as calibrate
from jaxunlearn.guards.conformal import coverage as coverage
from jaxunlearn.guards.conformal import satisfied_bound as satisfied_bound
from jaxunlearn.guards.conformal import stopping_times as stopping_times
from jaxunlearn.guards.conformal import verifier_error_bound as verifier_error_bound
from jaxunlearn.guards.guarded import Answer as Answer
from jaxunlearn.guards.guarded import guarded as guarded
from jaxunlearn.guards.guarded import guarded_host as guarded_host
