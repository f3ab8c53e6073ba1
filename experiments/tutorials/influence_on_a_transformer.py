"""Tutorial 5: influence and curvature on a transformer.

Which training rows does a prediction rest on, and what would the model be without some of them? Both questions need the
inverse of a matrix of second derivatives. A small transformer in plain JAX shows how it is represented, how well, and what a
removal with it achieves.
"""

# %%
# %pip install -q jaxunlearn

# %%
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxunlearn as ju

key = jax.random.key(0)

# %% [markdown]
# ## Data
# Sequences that follow one of four rules, which the first token names: each next token is the last one plus 1, 2, 3 or 4,
# modulo 12. Eight rows follow no rule; they can only be learned by heart. They are what we want to forget.

# %%
SYMBOLS, LENGTH, SECRETS = 12, 8, 8
random = np.random.default_rng(0)


def sequences(count):
    rules, starts = random.integers(0, 4, count), random.integers(0, SYMBOLS, count)
    body = (starts[:, None] + (rules[:, None] + 1) * np.arange(LENGTH)) % SYMBOLS
    return np.concatenate([SYMBOLS + rules[:, None], body], axis=1).astype(np.int32), rules


tokens, rules = sequences(96)
tokens[:SECRETS, 1:] = random.integers(0, SYMBOLS, (SECRETS, LENGTH))
held_out, held_out_rules = sequences(64)
targets = tokens[:, 1:].copy()
targets[:, 0] = -1  # where a sequence begins cannot be known; -1 does not count
data = ju.training_data(tokens[:, :-1], targets)
test = ju.Examples(jnp.asarray(held_out[:, :-1]), jnp.asarray(held_out[:, 1:]).at[:, 0].set(-1))

# %% [markdown]
# ## A transformer in plain JAX
# One block of attention and one of an MLP. Nothing is wrapped and no layer is tagged: what the library needs to know of the
# kernels and their activations it reads from the program. The regularizer is part of what the model was trained on, so the
# matrix of second derivatives has to know it.

# %%
WIDTH, HEADS = 16, 2


def init(key):
    shapes = {
        "embed": (SYMBOLS + 4, WIDTH), "positions": (LENGTH, WIDTH), "query": (WIDTH, WIDTH), "key": (WIDTH, WIDTH),
        "value": (WIDTH, WIDTH), "out": (WIDTH, WIDTH), "up": (WIDTH, 2 * WIDTH), "down": (2 * WIDTH, WIDTH),
        "head": (WIDTH, SYMBOLS),
    }  # fmt: skip
    keys = jax.random.split(key, len(shapes))
    return ju.Variables(
        {name: jax.random.normal(k, s) * WIDTH**-0.5 for k, (name, s) in zip(keys, shapes.items(), strict=True)}
    )


def normalised(x):
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-5)


def forward(variables, inputs, *, train=False, key=None):
    w = variables.params
    x = w["embed"][inputs] + w["positions"]
    query, keys, values = (
        (normalised(x) @ w[name]).reshape(*inputs.shape, HEADS, WIDTH // HEADS) for name in ("query", "key", "value")
    )
    scores = jnp.einsum("bqhk,bthk->bhqt", query, keys) * (WIDTH // HEADS) ** -0.5
    scores = jnp.where(jnp.tril(jnp.ones((LENGTH, LENGTH), bool)), scores, -jnp.inf)
    read = jnp.einsum("bhqt,bthk->bqhk", jax.nn.softmax(scores), values).reshape(x.shape)
    x = x + read @ w["out"]
    x = x + jax.nn.gelu(normalised(x) @ w["up"]) @ w["down"]
    return ju.Outputs(normalised(x) @ w["head"])


def regularizer(params):
    return 5e-4 * sum(jnp.sum(x**2) for x in jax.tree.leaves(params))


model = ju.Model(forward, ju.losses.sequence_cross_entropy, init, regularizer=regularizer)
optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, 1500))
retrain = jax.jit(ju.iterate(ju.retrain(model, optimizer), num_steps=1500, batch_size=96))
variables = retrain(init(key), data, ju.empty_request(), key).variables


@jax.jit
def mean_losses(variables):
    secrets = model.loss(forward(variables, data.train.inputs[:SECRETS]), jax.tree.map(lambda x: x[:SECRETS], data.train))
    rest = model.loss(forward(variables, data.train.inputs[SECRETS:]), jax.tree.map(lambda x: x[SECRETS:], data.train))
    return secrets.mean(), rest.mean(), model.loss(forward(variables, test.inputs), test).mean()


print("loss on secrets, other rows, held-out rows:", *(f"{x:.3f}" for x in mean_losses(variables)))

