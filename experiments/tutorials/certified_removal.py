"""Tutorial 4: certified removal, and the ledger that remembers it.

For a ridge, logistic or softmax head the optimum can be computed to machine precision. So the distance of a removal to the
retrained head is known, noise of that size hides it, and the result is an (epsilon, delta) certificate. A ledger keeps
requests, certificates, releases and their cost through crashes.
"""

# %%
# %pip install -q "jaxunlearn[checkpoint]" scikit-learn

# %%
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

import jaxunlearn as ju

key = jax.random.key(0)

# %% [markdown]
# ## A head that is trained to the optimum
# Digits of 4 x 4 pixels serve as features here; features of a network will do if it never saw the rows that may be forgotten.
# Rows get an intercept and a norm of at most 1, which bounds what a single row can do.

# %%
images, labels = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(labels))
pooled = images[order].reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4))
features, targets = ju.convex.feature_rows(pooled), labels[order].astype(np.int32)
rows = ju.training_data(features[:1200], targets[:1200])
problem = ju.convex.softmax(l2=1e-3, num_classes=10)
head = ju.convex.fit(problem, rows)  # float64, whatever the session's default


def accuracy(variables):
    scores = features[1200:] @ np.asarray(variables.params["kernel"])
    return float(np.mean(scores.argmax(axis=1) == targets[1200:]))


print("weights:", jax.tree.map(jnp.shape, head.params), f"test accuracy {accuracy(head):.3f}")

# %% [markdown]
# ## A removal, and how far it is from retraining
# Newton steps on the rows that stay. The library measures the gradient that is left; strong convexity turns it into a bound of
# the distance to the retrained optimum. Here we can afford to retrain, and see that the bound holds.

# %%
request = ju.merge(ju.from_indices(rows, [[3, 14, 15], [92, 65]]))  # two people, one new model
retrained = ju.convex.fit(problem, ju.remove(rows, request))


def distance(variables):
    return np.linalg.norm(np.asarray(variables.params["kernel"]) - np.asarray(retrained.params["kernel"]))


print(f"do nothing: {distance(head):.1e} from the retrained head")
removals = {}
for steps in (1, 2):
    remove = jax.jit(ju.convex.newton_removal(problem, steps=steps))
    removed = ju.check(remove(head, rows, request, key))
    bound = float(removed.stats["distance_bound"])
    print(f"steps: {steps}    {distance(removed.variables):.1e}, and at most {bound:.1e} by the bound")
    assert distance(removed.variables) <= bound
    removals[steps] = removed

# %% [markdown]
# ## The certificate
# `certify` believes nothing that a removal says of itself: it takes the gradient anew. What it cannot see it asks for: where
# the features came from, and whether requests may depend on earlier releases. Silence is no declaration, and one step is not
# enough:

# %%
budget = {"problem": problem, "epsilon": 1.0, "delta": 1e-5}
declared = {"extractor": "none", "adaptive": False}  # the features are pixels; requests do not depend on releases
undeclared = ju.certificates.certify(removals[2], rows, request, **budget)
too_far = ju.certificates.certify(removals[1], rows, request, **budget, **declared)
certificate = ju.certificates.certify(removals[2], rows, request, **budget, **declared)
for one in (undeclared, too_far, certificate):
    print("valid" if one.valid else "void:", *(x.name for x in one.assumptions if not x.holds), sep=" | ")

# %% [markdown]
# Noise hides the distance that is allowed, and costs accuracy, the more the smaller epsilon is:

# %%
for epsilon in (0.01, 0.1, 1.0):
    found = ju.certificates.certify(removals[2], rows, request, **{**budget, "epsilon": epsilon}, **declared)
    release = ju.certificates.publish(removals[2], found, tempfile.mkdtemp())
    print(
        f"epsilon {epsilon:<4g}: noise {found.noise_scale:.0e} on every weight, test accuracy {accuracy(release.variables):.3f}"
    )

# %% [markdown]
# ## The ledger
# In a service requests come for months. Records go by stable ids of people, each of whom may have several rows; the journal
# holds keyed hashes of them and never an id or a row. Submit, apply, certify, publish: each step is on disk when it returns.

# %%
customers = [f"customer-{row // 2}" for row in range(1200)]
place = tempfile.mkdtemp()
of_model, of_rows = ju.ledger.fingerprint(head), ju.ledger.data_fingerprint(rows, customers)
certify, publish = ju.certificates.certify, ju.certificates.publish
with ju.ledger.Ledger.create(place, customers, model_fingerprint=of_model, data_fingerprint=of_rows) as book:
    book.declare_budget(epsilon=3.0, delta=1e-4)  # of all releases together
    book.submit(["customer-17", "customer-40"])
    book.apply(remove, head, rows, key)
    proof = book.certify(certify, head, rows, **budget, **declared)
    first = book.publish(publish, proof, head)
print(f"release {first.number}: epsilon {first.epsilon:g}, test accuracy {accuracy(first.variables):.3f}")

# %% [markdown]
# ## After a crash
# Opened again, the ledger knows everything. Asked for a release that it made, it gives the same bits: fresh noise for the same
# weights would let somebody average it away.

# %%
with ju.ledger.Ledger.open(place, customers, model_fingerprint=of_model, data_fingerprint=of_rows) as book:
    again = book.publish(publish, proof, head)
    print("the same release:", again.sha256 == first.sha256, "pending:", len(book.state.pending))

# %% [markdown]
# ## The next request
# A second release costs its own epsilon. The first one is now a model trained on somebody who asked to be forgotten:
# `superseded` names it, `retract` takes it back, `purge` deletes un-noised weights that still hold the person.

# %%
with ju.ledger.Ledger.open(place, customers, model_fingerprint=of_model, data_fingerprint=of_rows) as book:
    book.submit(["customer-99"])
    book.apply(remove, head, rows, key)
    second = book.publish(publish, book.certify(certify, head, rows, **budget, **declared), head)
    print(f"release {second.number}: all together cost epsilon {second.total_epsilon:g} of 3")
    print("trained on people removed since: release", *book.state.superseded)
    for number in book.state.superseded:
        book.retract(number, "customers were removed since")
    book.purge()
    print("removed people:", len(book.state.removed), "retracted releases:", *book.state.retracted)
assert not first.path.exists()
assert second.path.exists()

# %% [markdown]
# ## The journal
# What an auditor sees, also by `python -m jaxunlearn ledger list DIRECTORY`; `verify` checks every record.

# %%
print(ju.ledger.table(place))

# %% [markdown]
# A certificate covers one observed release and requests that do not depend on releases. It says nothing about features that
# were trained on the forgotten rows, about your storage and your backups. For networks there is no optimum to be near; runs
# that are certified by their own noise are in `certificates.certify_run`.
