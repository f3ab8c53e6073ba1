"""Tutorial 2: sixty-four requests in one compiled call, and a sweep.

Sixty-four requests become sixty-four models, on one device and on several; then learning rate and alpha are swept with one
`vmap`, chosen on half of the requests and reported on the other half; last, the three ways to answer many requests side
by side.
"""

# %%
# %pip install -q jaxunlearn scikit-learn

# %% [markdown]
# ## Setting up
# A CPU can pretend to be several devices, which is enough to see a mesh at work. It has to be said before JAX starts.

# %%
import os

if "--xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import jaxunlearn as ju

key = jax.random.key(0)

# %% [markdown]
# ## Data, model, training
# 500 digits, 12 % of them with a wrong label, and a small network that learns them by heart. Retraining is a method too: with
# an empty request it is training.

# %%
images, labels = load_digits(return_X_y=True)
random = np.random.default_rng(0)
order = random.permutation(len(labels))
inputs, targets = (images[order] / 16).astype(np.float32), labels[order].astype(np.int32)
is_wrong = random.uniform(size=500) < 0.12
noisy = np.where(is_wrong, (targets[:500] + random.integers(1, 10, 500)) % 10, targets[:500]).astype(np.int32)
data = ju.training_data(inputs[:500], noisy)
test = ju.Examples(jnp.asarray(inputs[500:]), jnp.asarray(targets[500:]))


def forward(variables, inputs, *, train=False, key=None):
    return ju.Outputs(jax.nn.relu(inputs @ variables.params["in"]) @ variables.params["out"])


def init(key):
    first, second = jax.random.split(key)
    return ju.Variables(
        {"in": jax.random.normal(first, (64, 64)) * (2 / 64) ** 0.5, "out": jax.random.normal(second, (64, 10)) / 8}
    )


model = ju.Model(forward, ju.losses.cross_entropy, init)
retrain = ju.iterate(ju.retrain(model, optax.adam(1e-2)), num_steps=200, batch_size=64)

# %% [markdown]
# ## Sixty-four requests
# Requests of 8 to 32 rows get one static shape: 32 slots, with weight 0 in those that are not used. So there is one program for
# all of them, and one for those of tomorrow.

# %%
sizes = np.linspace(8, 32, 64).astype(int)
asked = [random.choice(500, size, replace=False) for size in sizes]
requests = ju.from_indices(data, asked, capacity=32)
keys = jax.random.split(key, 64)
print("slots:", requests.indices.shape, "rows asked for:", int(requests.weights.sum()))
assert (requests.weights.sum(axis=1) == sizes).all()

# %% [markdown]
# ## Sixty-five trainings in one call
# What unlearning is compared with are models trained without the rows. Here they are, one a request; a sixty-fifth request asks
# for nothing, which makes the original. All of them train inside one program.

# %%
nothing = jax.tree.map(lambda x: jnp.zeros_like(x[:1]), requests)
with_nothing = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), requests, nothing)
everything = jax.jit(ju.batched(retrain))(init(key), data, with_nothing, jax.random.split(jax.random.key(5), 65))
ju.check(everything, allow=[ju.Status.EMPTY_REQUEST])
trained = jax.tree.map(lambda x: x[64], everything.variables)
retrained = jax.tree.map(lambda x: x[:64], everything.variables)

# %% [markdown]
# ## Sixty-four answers in one call
# `batched` maps a method over requests and keys; weights and data are shared. Plain SGD here, so that the next sections can
# compare weights; Adam would magnify rounding.

# %%
unlearn = ju.iterate(ju.gradient_difference(model, optax.sgd(0.05), alpha=0.9), num_steps=40, batch_size=32)
answer = jax.jit(ju.batched(unlearn))
results = ju.check(answer(trained, data, requests, keys))
print("models:", jax.tree.map(jnp.shape, results.variables.params))

# %% [markdown]
# ## One bad request among sixty-four
# Builders refuse bad rows, but a request may have come from elsewhere. Request 5 names a row that does not exist. It cannot
# raise inside the program; it gets a code of its own, and its neighbours are not touched. `check` names it on the host.

# %%
bad = requests._replace(indices=requests.indices.at[5, 0].set(10**6))
answered = answer(trained, data, bad, keys)
print("status by request:", np.asarray(answered.status)[:8], "...")
others = np.arange(64) != 5
for before, after in zip(jax.tree.leaves(results.variables), jax.tree.leaves(answered.variables), strict=True):
    np.testing.assert_array_equal(before[others], after[others])
try:
    ju.check(answered)
except ju.UnlearningError as error:
    print("check says:", error)
ju.check(answered, allow=[ju.Status.INVALID_ROWS])  # the other rows of request 5 were unlearned: accept that if it is enough

# %% [markdown]
# ## Memory and devices
# `chunk` says how many requests run side by side; more is faster on accelerators and takes more memory. A mesh spreads requests
# over devices; nothing is communicated. Neither changes results beyond rounding.


