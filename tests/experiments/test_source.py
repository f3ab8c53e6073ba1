"""Models and data of a user's own, as files for `unlearn_checkpoint.py --module`."""

import json
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import experiments
import jaxunlearn as ju
from experiments import unlearn_checkpoint
from experiments.common import source
from experiments.common.scale import Scale
from experiments.modules import digits_nnx
from experiments.unlearn_checkpoint import Config
from jaxunlearn.service.checkpoint import load_variables, save_variables
from tests.problems import distance

EXAMPLE = Path(experiments.__file__).parent / "modules" / "digits_nnx.py"
SMALL = {"steps": 2, "training_steps": 2, "batch_size": 8, "settings": {"alpha": "0.9"}, "scale": Scale(mesh=False)}
KEY = jax.random.key(0)
MODEL, EXAMPLES = "def model():\n    return ju.Model(None, None)\n", "ju.Examples(np.ones((3, 2)), np.ones(3))"
DATA = f"def data():\n    return {EXAMPLES}, {EXAMPLES}\n"
COMMON = """
import jax, jaxunlearn as ju, numpy as np
def data():
    part = ju.Examples(np.ones((6, 4), np.float32), np.zeros(6, np.int32))
    return part, part
"""
LINEN = """
import flax.linen as nn
class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.BatchNorm(use_running_average=not train)(nn.Dense(3)(x))
def model():
    return ju.adapters.from_linen(Net(), ju.losses.cross_entropy, np.ones((1, 4), np.float32))
"""
EQUINOX = """
import equinox as eqx
create = lambda key: eqx.nn.MLP(4, 3, 8, 1, key=key)
def model():
    return ju.adapters.from_equinox(create(jax.random.key(0)), ju.losses.cross_entropy, create=create)[0]
def save(path, variables):
    eqx.tree_serialise_leaves(path, variables)
def variables(checkpoint):
    return eqx.tree_deserialise_leaves(checkpoint, model().init(jax.random.key(0)))
"""


def written(folder, text, name="mine.py"):
    (folder / name).write_text(text)
    return folder / name