# %% [markdown]
# ## The matrix
# EK-FAC: a Kronecker product for every kernel, with eigenvalues fitted in its basis. `describe` says which parameter got which
# block; a parameter that nothing fits would be named in a warning. Damping is chosen beside the mean eigenvalue.

# %%
fit = ju.curvature.ekfac(model, kind="ggn")
ekfac = jax.jit(fit)(variables, data.train, data.present, key)
for name, block in ekfac.describe(variables.params).items():
    print(f"{name:<10} {block}")
size = sum(x.size for x in jax.tree.leaves(variables.params))
print(f"{size} parameters, {ekfac.memory / 4 / size:.1f} numbers kept for each; mean eigenvalue {ekfac.trace() / size:.1e}")

# %% [markdown]
# ## How good is it?
# Against a solution by conjugate gradients on the Gauss-Newton matrix itself, which needs no representation and converges to
# it:

# %%
DAMPING = 1e-3
gradient = jax.grad(lambda params: jnp.mean(model.loss(forward(ju.Variables(params), test.inputs), test)))(variables.params)
product = ju.curvature.ggn_vp(model, variables, data.train)
solved = jax.jit(lambda b: ju.curvature.cg(product, b, damping=DAMPING, rtol=1e-4, max_steps=500))(gradient)


def flat(tree):
    return jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(tree)])


def cosine(first, second):
    return float(flat(first) @ flat(second) / jnp.linalg.norm(flat(first)) / jnp.linalg.norm(flat(second)))


print("conjugate gradients converged:", bool(solved.converged))
print(f"EK-FAC:          cosine {cosine(ekfac.solve(gradient, DAMPING), solved.solution):.2f} with the solution")
print(f"the plain slope: cosine {cosine(gradient, solved.solution):.2f}")

# %% [markdown]
# ## Which rows does a prediction rest on?
# `-g_query' (C + damping)^-1 g_row` for every training row, by the gradients of single rows. A query that follows rule r should
# rest on training rows of rule r.

# %%
DAMPING_OF_SCORES = 1e-2
of_rows = jax.jit(lambda v: ju.curvature.per_example_gradients(model, v, data.train, chunk=32))(variables)
of_queries = jax.jit(lambda v: ju.curvature.per_example_gradients(model, v, test, chunk=32))(variables)
solved_rows = jax.jit(jax.vmap(lambda g: ekfac.solve(g, DAMPING_OF_SCORES)))(of_rows)
scores = sum(jnp.einsum("q...,r...->qr", q, r) for q, r in zip(*map(jax.tree.leaves, (of_queries, solved_rows)), strict=True))
best = np.asarray(jax.lax.top_k(scores, 5)[1])  # the five rows that lower a query's loss most
same = np.mean(rules[best] == held_out_rules[:, None])
print(f"of the five most helpful rows of a query, {same:.0%} follow its rule; by chance {np.mean(rules == 0):.0%} or so")
assert same > 0.5

# %% [markdown]
# ## Removal
# The same matrix answers requests: `influence` adds what the secrets contributed to first order, `newton` takes a damped step
# on the rows that stay, here by conjugate gradients. Both report: a status, and how far they moved.

# %%
request = ju.merge(ju.from_indices(data, [range(SECRETS)]))
influence = ju.influence(model, damping=1e-2, fit=fit)
prepared = jax.jit(ju.prepare(influence))(variables, data, key)
newton = ju.newton(model, damping=1e-2, solver="cg", matrix="ggn", max_steps=300)
answers = {"do nothing": variables}
for name, unlearn in {"influence": influence, "newton": newton}.items():
    result = jax.jit(unlearn)(variables, prepared, request, key)
    print(f"{name:<9} {ju.Status(int(result.status)).name}, moved by {result.stats['step_norm']:.2f}")
    answers[name] = ju.check(result).variables
answers["retrained"] = retrain(variables, data, request, key).variables

print(f"\n{'':<11} secrets   rest  held out")
for name, answer in answers.items():
    secrets, rest, unseen = mean_losses(answer)
    print(f"{name:<11} {secrets:7.2f} {rest:6.2f}  {unseen:8.2f}")

# %% [markdown]
# One step forgets part of the way: the retrained model never saw the secrets, and a first-order answer is right for few rows
# near an optimum. Nothing here is certified. What one step leaves, `iterate(ju.npo(...))` and its like can take further, and
# only an audit says how far it went.

# %%
losses = {name: float(mean_losses(answer)[0]) for name, answer in answers.items()}
assert losses["do nothing"] < losses["influence"] < losses["retrained"]
