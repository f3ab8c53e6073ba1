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
held_out, held_out_rules = sequences(96)
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
    return 5e-4 * jnp.sum(jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(params)]) ** 2)


model = ju.Model(forward, ju.losses.sequence_cross_entropy, init, regularizer=regularizer)
optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, 1000))
retrain = jax.jit(ju.iterate(ju.retrain(model, optimizer), num_steps=1000, batch_size=96))
variables = retrain(init(key), data, ju.empty_request(), key).variables


@jax.jit
def mean_losses(variables):
    secrets = model.loss(forward(variables, data.train.inputs[:SECRETS]), jax.tree.map(lambda x: x[:SECRETS], data.train))
    rest = model.loss(forward(variables, data.train.inputs[SECRETS:]), jax.tree.map(lambda x: x[SECRETS:], data.train))
    return secrets.mean(), rest.mean(), model.loss(forward(variables, test.inputs), test).mean()


print("loss on secrets, other rows, held-out rows:", *(f"{x:.3f}" for x in mean_losses(variables)))

# %% [markdown]
# ## The matrix
# EK-FAC: a Kronecker product for every kernel, with eigenvalues fitted in its basis; small parameters of another form are kept
# exactly. `prepare` asks the method for what it needs, once for all requests. `describe` says which parameter got which block;
# one that nothing fits would be named in a warning. Damping is chosen beside the mean eigenvalue.

# %%
DAMPING = 0.1
fit = ju.curvature.ekfac(model, kind="ggn")
prepared = jax.jit(ju.prepare(ju.influence(model, damping=DAMPING, fit=fit)))(variables, data, key)
ekfac = ju.slots.CURVATURE.get(prepared).value
for name, block in ekfac.describe(variables.params).items():
    print(f"{name:<10} {block}")
size = sum(x.size for x in jax.tree.leaves(variables.params))
print(f"{size} parameters, mean eigenvalue {ekfac.trace() / size:.0e}")

# %% [markdown]
# ## How good is it?
# Against a solution by conjugate gradients on the Gauss-Newton matrix itself, which needs no representation and converges to
# it. The right-hand side is the slope of the loss on sequences that nobody trained on:


# %%
def flat(tree):
    return jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(tree)])


def cosine(first, second):
    return float(flat(first) @ flat(second) / jnp.linalg.norm(flat(first)) / jnp.linalg.norm(flat(second)))


@jax.jit
def solve(variables):
    slope = jax.grad(lambda params: jnp.mean(model.loss(forward(ju.Variables(params), test.inputs), test)))(variables.params)
    product = ju.curvature.ggn_vp(model, variables, data.train)
    return slope, ju.curvature.cg(product, slope, damping=DAMPING, max_steps=300), ekfac.solve(slope, DAMPING)


slope, solved, by_ekfac = solve(variables)
print("conjugate gradients converged:", bool(solved.converged))
print(f"EK-FAC:    cosine {cosine(by_ekfac, solved.solution):.2f} with the solution")
print(f"the slope: cosine {cosine(slope, solved.solution):.2f}")
assert cosine(by_ekfac, solved.solution) > cosine(slope, solved.solution)

# %% [markdown]
# ## Which rows does a prediction rest on?
# `-g_query' (C + damping)^-1 g_row` for every training row: the queries' gradients are solved with, and `gradient_products`
# multiplies those of rows with the solutions. A query that follows rule r should rest on training rows of rule r.


# %%
@jax.jit
def influences(variables):
    slopes = ju.curvature.per_example_gradients(model, variables, test)
    directions = jax.vmap(lambda slope: ekfac.solve(slope, DAMPING))(slopes)
    return ju.curvature.gradient_products(model, variables, data.train, directions, chunk=32).T


helps = influences(variables)  # [queries, rows]
best = np.asarray(jnp.argsort(helps, axis=1)[:, -5:])  # the five rows that lower a query's loss most
same = np.mean(rules[best] == held_out_rules[:, None])
print(f"of the five most helpful rows of a query, {same:.0%} follow its rule; a quarter would by chance")
assert same > 0.4

# %% [markdown]
# ## Removal
# The same matrix answers requests: what the secrets contributed to the weights, to first order, is taken off. Damping decides
# how far such a step goes; it may be traced, so three of them are one call. The status says whether the matrix was fit for it.

# %%
request = ju.merge(ju.from_indices(data, [range(SECRETS)]))


def at(damping):
    return ju.influence(model, damping=damping, fit=fit)(variables, prepared, request, key)


dampings = jnp.array([0.4, 0.1, 0.03])
results = ju.check(jax.jit(jax.vmap(at))(dampings))
answers = {"do nothing": variables}
for place, damping in enumerate(dampings):
    answers[f"influence, damping {damping:g}"] = jax.tree.map(lambda x, place=place: x[place], results.variables)
answers["retrained"] = retrain(variables, data, request, key).variables
losses = {name: mean_losses(answer) for name, answer in answers.items()}
print(f"{'loss on':<23} secrets   rest  held out")
for name, (secrets, rest, unseen) in losses.items():
    print(f"{name:<23} {secrets:7.2f} {rest:6.2f}  {unseen:8.2f}")
assert losses["do nothing"][0] < losses["influence, damping 0.1"][0] < losses["retrained"][0]

# %% [markdown]
# The less damping, the more is forgotten, and the more is lost on rows that stay: a first-order answer is right for few rows
# near an optimum, and these are eight of 96 and known by heart. The retrained model loses nothing. Nothing here is certified;
# what is left, `iterate(ju.npo(...))` and its like can take further, and only an audit says how far it went.