def example_of_the_script():
    """The file that stands in the script's docstring."""
    _, _, rest = unlearn_checkpoint.__doc__.partition("and your data:\n")
    return textwrap.dedent(rest.partition("Without `variables`")[0])


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A demo with the nnx example."""
    out = tmp_path_factory.mktemp("module") / "demo"
    unlearn_checkpoint.main(Config(**SMALL, module=EXAMPLE, demo=True, retrain=True, rows=(3, 14), out=out))
    return out


def test_the_nnx_example_is_trained_unlearned_and_saved_as_a_state(out):
    net = digits_nnx.create(KEY)
    variables = ju.adapters.from_nnx(net, ju.losses.cross_entropy)[1]
    before, after = (load_variables(out / name, variables) for name in ("trained", "checkpoint"))
    assert 0 < distance(before, after) < 0.1
    state = load_variables(out / "checkpoint", nnx.state(net))
    nnx.update(net, state)
    net.eval()
    _, test = digits_nnx.data()
    expected = digits_nnx.model().forward(after, test.inputs).logits
    assert np.allclose(net(test.inputs), expected, atol=1e-6)
    summary = json.loads((out / "unlearn_checkpoint.json").read_text())
    assert list(summary["models"]) == ["do nothing", "unlearned", "retrained"]
    assert summary["config"]["module"] == "digits_nnx.py"
    assert "unlearned from the model of digits_nnx.py, by gradient_difference" in (out / "report.html").read_text()


def test_a_state_of_the_users_own_training_is_unlearned(tmp_path):
    net = digits_nnx.create(jax.random.key(5))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "mine", nnx.state(net))
    sigma = {"method": "output_perturbation", "settings": {"sigma": "1e-5"}}
    unlearn_checkpoint.main(
        Config(**{**SMALL, **sigma}, module=EXAMPLE, checkpoint=tmp_path / "mine", rows=(3,), out=tmp_path / "out")
    )
    variables = ju.adapters.from_nnx(net, ju.losses.cross_entropy)[1]
    assert 0 < distance(load_variables(tmp_path / "out" / "checkpoint", variables), variables) < 1e-4


def test_the_example_in_the_docstring_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, example_of_the_script())
    np.savez("trained.npz", w=np.ones((20, 2), np.float32))
    config = Config(**SMALL, module=Path("mine.py"), checkpoint=Path("trained.npz"), rows=(3,), out=Path("out"))
    unlearn_checkpoint.main(config)
    assert np.load("out/checkpoint")["w"].shape == (20, 2)
    assert 0 < np.abs(np.load("out/checkpoint")["w"] - 1).max() < 0.1
    assert "without 1 of 200 rows" in capsys.readouterr().out


def test_real_targets_are_audited_by_their_losses(tmp_path):
    text = """
    import jaxunlearn as ju, numpy as np
    def model():
        return ju.Model(lambda v, x, *, train=False, key=None: ju.Outputs(x @ v.params["w"]), ju.losses.squared_error)
    def data():
        x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
        return ju.Examples(x[:30], x[:30, :1]), ju.Examples(x[30:], x[30:, :1])
    def variables(checkpoint):
        assert checkpoint is None
        return ju.Variables({"w": np.ones((3, 1), np.float32)})
    """
    path = written(tmp_path, textwrap.dedent(text))
    summary = unlearn_checkpoint.main(Config(**SMALL, module=path, rows=(3,), out=tmp_path / "out"))
    assert "forget_loss" in summary["models"]["unlearned"]
    assert "forget_accuracy" not in summary["models"]["unlearned"]
    assert "forget loss" in (tmp_path / "out" / "report.html").read_text()
    like = ju.Variables({"w": jnp.ones((3, 1))})
    assert load_variables(tmp_path / "out" / "checkpoint", like).params["w"].shape == (3, 1)
    with pytest.raises(SystemExit, match=r"training and retraining start from Model\.init, which is None"):
        unlearn_checkpoint.main(Config(**SMALL, module=path, rows=(3,), retrain=True, out=tmp_path / "again"))


@pytest.mark.parametrize("text", [LINEN, EQUINOX], ids=["linen", "equinox"])
def test_other_libraries_are_read_and_written(tmp_path, text):
    found = source.from_file(written(tmp_path, COMMON + text))
    variables = found.model.init(KEY)
    found.write(tmp_path / "new" / "checkpoint", variables)
    again = found.read(tmp_path / "new" / "checkpoint")
    assert jax.tree.structure(again) == jax.tree.structure(variables)
    assert distance(again, variables) == 0
    assert found.model.forward(again, found.train.inputs).logits.shape == (6, 3)


def test_linens_own_collections_are_read(tmp_path):
    found = source.from_file(written(tmp_path, COMMON + LINEN))
    variables = found.model.init(KEY)
    save_variables(tmp_path / "run", {"params": variables.params, **variables.state, "step": jnp.int32(3)})
    assert distance(found.read(tmp_path / "run"), variables) == 0


def test_files_beside_the_module_are_found(tmp_path):
    written(tmp_path, "WIDTH = 3\n", "settings_beside_it.py")
    found = source.from_file(written(tmp_path, "from settings_beside_it import WIDTH\nassert WIDTH == 3\n" + COMMON + LINEN))
    assert found.name == "the model of mine.py"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"lacks model\(\) and data\(\): it must define model\(\) -> Model and data\(\) -> \(train, test\)"),
        (DATA, r"mine.py lacks model\(\): it must"),
        (MODEL, r"mine.py lacks data\(\): it must"),
        ("model = 3\n" + DATA, r"model in .*mine.py must be a function that takes no argument, got int"),
        (f"def model(key):\n    pass\n{DATA}", r"must be a function that takes no argument, got model\(key\)"),
        (f"def save(path):\n    pass\n{MODEL}{DATA}", r"takes two arguments \(path, variables\), got save\(path\)"),
        (f"def variables():\n    pass\n{MODEL}{DATA}", r"takes one argument \(checkpoint\), got variables\(\)"),
        ("def model():\n    return 3\n" + DATA, r"model\(\) in .* must return a jaxunlearn.Model, got int$"),
        (
            "def model():\n    return ju.Model(None, None), ju.Variables({})\n" + DATA,
            r"got \(Model, Variables\); from_nnx and from_equinox return a pair: give the first of it$",
        ),
        (MODEL + "def data():\n    return np.ones(3), np.ones(3)\n", r"two jaxunlearn.Examples.*, got \(ndarray, ndarray\)$"),
        (MODEL + f"def data():\n    return {EXAMPLES}\n", r"data\(\) in .* must return \(train, test\), .* got Examples$"),
        (
            MODEL + f"def data():\n    return ju.Examples(np.ones((3, 2)), np.ones(4)), {EXAMPLES}\n",
            r"train must hold arrays with one entry per row each, got lengths \[3, 4\]",
        ),
        (
            MODEL + f"def data():\n    return {EXAMPLES}, ju.Examples(np.ones((0, 2)), np.ones(0))\n",
            r"test must hold arrays with one entry per row each, got lengths \[0\]",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_told(tmp_path, text, message):
    path = written(tmp_path, "import jaxunlearn as ju, numpy as np\n" + text)
    with pytest.raises(SystemExit, match=message):
        source.from_file(path)


def test_what_is_wrong_with_weights_is_told(tmp_path):
    start = "import jaxunlearn as ju, numpy as np\n"
    found = source.from_file(written(tmp_path, start + MODEL + DATA))
    with pytest.raises(SystemExit, match=r"known from Model\.init, which is None: give it \(create= of from_nnx"):
        found.read(tmp_path)
    with pytest.raises(SystemExit, match=r"give --checkpoint DIR, or define variables\(checkpoint\) in the module"):
        found.read(None)
    wrong = source.from_file(written(tmp_path, start + MODEL + DATA + "def variables(checkpoint):\n    return {}\n"))
    with pytest.raises(SystemExit, match=r"variables\(\) in .* must return jaxunlearn.Variables, got dict"):
        wrong.read(None)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"network": "mlp"}, "--module has a model and data of its own: leave --network out"),
        ({"dataset": "digits", "data_dir": "x"}, "leave --dataset, --data-dir out"),
        ({"standardise": True}, "leave --standardise out"),
        ({"module": Path("nowhere.py")}, "--module must be a Python file, there is none at nowhere.py"),
        ({"module": Path(__file__).parent}, "--module must be a Python file"),
        ({"demo": True}, "give either --checkpoint DIR, or --demo"),
        ({"rows": ()}, "nothing to forget"),
    ],
)
def test_flags_that_do_not_go_with_a_module_are_told(tmp_path, flags, message):
    given = {"module": EXAMPLE, "checkpoint": tmp_path / "run", "rows": (1,), "out": tmp_path / "out", **flags}
    with pytest.raises(SystemExit, match=message):
        unlearn_checkpoint.main(Config(**SMALL, **given))


def test_errors_of_the_users_own_code_are_left_alone(tmp_path):
    with pytest.raises(ZeroDivisionError):
        source.from_file(written(tmp_path, "1 / 0\n"))
