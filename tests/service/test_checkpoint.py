"""Weights on disk."""

import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

import jaxunlearn as ju
from jaxunlearn.service.checkpoint import Directory, load_variables, save_variables
from jaxunlearn.service.errors import CheckpointError
from tests.problems import distance, network

KEY = jax.random.key(0)
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # orbax, when it fails
RICH = ju.Variables(
    {
        "layers": [{"kernel": jnp.arange(6.0).reshape(2, 3)}, {"kernel": jnp.ones(2, jnp.bfloat16)}],
        "by_number": {0: jnp.ones(1)},
    },
    {"count": jnp.int32(3), "key": jax.random.key(7), "flag": jnp.array(True)},
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "deep" / "rich"
    save_variables(path, RICH)
    return path


def test_what_is_read_is_what_was_written(saved):
    for like in (RICH, jax.eval_shape(lambda: RICH)):
        again = load_variables(saved, like)
        assert jax.tree.structure(again) == jax.tree.structure(RICH)
        for old, new in zip(jax.tree.leaves(RICH), jax.tree.leaves(again), strict=True):
            assert (old.shape, old.dtype) == (new.shape, new.dtype)
        assert distance(again.params, RICH.params) == 0
        assert jnp.all(jax.random.key_data(again.state["key"]) == jax.random.key_data(RICH.state["key"]))
        assert int(again.state["count"]) == 3


def test_models_without_state_and_other_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    variables = network().init(KEY)
    save_variables("here", variables)
    again = load_variables("here", jax.eval_shape(network().init, KEY))
    assert again.state == ()
    assert distance(again, variables) == 0


def test_any_orbax_tree_is_read(tmp_path):
    state = {"params": {"w": jnp.ones(2)}, "opt_state": [{"mu": jnp.zeros(2)}, None], "name": "net"}
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "run", state)
    like = {"params": {"w": jax.ShapeDtypeStruct((2,), jnp.float32)}}
    assert np.array_equal(load_variables(tmp_path / "run", like, partial=True)["params"]["w"], np.ones(2))
    with pytest.raises(
        ValueError, match=r"another model: name \(.*\) is too much; opt_state/0/mu \(float32\[2\]\) is too much$"
    ):
        load_variables(tmp_path / "run", like)


def test_collections_of_linen_are_variables(tmp_path):
    like = ju.Variables({"Dense_0": {"kernel": jnp.ones(2)}}, {"batch_stats": {"Norm_0": {"mean": jnp.arange(3.0)}}})
    save_variables(tmp_path / "linen", {"params": like.params, **like.state})
    again = load_variables(tmp_path / "linen", jax.eval_shape(lambda: like))
    assert jax.tree.structure(again) == jax.tree.structure(like)
    assert distance(again, like) == 0
    with pytest.raises(ValueError, match=r"another model: batch_stats/Norm_0/mean \(float32\[3\]\) is too much$"):
        load_variables(tmp_path / "linen", like._replace(state=()))
    with pytest.raises(ValueError, match=r"another model: cache/x \(float32\[1\]\) is missing$"):
        load_variables(tmp_path / "linen", like._replace(state={**like.state, "cache": {"x": jnp.ones(1)}}))


def test_trees_whose_names_meet_are_read_as_they_are(tmp_path):
    for state in ({"w": jnp.zeros(2)}, {"w": {"x": jnp.zeros(2)}}, jnp.zeros(2)):
        variables = ju.Variables({"w": jnp.ones(2)}, state)
        path = tmp_path / str(len(list(tmp_path.iterdir())))
        save_variables(path, variables)
        assert distance(load_variables(path, variables), variables) == 0


def test_nodes_that_hold_nothing_are_no_difference(tmp_path):
    trees = [ju.Variables({"w": jnp.ones(2)}), {"params": {"w": jnp.ones(2)}}, ju.Variables({"w": jnp.ones(2), "e": {}}, {})]
    for place, written in enumerate(trees):
        save_variables(tmp_path / str(place), written)
        for like in trees:
            again = load_variables(tmp_path / str(place), like)
            assert jax.tree.structure(again) == jax.tree.structure(like)
            assert distance(again, like) == 0


def test_shardings_are_taken(saved):
    mesh = ju.request_mesh()
    again = load_variables(saved, ju.replicate(RICH, mesh))
    assert again.params["layers"][0]["kernel"].sharding.mesh == mesh


def test_nothing_is_overwritten(saved):
    with pytest.raises(FileExistsError, match=r"rich exists and is not overwritten: choose another path"):
        save_variables(saved, RICH._replace(state=()))
    assert int(load_variables(saved, RICH).state["count"]) == 3


