"""The bus of prepared values: what is refused, what goes stale, and what digests tell apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn import slots, tree
from tests.problems import blobs, headed, lane, network, recorded

DATA = blobs()
WEIGHTS = network().init(jax.random.key(0))
VALUE = jnp.arange(3.0)


def test_what_was_put_is_read_back_with_what_it_was_made_from():
    data = slots.CURVATURE.put(DATA, VALUE, at=WEIGHTS, how="a way")
    value, stale = jax.jit(lambda data, at: slots.CURVATURE.read(data, at=at, how="a way"))(data, WEIGHTS)
    assert jnp.array_equal(value, VALUE)
    assert not stale
    assert DATA.extra == {}  # the data that went in stay as they were


@pytest.mark.parametrize(
    ("slot", "moved", "removed"),
    [(slots.CURVATURE, True, True), (slots.FEATURES, True, False)],
    ids=["of rows", "of weights alone"],
)
def test_other_weights_and_other_rows_make_it_stale_where_they_matter(slot, moved, removed):
    data = slot.put(DATA, VALUE, at=WEIGHTS)
    other = jax.tree.map(lambda w: w.at[(0,) * w.ndim].add(1e-7), WEIGHTS)
    assert bool(slot.read(data, at=other)[1]) == moved
    assert bool(slot.read(data._replace(present=data.present.at[5].set(0)), at=WEIGHTS)[1]) == removed


def test_requests_of_one_vmap_are_stale_one_by_one():
    data = slots.CURVATURE.put(DATA, VALUE, at=WEIGHTS)
    stacked = jax.tree.map(lambda w: jnp.stack([w, w + 1, w]), WEIGHTS)
    stale = jax.vmap(lambda at: slots.CURVATURE.read(data, at=at)[1])(stacked)
    assert stale.tolist() == [False, True, False]


def test_another_way_of_making_is_an_error():
    data = slots.MOMENTS.put(DATA, VALUE, at=WEIGHTS, how="layer 'first'")
    with pytest.raises(ValueError, match=r"holds layer 'first', and layer 'second' is needed: prepare it anew"):
        slots.MOMENTS.read(data, at=WEIGHTS, how="layer 'second'")


def test_empty_slots_say_how_to_fill_them():
    with pytest.raises(ValueError, match=r"'curvature'\] is missing .* fill it with jaxunlearn.prepare\(unlearn\)"):
        slots.CURVATURE.read(DATA, at=WEIGHTS)
    with pytest.raises(ValueError, match=r"'attributes'\] is missing .*training_data"):
        slots.ATTRIBUTES.get(DATA)


def test_a_value_without_a_stamp_is_refused():
    with pytest.raises(ValueError, match="without a stamp of the weights"):
        slots.CURVATURE.read(DATA._replace(extra={"curvature": VALUE}), at=WEIGHTS)
    with pytest.raises(ValueError, match="pass at=variables"):
        slots.CURVATURE.put(DATA, VALUE)


def test_keys_that_are_no_slot_are_refused_with_near_misses():
    for extra, message in (
        ({"importance": 1}, "did you mean 'importances'"),
        ({"moment": 1}, "did you mean 'moments'"),
        ({"validatoin": 1}, "rows for validation and for tests are arguments of iterate"),
    ):
        with pytest.raises(ValueError, match=message):
            ju.training_data(jnp.ones((3, 2)), jnp.zeros(3, int), extra=extra)
        unlearn, request = ju.output_perturbation(network(), sigma=0.1), lane(ju.from_indices(DATA, [[1]]), 0)
        with pytest.raises(ValueError, match=message):
            unlearn(WEIGHTS, DATA._replace(extra=extra), request, jax.random.key(0))


def test_users_have_a_slot_of_their_own():
    data = slots.USER.put(DATA, {"mine": VALUE})

    def shift(variables, data, request, key):
        by = slots.USER.get(data)["mine"][1]
        return ju.Result(jax.tree.map(lambda w: w + by, variables))

    request = jax.tree.map(lambda x: x[0], ju.from_indices(DATA, [[1]]))
    result = ju.one_shot(shift)(WEIGHTS, data, request, jax.random.key(0))
    assert int(result.status) == ju.Status.OK
    assert float(result.variables.params["head"][0, 0] - WEIGHTS.params["head"][0, 0]) == pytest.approx(1)


def test_default_dictionaries_are_not_shared():
    for make in (
        lambda: ju.Data(DATA.train, DATA.present).extra,
        lambda: ju.Outputs(VALUE).features,
        lambda: ju.Result(WEIGHTS).extra,
    ):
        first = make()
        first["spoiled"] = 1
        assert make() == {}
    assert jax.tree.map(lambda x: x, ju.Data(None, 0, None)) == ju.Data(None, 0, None)  # None stays None, as in_axes wants


def test_prepare_takes_its_settings_from_the_method_and_gives_data_back_where_nothing_is_read():
    key = jax.random.key(0)
    unlearn = ju.ssd(network(), average="sample", batch_size=7)
    ready = ju.prepare(unlearn)(WEIGHTS, DATA, key)
    assert ready.extra["importances"].how == "squares of gradients of single rows"
    assert ju.prepare(ju.output_perturbation(network(), sigma=0.1))(WEIGHTS, DATA, key) is DATA
    both = ju.then(unlearn, ju.fisher_forgetting(network(), form="paper"))
    assert set(ju.prepare(both)(WEIGHTS, DATA, key).extra) == {"importances", "fisher_diagonal"}
    for wrong in ("ssd", ju.ssd, ju.batched(unlearn), ju.streamed(unlearn)):
        with pytest.raises(TypeError, match="prepare takes a method"):
            ju.prepare(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="prepare it anew"):
        ju.ssd(network(), average="batch")(WEIGHTS, ready, jax.tree.map(lambda x: x[0], ju.from_indices(DATA, [[1]])), key)


def test_features_stay_right_when_the_head_alone_is_edited():
    model = headed()
    variables = model.init(jax.random.key(1))
    ready = ju.heads.prepare(model)(variables, DATA, jax.random.key(0))
    requests = ju.from_classes(DATA, [[0], [1]])
    first = jax.tree.map(lambda x: x[0], requests)
    edited = ju.concept_erasure(model)(variables, ready, first, jax.random.key(0))
    again = ju.concept_erasure(model)(edited.variables, ready, jax.tree.map(lambda x: x[1], requests), jax.random.key(0))
    assert edited.status == again.status == ju.Status.OK
    body = variables._replace(params={**variables.params, "body": variables.params["body"] + 1e-3})
    assert int(ju.concept_erasure(model)(body, ready, first, jax.random.key(0)).status) == ju.Status.STALE


TREES = [
    {"a": np.float32([1, 2, 3])},
    {"a": np.float32([2, 1, 3])},
    {"a": np.float32([1, 2, np.nextafter(np.float32(3), np.float32(4))])},
    {"b": np.float32([1, 2, 3])},
    {"a": np.float32([[1, 2, 3]])},
    {"a": np.float32([1, 2, 3]).view(np.int32)},
    {"a": np.float16([1, 2, 3])},
    {"a": np.float32([1, 2, 3, 0])},
    {"a": np.array([True, False, True])},
    {"a": np.float32([1, 2]), "b": np.float32([3])},
    {"a": np.float32([0.0])},
    {"a": np.float32([-0.0])},
    {"a": jax.random.key(0)},
    {"a": jax.random.key(1)},
]


@pytest.mark.parametrize("digest", [lambda x: tuple(tree.digest(x).tolist()), tree.content_digest], ids=["device", "host"])
def test_digests_tell_trees_apart(digest):
    found = [digest(x) for x in TREES]
    assert len(set(found)) == len(TREES)
    assert found == [digest(jax.tree.map(lambda x: x if isinstance(x, jax.Array) else x.copy(), x)) for x in TREES]


def test_the_device_digest_is_one_number_everywhere():
    values = {"a": jax.random.normal(jax.random.key(0), (33, 5)), "b": jnp.arange(7, dtype=jnp.bfloat16)}
    plain = tree.digest(values)
    assert jnp.array_equal(jax.jit(tree.digest)(values), plain)
    stacked = jax.tree.map(lambda x: jnp.stack([x, x]), values)
    assert jnp.array_equal(jax.vmap(tree.digest)(stacked), jnp.stack([plain, plain]))
    with jax.enable_x64(True):
        assert jnp.array_equal(tree.digest(values), plain)
    host = jax.tree.map(np.asarray, {"a": np.float64([1, 2]), "b": 3, "c": np.int64(4), "d": 0.5})
    plain = tree.digest(host)
    with jax.enable_x64(True):
        assert jnp.array_equal(tree.digest(host), plain)  # what JAX was not given yet is taken as it would take it
        doubles = jnp.arange(3.0)
        assert not jnp.array_equal(tree.digest(doubles), tree.digest(jnp.nextafter(doubles, 9.0)))


def test_the_device_digest_sees_every_bit_of_random_weights():
    weights = jax.random.normal(jax.random.key(0), (64,))
    bits = jax.lax.bitcast_convert_type(weights, jnp.uint32)
    place, bit = jnp.divmod(jnp.arange(64 * 32, dtype=jnp.uint32), 32)
    flipped = jax.vmap(lambda p, b: bits.at[p].set(bits[p] ^ (jnp.uint32(1) << b)))(place, bit)
    found = np.asarray(jax.jit(jax.vmap(tree.digest))(flipped))
    assert len({tuple(x) for x in found} | {tuple(np.asarray(tree.digest(bits)))}) == 64 * 32 + 1
    assert len(np.unique(found[:, 0])) > 64 * 32 - 5  # each half of it tells nearly all apart by itself
    assert len(np.unique(found[:, 1])) > 64 * 32 - 5


def test_a_factorisation_of_another_problem_or_penalty_is_no_factorisation_of_this_one():
    rows = ju.training_data(ju.convex.feature_rows(DATA.train.inputs), DATA.train.targets)
    strong, weak = ju.convex.softmax(1.0, 3), ju.convex.softmax(0.05, 3)
    optimum, request, key = ju.convex.fit(strong, rows), lane(ju.from_indices(rows, [[2, 3]]), 0), jax.random.key(0)
    ready = ju.prepare(ju.convex.projective_residual(strong))(optimum, rows, key)
    assert int(ju.convex.projective_residual(strong)(optimum, ready, request, key).status) == ju.Status.OK
    assert int(ju.convex.projective_residual(weak)(optimum, ready, request, key).status) == ju.Status.STALE
    blind = ju.convex.woodbury_removal(weak, steps=1, measure=False)(optimum, ready, request, key)
    assert float(blind.stats["distance_bound"]) == np.inf  # it has not looked at the rows, so it knows nothing
    origin = ju.Variables({"kernel": jnp.zeros((rows.train.inputs.shape[1], 1))})
    binary = rows._replace(train=rows.train._replace(targets=(rows.train.targets > 0).astype(jnp.int32)))
    ready = ju.prepare(ju.convex.projective_residual(ju.convex.logistic(1.0)))(origin, binary, key)
    real = ready._replace(train=ready.train._replace(targets=ready.train.targets.astype(jnp.float32)))
    with pytest.raises(ValueError, match="prepare it anew"):
        ju.convex.projective_residual(ju.convex.ridge(1.0))(origin, real, request, key)


def test_recorded_updates_are_as_stale_after_a_removal_that_was_not_made():
    data, trained = recorded()
    rows = np.unique(np.asarray(data.extra["updates"].value.rows))
    first, second = (lane(ju.from_indices(data, [[int(row)]]), 0) for row in rows[rows >= 0][:2])
    unlearn, key = ju.amnesiac(network()), jax.random.key(0)
    done = unlearn(trained, data, first, key)
    removed = ju.remove(data, first)
    assert int(unlearn(done.variables, removed, second, key).status) == ju.Status.OK
    assert int(unlearn(trained, removed, second, key).status) == ju.Status.STALE
