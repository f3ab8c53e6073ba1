"""Curvatures of rows that come block by block, against those of the same rows in memory."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn import curvature, sources
from tests.problems import blobs, convolutional, lane, network

DATA, KEY = blobs(), jax.random.key(5)
INDEX = sources.index(60)
REQUEST = lane(ju.from_indices(DATA, [[0, 7, 58]]), 0)
MODEL, CONVOLUTIONAL = network(), convolutional()
FITS = {
    "diagonal": curvature.diagonal(MODEL),
    "diagonal, sampled": curvature.diagonal(MODEL, kind="sampled"),
    "dense": curvature.dense(MODEL, kind="ggn"),
    "dense, last layer": curvature.dense(MODEL, kind="signed", layers="head"),
    "dense, hessian": curvature.dense(MODEL, kind="hessian"),
    "kfac": curvature.kfac(MODEL),
    "kfac, fisher": curvature.kfac(MODEL, kind="fisher", chunk=9),
    "ekfac": curvature.ekfac(MODEL),
    "ekfac, signed": curvature.ekfac(MODEL, kind="signed", chunk=13),
    "lanczos": curvature.lanczos(partial(curvature.ggn_vp, MODEL), rank=6),
    "nystrom": curvature.nystrom(partial(curvature.ggn_vp, MODEL), rank=6),
}
ALWAYS = ("diagonal, sampled", "ekfac", "lanczos")  # what sums over rows, passes over a basis, products


def same(found, expected, params):
    """Two representations by what they do: eigenvectors of equal eigenvalues are any."""
    v = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape), params)
    scale = float(expected.trace())
    damping = 2 * max(float(jnp.max(jnp.abs(x))) for x in expected.spectrum())  # a Hessian is indefinite
    for of in (lambda c: c.matvec(v), lambda c: c.diagonal(params), lambda c: c.solve(v, damping)):
        for x, y in zip(*(jax.tree.leaves(of(c)) for c in (found, expected)), strict=True):
            np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-6 * max(1.0, scale))
    assert float(found.trace()) == pytest.approx(scale, rel=1e-6)


@pytest.mark.parametrize("name", [pytest.param(x, marks=[pytest.mark.slow] * (x not in ALWAYS)) for x in FITS])
def test_blocks_of_any_size_give_the_curvature_in_memory(name):
    fit, variables = FITS[name], MODEL.init(jax.random.key(1))
    kept = ju.remove(DATA, REQUEST).present
    expected = jax.jit(fit)(variables, DATA.train, kept, KEY)
    for size in (16, 57):  # a last block that is short, and one block of all 57 rows
        blocks = sources.blocks(DATA.train, INDEX, size=size, request=REQUEST)
        same(curvature.fit_blocks(fit, variables, blocks, KEY), expected, variables.params)


def test_shared_weights_come_out_alike():
    variables = CONVOLUTIONAL.init(jax.random.key(1))
    fit = curvature.ekfac(CONVOLUTIONAL, kind="fisher")
    expected = jax.jit(fit)(variables, DATA.train, DATA.present, KEY)
    blocks = sources.blocks(DATA.train, INDEX, size=25)
    same(curvature.fit_blocks(fit, variables, blocks, KEY), expected, variables.params)


def counted(weights=lambda block: block.weights, length=None, skip=()):
    """Blocks of 16 rows, and how often a pass was started."""
    passes = []

    def start():
        passes.append(0)
        for place, block in enumerate(sources.blocks(DATA.train, INDEX, size=16)()):
            if len(passes) not in skip or place:
                yield jax.tree.map(lambda x: x[:length], block._replace(weights=weights(block)))

    return start, passes


@pytest.mark.parametrize(("name", "expected"), [("diagonal", 1), ("kfac", 1), ("ekfac", 2), ("lanczos", 6), ("nystrom", 1)])
def test_passes_are_as_many_as_said(name, expected):
    start, passes = counted()
    curvature.fit_blocks(FITS[name], MODEL.init(KEY), start, KEY)
    assert len(passes) == expected + 1  # the first one looks at the form of a row


def test_rows_of_weight_0_may_hold_anything():
    spoilt = jax.tree.map(np.array, DATA.train)
    spoilt.inputs[[0, 20]] = np.nan
    without = ju.remove(INDEX, lane(ju.from_indices(INDEX, [[0, 20]]), 0))
    expected = curvature.fit_blocks(FITS["ekfac"], MODEL.init(KEY), sources.blocks(spoilt, without, size=16), KEY)

    def start():
        for block in sources.blocks(spoilt, INDEX, size=16)():
            yield block._replace(weights=block.weights * ~np.isin(block.slots, (0, 20)))

    same(curvature.fit_blocks(FITS["ekfac"], MODEL.init(KEY), start, KEY), expected, MODEL.init(KEY).params)


def test_passes_that_are_none_are_refused():
    variables = MODEL.init(KEY)

    def go(blocks, fit=FITS["ekfac"], run=lambda f: f()):
        return run(lambda: curvature.fit_blocks(fit, variables, blocks, KEY))

    whole = list(counted()[0]())
    with pytest.raises(TypeError, match=r"pass a function that starts a pass: lambda: iter\(dataset\)"):
        go(iter(whole))
    once = iter(whole)
    with pytest.raises(ValueError, match=r"the first one|no row of the blocks counts"):
        go(lambda: once)  # starts where the pass before it stopped
    with pytest.raises(ValueError, match="this pass had 44 rows, and the first one 60"):
        go(counted(skip=(3,))[0])
    with pytest.raises(ValueError, match="row 16 comes twice in one pass"):
        go(lambda: [*whole, whole[1]])
    with pytest.raises(ValueError, match="row 3 comes twice"):
        go(lambda: [whole[0]._replace(slots=np.full(16, 3))])
    with pytest.raises(ValueError, match="the blocks hold no row"):
        go(list)
    with pytest.raises(ValueError, match="no row of the blocks counts"):
        go(counted(weights=lambda block: 0 * block.weights)[0])
    with pytest.raises(ValueError, match="a block has 16 rows, more than the 3"):
        go(lambda: [jax.tree.map(lambda x: x[:3], whole[0]), whole[1]])
    with pytest.raises(TypeError, match=r"a block is jaxunlearn\.Weighted.*got Examples"):
        go(lambda: [DATA.train])
    with pytest.raises(TypeError, match="needs all rows at once, as gram does"):
        go(counted()[0], fit=curvature.gram(MODEL))
    with pytest.raises(TypeError, match="call it outside jit"):
        jax.jit(lambda v: curvature.fit_blocks(FITS["kfac"], v, counted()[0], KEY).trace())(variables)
