"""Adapters and chosen leaves over a base that is held once."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn import frozen
from tests.problems import NUM_FEATURES, blobs, headed, lane, network

KEY = jax.random.key(0)
LAYERS, WIDTH, HEADS, HEAD_WIDTH, WORDS = 3, 6, 2, 3, 7


def decoder():
    """A little of everything: a scan with remat, einsum, reshapes, experts, an embedding used twice, norms, a branch."""

    def layer(x, w):
        q, k = (jnp.einsum("btd,dhk->bthk", x, w[name]) for name in "qk")
        weights = jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", q, k))
        values = (x @ w["v"]).reshape(*x.shape[:2], HEADS, HEAD_WIDTH)
        x = x + jnp.einsum("bthk,hkd->btd", jnp.einsum("bhts,bshk->bthk", weights, values), w["o"]) * w["norm"]
        merged = w["down"].transpose(1, 0).reshape(2, WIDTH // 2, 8)  # [2, d / 2, 8]
        return x + jnp.einsum("bte,ade->btad", jax.nn.gelu(x @ w["up"]), merged).reshape(x.shape), None

    def forward(variables, inputs, *, train=False, key=None):
        params = variables.params
        x = jax.nn.one_hot(inputs, WORDS, dtype=params["embed"].dtype) @ params["embed"]
        x, _ = jax.lax.scan(jax.checkpoint(layer), x, params["layers"])
        x = x + jax.lax.cond(x.shape[0] > 1, lambda x, w: x @ w, lambda x, w: x, x, params["branch"])
        x = x + jnp.einsum("btd,edf->ebtf", x, params["experts"]).sum(0)
        return ju.Outputs(x @ params["embed"].T, {"penultimate": x[:, -1]})

    def init(key):
        split, joined = (WIDTH, HEADS, HEAD_WIDTH), (HEADS, HEAD_WIDTH, WIDTH)
        layers = {"q": split, "k": split, "v": (WIDTH, WIDTH), "o": joined, "up": (WIDTH, 8), "down": (8, WIDTH)}

        def draw(place, *shape):
            return jax.random.normal(jax.random.fold_in(key, place), shape) * 0.4

        params = {name: draw(place, LAYERS, *shape) for place, (name, shape) in enumerate(layers.items())}
        params["norm"] = 1 + draw(9, LAYERS, WIDTH)
        outer = {"embed": draw(10, WORDS, WIDTH), "branch": draw(11, WIDTH, WIDTH), "experts": draw(12, 4, WIDTH, WIDTH)}
        return ju.Variables({**outer, "layers": params})

    def loss(outputs, examples):
        return optax.softmax_cross_entropy_with_integer_labels(outputs.logits, examples.targets).mean(axis=-1)

    return ju.Model(forward, loss, init)


@pytest.fixture(scope="module")
def big():
    model = decoder()
    base = model.init(KEY)
    words = jax.random.randint(KEY, (2, 5), 0, WORDS)
    return model, base, words, frozen.lora(model, base, words, rank=2, alpha=3.0)


def asked(data, *rows):
    return lane(ju.from_indices(data, [rows]), 0)


def moved(parts, base, scale=0.3):
    part = parts.start(base, KEY)
    leaves, treedef = jax.tree.flatten(part.params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return part._replace(
        params=jax.tree.unflatten(treedef, [scale * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)])
    )


def test_an_adapter_begins_as_the_base_exactly(big):
    model, base, words, parts = big
    np.testing.assert_array_equal(
        parts.on(base).forward(parts.start(base, KEY), words).logits, model.forward(base, words).logits
    )


def test_every_product_of_a_decoder_takes_its_change(big):
    model, base, words, parts = big
    part = moved(parts, base)
    assert set(part.params) == {
        "embed", "branch", "experts", *(f"layers/{name}" for name in ("q", "k", "v", "o", "up", "down"))
    }  # fmt: skip

    def factored(params):
        return parts.on(base).forward(part._replace(params=params), words).logits

    def merged(params):
        return model.forward(parts.merge(base, part._replace(params=params)), words).logits

    np.testing.assert_allclose(factored(part.params), merged(part.params), rtol=2e-4, atol=2e-3)
    ours, theirs = (jax.grad(lambda p, f=f: jnp.sum(jnp.sin(f(p) / 50)))(part.params) for f in (factored, merged))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max()), ours, theirs)


def test_layers_of_a_scan_have_a_change_each(big):
    _, base, _, parts = big
    shapes = jax.tree.map(jnp.shape, parts.start(base, KEY).params)
    assert shapes["layers/q"] == {"a": (LAYERS, WIDTH, 2), "b": (LAYERS, 2, HEADS, HEAD_WIDTH)}
    assert shapes["layers/o"] == {"a": (LAYERS, HEADS, HEAD_WIDTH, 2), "b": (LAYERS, 2, WIDTH)}


def test_targets_are_found_by_their_paths_or_refused_with_a_reason(big):
    model, base, words, _ = big
    assert set(frozen.lora(model, base, words, targets="layers/[qv]$").start(base, KEY).params) == {"layers/q", "layers/v"}
    with pytest.raises(ValueError, match="norm enters mul"):
        frozen.lora(model, base, words, targets="norm")
    with pytest.raises(ValueError, match="names no leaf; there are"):
        frozen.lora(model, base, words, targets="query")
    looked_up = ju.Model(lambda v, x, **_: ju.Outputs(v.params["embed"][x]), model.loss)
    with pytest.raises(ValueError, match="enters gather"):
        frozen.lora(looked_up, ju.Variables({"embed": base.params["embed"]}), words)


def test_a_base_of_integers_or_bfloat16_serves(big):
    model, base, words, parts = big
    part = moved(parts, base)
    small = base._replace(params=frozen.int8(base.params))
    assert small.params["layers"]["q"].values.dtype == jnp.int8
    np.testing.assert_allclose(
        parts.on(small).forward(part, words).logits, model.forward(parts.merge(small, part), words).logits, rtol=2e-4, atol=2e-3
    )
    for leaf, held in zip(
        jax.tree.leaves(base.params), jax.tree.leaves(small.params, is_leaf=lambda x: isinstance(x, frozen.Int8)), strict=True
    ):
        largest = jnp.abs(leaf).max(axis=-2, keepdims=True)
        assert jnp.all(jnp.abs(held.dense() - leaf) <= largest / 254 * (1 + 1e-5))
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), base)
    logits = parts.on(half).forward(parts.start(half, KEY), words).logits
    assert logits.dtype == jnp.bfloat16
    np.testing.assert_array_equal(logits, model.forward(half, words).logits)
    assert parts.start(half, KEY).params["embed"]["a"].dtype == jnp.float32


def test_chosen_leaves_alone_move_and_the_base_is_no_result():
    model, data = headed(), blobs()
    base = model.init(KEY)
    parts = frozen.train_only(model, base, "^(head|shift)$")
    unlearn = frozen.on_base(
        parts, lambda m: ju.iterate(ju.gradient_difference(m, optax.adam(0.1), alpha=0.5), num_steps=3, batch_size=8)
    )
    request = asked(data, 1, 2, 3)
    result = jax.jit(unlearn)(parts.start(base, KEY), ju.slots.BASE.put(data, base), request, KEY)
    assert set(result.variables.params) == {"head", "shift"}
    assert not result.extra
    assert int(result.stats["unmoved"]) == 0
    whole = parts.merge(base, result.variables)
    assert jax.tree.structure(whole) == jax.tree.structure(base)
    np.testing.assert_array_equal(whole.params["body"], base.params["body"])

    plain = ju.iterate(  # the same descent with the gradient of the body taken away
        ju.gradient_difference(
            model,
            optax.multi_transform(
                {"train": optax.adam(0.1), "rest": optax.set_to_zero()},
                lambda params: {name: "train" if name in ("head", "shift") else "rest" for name in params},
            ),
            alpha=0.5,
        ),
        num_steps=3,
        batch_size=8,
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        whole.params,
        jax.jit(plain)(base, data, request, KEY).variables.params,
    )


def test_leaves_that_do_not_move_are_counted():
    model, data = network(), blobs()
    base = model.init(KEY)
    parts = frozen.lora(model, base, data.train.inputs[:1], rank=2)
    unlearn = frozen.on_base(parts, lambda m: ju.iterate(ju.finetune(m, optax.sgd(0.1)), num_steps=1, batch_size=8))
    args = ju.slots.BASE.put(data, base), asked(data, 1), KEY
    assert int(unlearn(parts.start(base, KEY), *args).stats["unmoved"]) == 2  # `a` has no gradient while `b` is zero
    with pytest.raises(ValueError, match=r"slots\.BASE\.put"):
        unlearn(parts.start(base, KEY), data, args[1], KEY)
    with pytest.raises(TypeError, match="iterate"):
        frozen.on_base(parts, lambda m: ju.finetune(m, optax.sgd(0.1)))(parts.start(base, KEY), *args)
    with pytest.raises(ValueError, match="nothing is frozen"):
        frozen.train_only(model, base, ".*")
    with pytest.raises(ValueError, match="names no leaf"):
        frozen.train_only(model, base, "Dense")
    with pytest.raises(ValueError, match="names no leaf; there are bias, body, head"):
        frozen.int8(base.params, layers="Dense")


def test_what_a_method_prepares_is_prepared_over_the_base():
    model, data = network(), blobs()
    base = model.init(KEY)
    parts = frozen.lora(model, base, data.train.inputs[:1], rank=2)
    unlearn = frozen.on_base(parts, lambda m: ju.ssd(m, alpha=2.0))
    part = moved(parts, base)
    ready = ju.prepare(unlearn)(part, ju.slots.BASE.put(data, base), KEY)
    assert set(ready.extra) == {"base", "importances"}
    assert set(ready.extra["importances"].value) == set(part.params)
    assert int(unlearn(part, ready, asked(data, 1, 2), KEY).status) == ju.Status.OK


def test_what_was_prepared_over_another_base_is_stale():
    model, base, data = headed(), headed().init(KEY), blobs(30)
    parts = frozen.train_only(model, base, "head")
    unlearn = frozen.on_base(parts, ju.ssd)
    part = parts.start(base, KEY)
    ready = ju.prepare(unlearn)(part, ju.slots.BASE.put(data, base), KEY)
    swapped = ju.slots.BASE.put(ready, model.init(jax.random.key(1)))
    call = jax.jit(unlearn)
    found = [int(call(part, rows, asked(data, 1), KEY).status) for rows in (ready, swapped)]
    assert found == [int(ju.Status.OK), int(ju.Status.STALE)]


def test_requests_side_by_side_equal_single_ones_and_share_one_base():
    wide = 1024

    def forward(variables, inputs, *, train=False, key=None):
        hidden = jnp.tanh(inputs @ variables.params["one"])
        return ju.Outputs(jnp.tanh(hidden @ variables.params["two"]) @ variables.params["three"])

    model = ju.Model(
        forward,
        ju.losses.cross_entropy,
        lambda key: ju.Variables(
            {
                "one": jax.random.normal(key, (NUM_FEATURES, wide)) / 2,
                "two": jax.random.normal(key, (wide, wide)) / wide**0.5,
                "three": jax.random.normal(key, (wide, 3)) / wide**0.5,
            }
        ),
    )
    data, base = blobs(), model.init(KEY)
    parts = frozen.lora(model, base, data.train.inputs[:1], rank=2)
    unlearn = frozen.on_base(
        parts, lambda m: ju.iterate(ju.npo(m, optax.adam(0.01), retain_weight=1.0), num_steps=3, batch_size=4)
    )
    data, part = ju.slots.BASE.put(data, base), parts.start(base, KEY)
    requests = ju.from_indices(data, [[i, i + 1] for i in range(16)])
    keys = jax.random.split(KEY, 16)
    many = jax.jit(ju.batched(unlearn, chunk=16)).lower(part, data, requests, keys).compile()
    memory = many.memory_analysis()
    adapter = sum(x.nbytes for x in jax.tree.leaves(part.params))
    whole = sum(x.nbytes for x in jax.tree.leaves(base.params))
    activations = 16 * 64 * wide * 4 * 4  # requests, rows that damage is looked for in, a few arrays of the width
    assert memory.output_size_in_bytes < 16 * adapter + 10_000
    assert memory.temp_size_in_bytes < 16 * adapter * 5 + activations < 16 * whole
    results = many(part, data, requests, keys)
    one = jax.jit(unlearn)(part, data, jax.tree.map(lambda x: x[3], requests), keys[3])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[3], b, rtol=1e-4, atol=1e-5), results.variables, one.variables)


def test_flax_lora_layers_are_chosen_by_their_paths():
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.body = nnx.LoRALinear(NUM_FEATURES, 8, lora_rank=2, rngs=rngs)
            self.head = nnx.Linear(8, 3, rngs=rngs)

        def __call__(self, inputs):
            return self.head(jnp.tanh(self.body(inputs)))

    model, base = ju.adapters.from_nnx(Net(nnx.Rngs(0)), ju.losses.cross_entropy)
    data = blobs()
    parts = frozen.train_only(model, base, "lora_")
    unlearn = frozen.on_base(parts, lambda m: ju.iterate(ju.finetune(m, optax.adam(0.1)), num_steps=3, batch_size=8))
    result = unlearn(parts.start(base, KEY), ju.slots.BASE.put(data, base), asked(data, 1), KEY)
    assert len(result.variables.params) == 2
    assert int(result.stats["unmoved"]) == 0


def test_adapters_have_kronecker_factors(big):
    model, base, words, parts = big
    part = moved(parts, base)
    over = parts.on(base)
    plain = over._replace(forward=lambda v, x, **_: ju.Outputs(over.forward(v, x).logits[:, -1]), loss=ju.losses.cross_entropy)
    rows = ju.Examples(words, jnp.array([1, 2]))
    with pytest.warns(UserWarning, match="long loop: branch/a .* several ways: embed/a"):
        made = jax.eval_shape(ju.curvature.ekfac(plain), part, rows, jnp.ones(2), KEY)
    kinds = made.describe(part.params)
    for name in ("layers/q", "layers/o", "layers/up", "layers/v"):
        for half in "ab":
            assert kinds[f"{name}/{half}"].startswith("kronecker"), (name, half, kinds)


def test_fresh_adapters_are_drawn_inside_a_compiled_call():
    model, data = network(), blobs()
    base = model.init(KEY)
    parts = frozen.lora(model, base, data.train.inputs[:1], rank=2)
    unlearn = frozen.on_base(parts, lambda m: ju.iterate(ju.retrain(m, optax.sgd(0.1)), num_steps=1, batch_size=8))
    result = jax.jit(unlearn)(parts.start(base, KEY), ju.slots.BASE.put(data, base), asked(data, 1), KEY)
    assert int(result.status) == ju.Status.OK


def of_one_weight(function, *shape):
    """A model of one weight, its variables, and rows of 6 inputs."""
    model = ju.Model(lambda v, x, **_: ju.Outputs(function(v.params["w"], x)), ju.losses.cross_entropy)
    return model, ju.Variables({"w": jax.random.normal(KEY, shape)}), jax.random.normal(jax.random.key(1), (4, 6))


@jax.custom_jvp
def reversed_product(x, w):
    return x @ w


reversed_product.defjvp(lambda values, slopes: (values[0] @ values[1], -(slopes[0] @ values[1] + values[0] @ slopes[1])))


REFUSED = {
    "inputs cut, half free": (lambda w, x: jnp.einsum("bd,sdf->bsf", x, w.reshape(3, 6, 5)), (18, 5), "axes of its own"),
    "inputs mixed and cut": (lambda w, x: jnp.einsum("bi,ijk->bjk", x, w.reshape(6, 4, 5)), (4, 6, 5), "axes of its own"),
    "groups cut, half of them free": (
        lambda w, x: jax.lax.scan(lambda h, w: (h, jnp.einsum("bd,adf->baf", x, w)), 0, w.reshape(2, 3, 6, 5))[1],
        (6, 6, 5), "axes of its own",
    ),
    "a group here, free there": (
        lambda w, x: jnp.einsum("bd,edf->bef", x, w) + jnp.einsum("ebd,edf->bef", jnp.stack([x] * 3), w), (3, 6, 5), "axes",
    ),
    "rounded": (lambda w, x: x @ w.astype(jnp.int32).astype(x.dtype), (6, 5), "enters convert_element_type"),
    "a derivative of its own": (lambda w, x: reversed_product(x, w), (6, 5), "enters custom_jvp_call"),
    "no inputs": (lambda w, x: jnp.einsum("b,df->bdf", x[:, 0], w), (6, 5), "axes of its own"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(REFUSED))
def test_axes_that_factors_cannot_follow_are_refused(name):
    function, shape, reason = REFUSED[name]
    model, base, rows = of_one_weight(function, *shape)
    with pytest.raises(ValueError, match=f"w .*{reason}"):
        frozen.lora(model, base, rows)


def test_a_product_with_integers_takes_its_change():
    def mixed(w, x):
        counts = jnp.round(3 * x).astype(jnp.int8)
        return jax.lax.dot_general(counts, w, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)

    model, base, rows = of_one_weight(mixed, 6, 5)
    parts = frozen.lora(model, base, rows, rank=2)
    part = moved(parts, base)
    expected = model.forward(parts.merge(base, part), rows).logits
    np.testing.assert_allclose(parts.on(base).forward(part, rows).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint])
def test_another_form_may_come_out_of_a_call(wrap):
    model, base, rows = of_one_weight(lambda w, x: x @ wrap(lambda w: w.T)(w), 5, 6)
    parts = frozen.lora(model, base, rows, rank=2)
    part = moved(parts, base)
    expected = model.forward(parts.merge(base, part), rows).logits
    np.testing.assert_allclose(parts.on(base).forward(part, rows).logits, expected, rtol=1e-4, atol=1e-4)


def test_integers_of_weights_with_few_bits_are_as_close():
    weight = jax.random.normal(KEY, (200, 50)).astype(jnp.bfloat16)
    held = frozen.int8({"w": weight, "none": jnp.zeros((0, 4))})
    assert held["none"].shape == (0, 4)
    assert held["w"].values.min() >= -127
    assert held["w"].scale.dtype == jnp.bfloat16
    wide, scale = weight.astype(jnp.float32), held["w"].scale.astype(jnp.float32)
    assert jnp.all(jnp.abs(held["w"].values * scale - wide) <= scale / 2 * (1 + 1e-5))
    tiny = frozen.int8({"w": jnp.full((2, 2), 1e-6, jnp.float16)})["w"]
    assert jnp.all(jnp.isfinite(tiny.dense()))


def test_scales_along_heads_that_are_joined_are_written_out():
    model, base, rows = of_one_weight(lambda w, x: x @ w.reshape(6, -1), 6, 2, 4)
    parts = frozen.lora(model, base, rows, rank=2)
    small = base._replace(params=frozen.int8(base.params))
    part = moved(parts, small)
    expected = model.forward(parts.merge(small, part), rows).logits
    np.testing.assert_allclose(parts.on(small).forward(part, rows).logits, expected, rtol=1e-4, atol=1e-4)


def test_a_regularizer_is_one_of_all_weights():
    model = headed()._replace(regularizer=lambda params: sum(jnp.sum(x**2) for x in jax.tree.leaves(params)))
    base = model.init(KEY)
    parts = frozen.train_only(model, base, "^head$")
    part = moved(parts, base)
    over = parts.on(base)
    whole = parts.merge(base, part).params
    np.testing.assert_allclose(over.regularizer(part.params), model.regularizer(whole), rtol=1e-6)
    np.testing.assert_allclose(jax.grad(over.regularizer)(part.params)["head"], 2 * whole["head"], rtol=1e-6)


def test_leaves_that_share_a_path_are_refused():
    params = {"a/b": jnp.eye(NUM_FEATURES), "a": {"b": jnp.eye(NUM_FEATURES)}}
    model = ju.Model(lambda v, x, **_: ju.Outputs(x @ v.params["a/b"] @ v.params["a"]["b"]), ju.losses.cross_entropy)
    with pytest.raises(ValueError, match="several leaves have the path a/b"):
        frozen.lora(model, ju.Variables(params), jnp.ones((1, NUM_FEATURES)))
    with pytest.raises(ValueError, match="several leaves have the path a/b"):
        frozen.train_only(model, ju.Variables(params), "a")