def test_missing_checkpoints_are_told(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint at .*nowhere"):
        load_variables(tmp_path / "nowhere", RICH)
    with pytest.raises(FileNotFoundError, match=r"is not a checkpoint that orbax wrote$"):
        load_variables(tmp_path, RICH)
    with pytest.raises(FileNotFoundError, match=r"give one of the checkpoints inside: .*rich$"):
        load_variables(saved.parents[1], RICH)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda p: {**p, "layers": [{"kernel": jnp.ones((2, 4))}, p["layers"][1]]},
            r"params/layers/0/kernel is float32\[2,3\], not .*2,4\]$",
        ),
        (
            lambda p: {**p, "by_number": {0: jnp.ones(1, jnp.bfloat16)}},
            r"params/by_number/0 is float32\[1\], not bfloat16\[1\]$",
        ),
        (lambda p: {**p, "head": jnp.ones(3)}, r"params/head \(float32\[3\]\) is missing$"),
        (lambda p: {"layers": p["layers"]}, r"params/by_number/0 \(float32\[1\]\) is too much$"),
    ],
)
def test_another_form_is_refused(saved, change, message):
    with pytest.raises(ValueError, match=r"holds the weights of another model: " + message):
        load_variables(saved, RICH._replace(params=change(RICH.params)))


def damaged(saved, target, name, content):
    shutil.copytree(saved, target)
    (path,) = target.glob(name)
    path.write_bytes(content)
    return target


@pytest.mark.usefixtures("leftovers")
@pytest.mark.parametrize("name", ["_METADATA", "_sharding", "manifest.ocdbt", "array_metadatas/process_0"])
@pytest.mark.parametrize("content", [b"", b"nonsense", b"\xff\xfe{"])
def test_damaged_metadata_is_told(saved, tmp_path, name, content):
    path = damaged(saved, tmp_path / "copy", name, content)
    with pytest.raises(
        CheckpointError, match=r"the checkpoint at .*copy is damaged \(.*\): restore it from a backup, or write"
    ):
        load_variables(path, RICH)


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise ValueError("RESOURCE_EXHAUSTED: Failed to write 8 bytes: No space left on device [os_error_code='28']")

    monkeypatch.setattr(ocp.StandardCheckpointer, "save", full)
    with pytest.raises(CheckpointError, match=r"here could not be written \(no space left on device\): free some space, then"):
        save_variables(tmp_path / "here", RICH)


@pytest.mark.usefixtures("leftovers")
def test_damaged_progress_is_told(tmp_path):
    progress = Directory(tmp_path / "run", every=1)
    progress.save(1, {"w": jnp.ones(2)}, None, "run")
    progress.finish()
    (path,) = (tmp_path / "run" / "1" / "about").glob("metadata")
    path.write_bytes(b"{")
    with pytest.raises(CheckpointError, match=r"the checkpoint at .*run/1 is damaged.*remove that folder: .* starts anew"):
        Directory(tmp_path / "run", every=1).restore({"w": jnp.zeros(2)}, "run")


@pytest.mark.usefixtures("leftovers")
@pytest.mark.filterwarnings("ignore")  # of orbax, about what was removed
def test_without_its_damaged_folder_a_run_resumes_from_the_save_before(tmp_path):
    progress = Directory(tmp_path, every=1)
    for step in (1, 2):
        progress.save(step, {"w": jnp.full(2, step)}, {"at": step}, "run")
    progress.finish()
    for file in (tmp_path / "2" / "tree").rglob("*"):
        if file.is_file():
            file.write_bytes(b"torn")
    with pytest.raises(CheckpointError, match=r"the run then resumes from step 1"):
        progress.restore({"w": jnp.zeros(2, int)}, "run")
    progress.finish()
    shutil.rmtree(tmp_path / "2")
    step, found, position = progress.restore({"w": jnp.zeros(2, int)}, "run") or (0, {}, None)
    progress.finish()
    assert (step, found["w"].tolist(), position) == (1, [1, 1], {"at": 1})


def test_saves_are_due_by_count_or_by_time(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("jaxunlearn.service.checkpoint.time", SimpleNamespace(monotonic=lambda: now[0]))
    for name, options, expected in [
        ("count", {"every": 3}, [3, 6]),
        ("time", {"every": None, "minutes": 1.0}, [2, 4, 6]),  # after 40, 80, 120, 140, 180 and 220 seconds
        ("both", {"every": 3, "minutes": 1.0}, [2, 3, 5, 6]),
    ]:
        now[0] = 0.0
        progress = Directory(tmp_path / name, keep=9, **options)
        assert progress.restore({"w": jnp.zeros(1)}, "run") is None
        for step in range(1, 7):
            now[0] += 40.0 if step != 4 else 20.0
            progress.save(step, {"w": jnp.zeros(1)}, None, "run")
        progress.finish()
        assert sorted(int(path.name) for path in (tmp_path / name).iterdir() if path.name.isdecimal()) == expected
    with pytest.raises(ValueError, match="nothing would be saved"):
        Directory(tmp_path, every=None)
    with pytest.raises(ValueError, match="minutes must be positive"):
        Directory(tmp_path, minutes=0)


def test_an_interrupt_is_no_damage(saved, monkeypatch):
    def interrupted(*arguments, **options):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise Exception("Encountered error while reading array index") from error

    monkeypatch.setattr(ocp.PyTreeCheckpointer, "restore", interrupted)
    with pytest.raises(Exception, match=r"^Encountered error") as told:
        load_variables(saved, RICH)
    assert not isinstance(told.value, CheckpointError)