# %%
def largest_difference(first, second):
    return max(float(jnp.max(jnp.abs(x - y))) for x, y in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True))


chunked = jax.jit(ju.batched(unlearn, chunk=8))(trained, data, requests, keys)
mesh = ju.request_mesh()
meshed = ju.batched(unlearn, mesh=mesh)(trained, data, requests, keys)  # compiles by itself: no jit around it
print("devices of the first weights:", len(jax.tree.leaves(meshed.variables)[0].sharding.device_set), "of", mesh.size)
for name, other in {"chunk=8": chunked, "mesh": meshed}.items():
    assert largest_difference(results.variables, other.variables) < 1e-5, name

# %% [markdown]
# ## A sweep
# Numbers such as the learning rate and `alpha` may be traced, so a grid is one more `vmap`: 3 x 3 settings for 64 requests are
# 576 models in one call. For each we take how far it is from the retrained model of its request, in three accuracies.


# %%
def accuracies(variables, request):
    report = ju.audit.performance(model, variables, data, request, test)
    assert report.accuracy is not None  # it is None where targets are no classes
    return jnp.stack(report.accuracy)  # retain, forget, test


def gaps(variables, requests, reference):
    return jnp.abs(jax.vmap(accuracies)(variables, requests) - reference)  # [R, 3]


def at(learning_rate, alpha, reference):
    method = ju.iterate(ju.gradient_difference(model, optax.adam(learning_rate), alpha=alpha), num_steps=40, batch_size=32)
    swept = ju.batched(method)(trained, data, requests, keys)
    return gaps(swept.variables, requests, reference), swept.status


learning_rates, alphas = jnp.array([5e-4, 2e-3, 8e-3]), jnp.array([0.8, 0.9, 0.97])
reference = jax.jit(jax.vmap(accuracies))(retrained, requests)
rates, weights = (x.ravel() for x in jnp.meshgrid(learning_rates, alphas, indexing="ij"))
found, status = jax.jit(jax.vmap(at, (0, 0, None)))(rates, weights, reference)  # [9, 64, 3], [9, 64]
print("models that a setting damaged, of 576:", int(jnp.sum(status == ju.Status.DAMAGED)))
assert np.isin(status, (ju.Status.OK, ju.Status.DAMAGED)).all()  # a sweep goes too far somewhere, and the status says so

# %% [markdown]
# ## Choose on some requests, report on others
# The best of nine settings looks better than it is on the requests that chose it. Even requests choose, odd ones report.

# %%
choosing, reporting = slice(0, None, 2), slice(1, None, 2)
score = found.mean(axis=-1)  # [9, 64], mean of the three gaps
best = int(jnp.argmin(score[:, choosing].mean(axis=1)))
nothing_done = gaps(jax.tree.map(lambda x: jnp.broadcast_to(x, (64, *x.shape)), trained), requests, reference)


def row(name, values):
    retain, forget, unseen = values[reporting].mean(axis=0)
    print(f"{name:<24} {values[choosing].mean():8.1%} | {retain:7.1%} {forget:7.1%} {unseen:7.1%}")


print(f"{'mean distance to':<24} choosing | reporting\n{'retrained models':<24}          |  retain  forget    test")
row("do nothing", nothing_done)
for i, (rate, weight) in enumerate(zip(rates, weights, strict=True)):
    row(f"rate {rate:g}, alpha {weight:.2f}" + " (chosen)" * (i == best), found[i])
assert score[best, reporting].mean() < nothing_done[reporting].mean()  # on requests that did not choose

# %% [markdown]
# ## Merge, stream or batch
# *merge*: one request for all rows, one new model; what a service publishes. *streamed*: one model, request after request, and
# removed rows stay removed. *batched*: as many alternative models as requests, all from the same start; for audits and sweeps.
# Eight requests, whose rows overlap: a row that was removed before is left out the second time, and the stream says so.

# %%
eight = jax.tree.map(lambda x: x[-8:], requests)
distinct = len(np.unique(np.concatenate(asked[-8:])))
merged = ju.merge(eight)
one_model = ju.check(jax.jit(unlearn)(trained, data, merged, key))
stream = jax.jit(ju.streamed(unlearn))(trained, data, eight, keys[-8:])
ju.check(stream, allow=[ju.Status.INVALID_ROWS])
left = int(stream.extra["present"].sum())
print(f"merge:    1 model, {int(merged.weights.sum())} rows gone from it")
print(f"streamed: 1 model, {500 - left} rows gone from it")
print(f"batched:  8 models, {sizes[-8]} to {sizes[-1]} rows gone from each")
assert one_model.variables.params["out"].shape == stream.variables.params["out"].shape == (64, 10)
assert int(merged.weights.sum()) == 500 - left == distinct < sizes[-8:].sum()
