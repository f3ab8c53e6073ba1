"""Scenarios: which rows are asked to be forgotten, what they did to the training set, and which unseen rows resemble them.

Every scenario is a function of a `Study` and seeds. It returns a `Scenario`, whose study may hold other rows or labels than
the one that went in. Seeds are separate: `seed` moves the training rows (trigger, swapped labels, styles), `request_seed`
chooses what is asked for, `audit_seed` what only the audit sees; seeds of training are the caller's.

Two questions are kept apart. *Influence of examples*: is the model as if it had never seen these rows? Retrained models are
the reference. *A concept*: is what these rows have in common gone, for rows that were never trained on as well? Retrained
models are shown, but a model can be right without resembling them.
"""

import zlib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

import jaxunlearn as ju
from experiments.common.running import at, reusable
from experiments.common.study import Study
from experiments.common.training import form
from jaxunlearn import Examples, ForgetRequest

Question: TypeAlias = Literal["influence of examples", "a concept"]
FEWEST_UNSEEN = 3  # rows that an attack needs on its other side


class Scenario(NamedTuple):
    """What is asked of every method, and what an audit needs to judge the answers."""

    name: str
    question: Question
    study: Study  # model, training data and test rows; originals are trained on it
    requests: ForgetRequest  # [R, k]: all rows to be gone in the end; for audits and retraining
    unseen: Examples  # [m], no model is trained on them
    unseen_weights: Float[Array, "R m"]  # 1 where an unseen row is drawn like the rows of a request
    measure: str = ""  # what the accuracy on those rows tells; "" where they are the test rows
    stream: ForgetRequest | None = None  # [R, T, k]: the same rows as T requests, one after another


def _generator(seed: int, purpose: str) -> np.random.Generator:
    """Draws for one purpose: equal seeds for different purposes, such as rows and requests, are unrelated."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode())])


def _on_test(name: str, study: Study, requests: ForgetRequest, **fields: Any) -> Scenario:
    """A scenario whose forget sets are drawn like the test rows."""
    weights = jnp.ones((requests.indices.shape[0], len(study.test.inputs)))
    return Scenario(name, "influence of examples", study, requests, study.test, weights, **fields)


def random_rows(study: Study, *, num_requests: int = 8, sizes: tuple[int, int] = (8, 64), request_seed: int) -> Scenario:
    """Random rows; requests of sizes that run from the first to the second of `sizes`."""
    counts = np.linspace(*sizes, num_requests).astype(int).tolist()
    generator = _generator(request_seed, "random rows")
    return _on_test("random", study, ju.from_indices(study.data, [generator.permutation(_num_rows(study))[:k] for k in counts]))


def sequential(study: Study, *, num_streams: int = 4, num_requests: int = 4, size: int = 12, request_seed: int) -> Scenario:
    """Streams of requests for random rows that one model answers one after another, see `jaxunlearn.streamed`."""
    generator = _generator(request_seed, "streams")
    rows = [generator.permutation(_num_rows(study))[: num_requests * size] for _ in range(num_streams)]
    steps = [ju.from_indices(study.data, part.reshape(num_requests, size)) for part in rows]
    stream = jax.tree.map(lambda *x: jnp.stack(x), *steps)
    return _on_test("sequential", study, ju.from_indices(study.data, rows), stream=stream)


def memorisation(
    study: Study,
    *,
    num_models: int = 64,
    fraction: float = 0.7,
    seed: int,
    chunk: int | None = None,
    mesh: Mesh | None = None,
) -> Float[np.ndarray, " n"]:
    """How far each training row must be seen to be known (Feldman, 2020, arXiv 1906.05271):

        mem_i = P[f(x_i) = y_i | i in S] - P[f(x_i) = y_i | i not in S],

    estimated over models trained on random subsets S, which `Data.present` names; all in one batched call. Every row is in
    equally many subsets.

    Args:
        study: a classification study; models are trained as its originals are.
        num_models: subsets. The standard error of an entry is about `sqrt(p (1 - p) / (0.3 num_models))`.
        fraction: of the subsets that hold a row, and so about that of the rows that a subset holds.
        seed: of the subsets and of the training on them.
        chunk, mesh: see `jaxunlearn.batched`.

    Raises:
        ValueError: a regression study, or so few models that every row would always be in or always out.
    """
    _require_classes(study, 2, "memorisation")
    num_rows = _num_rows(study)
    generator = _generator(seed, "subsets")
    kept = round(fraction * num_models)
    if not 0 < kept < num_models:
        raise ValueError(f"every row must be in some subsets and out of others: {fraction} of {num_models} models is {kept}")
    present = np.argsort(generator.random((num_models, num_rows)), axis=0) < kept
    in_axes = (None, ju.Data(None, 0, None), None, 0)
    train = reusable(study.retrain(), in_axes=in_axes, chunk=chunk, mesh=mesh)
    data = study.data._replace(present=jnp.asarray(present, jnp.float32), extra={})
    keys = jax.random.split(jax.random.key(seed), num_models)
    result = at(train([(form(study.model), data, ju.empty_request(), keys)]).result, 0)
    ju.check(result, allow=[ju.Status.EMPTY_REQUEST])

    def correct(variables):
        logits = ju.audit.predict(study.model, variables, study.data.train)
        return jnp.argmax(logits, axis=-1) == study.data.train.targets

    hits = np.asarray(jax.jit(lambda variables: jax.lax.map(correct, variables))(result.variables))
    return (hits & present).sum(axis=0) / kept - (hits & ~present).sum(axis=0) / (num_models - kept)


def memorised_rows(
    study: Study, values: Float[np.ndarray, " n"], *, num_requests: int = 8, size: int = 32, request_seed: int
) -> tuple[Scenario, Scenario, Scenario]:
    """Requests of one size from the low, medium and high third of the rows by memorisation.

    Rows of the low third are known without having been seen, so there the right answer is to change nothing and doing nothing
    must pass: a negative control of the audit.

    Args:
        study: what the values were estimated on.
        values: see `memorisation`. Ties are broken at random.
        num_requests, size, request_seed: of each third.

    Raises:
        ValueError: values that are not one per row, or thirds smaller than a request.
    """
    num_rows = _num_rows(study)
    if np.shape(values) != (num_rows,):
        raise ValueError(f"expected one memorisation value for each of {num_rows} rows, got shape {np.shape(values)}")
    if size > num_rows // 3:
        raise ValueError(f"a third of {num_rows} rows holds no request of size={size}")
    generator = _generator(request_seed, "memorised rows")
    shuffled = generator.permutation(num_rows)
    thirds = np.array_split(shuffled[np.argsort(values[shuffled], kind="stable")], 3)
    low, medium, high = (
        _on_test(
            f"memorised {name}",
            study,
            ju.from_indices(study.data, [generator.choice(third, size, replace=False) for _ in range(num_requests)]),
        )
        for name, third in zip(("low", "medium", "high"), thirds, strict=True)
    )
    return low, medium, high


def classes(study: Study, *, num_requests: int = 8, together: int = 1, request_seed: int) -> Scenario:
    """All rows of one class, or of several together.

    Class forgetting sits between the two questions: retrained models are the reference on the forget set, and the accuracy
    on unseen rows of the class tells whether the concept is gone.

    Args:
        study: with more than two classes left after a request.
        num_requests: at most; there are no more than ways to choose classes.
        together: classes per request.
        request_seed: which classes.

    Raises:
        ValueError: a study with too few classes.
    """
    _require_classes(study, together + 2, "forgetting classes")
    present = np.unique(np.asarray(study.data.train.targets))
    generator = _generator(request_seed, "classes")
    chosen: list[list[int]] = []
    for _ in range(50 * num_requests):
        wanted = sorted(generator.choice(present, together, replace=False).tolist())
        if wanted not in chosen and len(chosen) < num_requests:
            chosen.append(wanted)
    requests = ju.from_classes(study.data, chosen, num_classes=study.num_classes)
    weights = np.stack([np.isin(study.test.targets, wanted) for wanted in chosen]).astype(np.float32)
    name, measure = ("class", "acc. on unseen of class") if together == 1 else ("classes", "acc. on unseen of classes")
    return Scenario(name, "a concept", study, requests, study.test, jnp.asarray(weights), measure)


def subclass(study: Study, *, num_requests: int = 8, clusters: int = 3, seed: int, request_seed: int) -> Scenario:
    """All rows of one kind within a class, e.g. one way of writing a digit; the label stays known from the other rows.

    Kinds are found by k-means within each class on the inputs, so nobody named them, and their borders are arbitrary. Unseen
    rows belong to the nearest centre of their class. Clusters with fewer than three rows on either side are not asked for.

    Args:
        study: a classification study.
        num_requests: at most; there are no more than clusters.
        clusters: per class.
        seed: of k-means.
        request_seed: which clusters.
    """
    from sklearn.cluster import KMeans

    _require_classes(study, 2, "subclass")
    train = np.asarray(study.data.train.inputs).reshape(_num_rows(study), -1)
    test = np.asarray(study.test.inputs).reshape(len(study.test.inputs), -1)
    kinds, unseen_kinds = np.empty(len(train), int), np.empty(len(test), int)
    for label in range(study.num_classes):
        members, others = (np.flatnonzero(np.asarray(x.targets) == label) for x in (study.data.train, study.test))
        means: Any = KMeans(clusters, n_init="auto", random_state=seed).fit(train[members])
        kinds[members] = label * clusters + means.predict(train[members])
        unseen_kinds[others] = label * clusters + means.predict(test[others])
    sizes = [np.bincount(x, minlength=study.num_classes * clusters) for x in (kinds, unseen_kinds)]
    usable = np.flatnonzero(np.minimum(*sizes) >= FEWEST_UNSEEN)
    chosen = _generator(request_seed, "subclasses").permutation(usable)[:num_requests]
    if len(chosen) == 0:
        raise ValueError(f"no cluster has {FEWEST_UNSEEN} training and test rows: lower clusters={clusters}")
    requests = ju.from_groups(study.data, kinds, [[kind] for kind in chosen])
    weights = jnp.asarray(unseen_kinds[None, :] == chosen[:, None], jnp.float32)
    return Scenario("subclass", "influence of examples", study, requests, study.test, weights, "acc. on unseen of kind")


def group(
    study: Study,
    *,
    num_requests: int = 8,
    num_persons: int = 20,
    strength: float = 0.3,
    seed: int,
    request_seed: int,
    audit_seed: int,
) -> Scenario:
    """All rows of a person.

    The persons are synthetic: training rows are dealt out to them at random, and a person's style is one fixed Gaussian pattern
    added to all of its inputs. Real people differ in which classes they contribute as well. Test rows are styled
    by persons of whom no row is in the training set, so a model that forgot a person treats its rows like those.

    Args:
        study: any.
        num_requests: persons to be forgotten, one per request.
        num_persons: of the training set, and as many others of the test set.
        strength: standard deviation of a style, in the unit of the inputs.
        seed: who has which rows, and the styles.
        request_seed: who is forgotten.
        audit_seed: styles and rows of the unseen persons.

    Raises:
        ValueError: fewer persons than requests.
    """
    if num_requests > num_persons:
        raise ValueError(f"{num_requests} requests for one person each need as many persons, got num_persons={num_persons}")

    def styled(examples: Examples, generator: np.random.Generator) -> tuple[Examples, np.ndarray]:
        inputs = np.asarray(examples.inputs)
        persons = generator.permutation(np.arange(len(inputs)) % num_persons)
        styles = strength * generator.standard_normal((num_persons, *inputs.shape[1:]))
        return examples._replace(inputs=jnp.asarray(inputs + styles[persons], inputs.dtype)), persons

    train, persons = styled(study.data.train, _generator(seed, "persons"))
    test, _ = styled(study.test, _generator(audit_seed, "unseen persons"))
    moved = study._replace(data=study.data._replace(train=train), test=test)
    chosen = _generator(request_seed, "requests of persons").permutation(num_persons)[:num_requests]
    return _on_test("group", moved, ju.from_groups(moved.data, persons, [[person] for person in chosen]))


def confusion(study: Study, *, num_pairs: int = 4, fraction: float = 0.5, seed: int) -> Scenario:
    """Interclass confusion: in a part of the training rows of two classes the labels are swapped; those rows are to go.

    Goel et al., 2022, arXiv 2201.06640. Several disjoint pairs are confused in one training set, and a request names
    the swapped rows of one pair. The measure is how often unseen rows of a pair are taken for the other class.

    Args:
        study: with right labels and at least two classes.
        num_pairs: at most; there are no more than half the classes.
        fraction: of the rows of each class of a pair.
        seed: which pairs and rows.
    """
    _require_classes(study, 2, "confusion")
    generator = _generator(seed, "confusion")
    num_pairs = min(num_pairs, study.num_classes // 2)
    pairs = generator.permutation(study.num_classes)[: 2 * num_pairs].reshape(num_pairs, 2)
    right = np.asarray(study.data.train.targets)
    targets, swapped = right.copy(), []
    for pair in pairs:
        rows = []
        for label, other in (pair, pair[::-1]):
            members = generator.permutation(np.flatnonzero(right == label))
            rows.append(members[: round(fraction * len(members))])
            targets[rows[-1]] = other
        swapped.append(np.sort(np.concatenate(rows)))
    truth = np.asarray(study.test.targets)
    partner = np.arange(study.num_classes)
    partner[pairs[:, 0]], partner[pairs[:, 1]] = pairs[:, 1], pairs[:, 0]
    moved = study._replace(data=_relabelled(study.data, targets))
    weights = np.stack([np.isin(truth, pair) for pair in pairs]).astype(np.float32)
    return Scenario(
        "confusion",
        "influence of examples",
        moved,
        ju.from_indices(moved.data, swapped),
        study.test._replace(targets=jnp.asarray(partner[truth], right.dtype)),
        jnp.asarray(weights),
        "cross-class errors",
    )


def with_trigger(
    images: Float[np.ndarray, "b h w c"], corner: int, size: int, value: float = 1.0
) -> Float[np.ndarray, "b h w c"]:
    """Images with a square patch in one of their corners: 0 top left, 1 top right, 2 bottom left, 3 bottom right."""
    patched = np.array(images)
    height, width = patched.shape[1:3]
    top, left = (0, height - size)[corner // 2], (0, width - size)[corner % 2]
    patched[:, top : top + size, left : left + size] = value
    return patched


def backdoor(
    study: Study, *, num_attackers: int = 4, fraction: float = 0.05, size: int | None = None, value: float = 1.0, seed: int
) -> Scenario:
    """Cleansing of a backdoor: rows with a trigger and a wrong label were slipped into the training set; they are to go.

    Gu, Dolan-Gavitt, Garg, 2017, arXiv 1708.06733. Every attacker has a corner for a patch and a target class of its own; a
    request names all poisoned rows of one attacker, and the other backdoors stay. The measure is the attack's success:
    the share of unseen rows not of the target class that are taken for it once they carry the patch.

    Args:
        study: images with right labels.
        num_attackers: at most four, and no more than classes.
        fraction: of the training rows that each attacker poisons, none of its target class.
        size: of the patch, by default a quarter of the height for 8 pixels and an eighth for larger images.
        value: of its pixels.
        seed: targets and rows.

    Raises:
        ValueError: inputs that are not images, more attackers than corners or classes.
    """
    _require_classes(study, 2, "backdoor")
    inputs, right = np.array(study.data.train.inputs), np.asarray(study.data.train.targets)
    if inputs.ndim != 4:
        raise ValueError(f"a trigger is a patch of an image [h, w, channels], got inputs of shape {inputs.shape[1:]}")
    if not 1 <= num_attackers <= min(4, study.num_classes):
        raise ValueError(f"expected 1 to {min(4, study.num_classes)} attackers, got num_attackers={num_attackers}")
    size = max(2, inputs.shape[1] // 8) if size is None else size
    generator = _generator(seed, "backdoor")
    labels = generator.permutation(study.num_classes)[:num_attackers]
    order = generator.permutation(len(right))
    targets, free, poisoned = right.copy(), np.ones(len(right), bool), []
    for corner, label in enumerate(labels):
        rows = order[free[order] & (right[order] != label)][: round(fraction * len(right))]
        inputs[rows], targets[rows], free[rows] = with_trigger(inputs[rows], corner, size, value), label, False
        poisoned.append(np.sort(rows))
    data = _relabelled(study.data, targets)
    moved = study._replace(data=data._replace(train=data.train._replace(inputs=jnp.asarray(inputs))))
    test, truth = np.asarray(study.test.inputs), np.asarray(study.test.targets)
    triggered = np.concatenate([with_trigger(test, corner, size, value) for corner in range(num_attackers)])
    unseen = Examples(jnp.asarray(triggered), jnp.asarray(np.repeat(labels, len(truth)), right.dtype))
    weights = np.zeros((num_attackers, num_attackers, len(truth)), np.float32)
    for attacker, label in enumerate(labels):
        weights[attacker, attacker] = truth != label
    return Scenario(
        "backdoor",
        "influence of examples",
        moved,
        ju.from_indices(moved.data, poisoned),
        unseen,
        jnp.asarray(weights.reshape(num_attackers, -1)),
        "attack success",
    )


Name: TypeAlias = Literal["random", "memorised", "class", "classes", "subclass", "group", "confusion", "backdoor", "sequential"]
NAMES: dict[Name, tuple[str, ...]] = {  # what `build` takes, and the names of the scenarios that it returns
    "random": ("random",),
    "memorised": ("memorised low", "memorised medium", "memorised high"),
    "class": ("class",),
    "classes": ("classes",),
    "subclass": ("subclass",),
    "group": ("group",),
    "confusion": ("confusion",),
    "backdoor": ("backdoor",),
    "sequential": ("sequential",),
}
ON_CLASSES = ("class", "classes")  # requests are for whole classes


def why_not(name: Name, num_classes: int, input_shape: tuple[int, ...]) -> str | None:
    """Why a scenario does not fit a data set, None if it does."""
    if num_classes == 0 and name in ("memorised", "class", "classes", "subclass", "confusion", "backdoor"):
        return "needs class labels"
    least = {"class": 3, "classes": 4}.get(name, 0)
    if num_classes < least:
        return f"needs at least {least} classes: with {num_classes} too few are left to tell apart"
    if name == "backdoor" and len(input_shape) != 3:
        return "needs images to put a patch on"
    return None


def build(
    name: Name,
    noisy: Study,
    clean: Study,
    *,
    num_requests: int = 8,
    seed: int,
    request_seed: int,
    audit_seed: int,
    values: Callable[[], Float[np.ndarray, " n"]],
) -> tuple[Scenario, ...]:
    """The scenarios of one name (see `NAMES`) at their default sizes, shrunk for small training sets.

    Args:
        name: a key of `NAMES`.
        noisy: the study with some wrong labels, whose rows a model can only know by heart.
        clean: the same rows with right labels, for scenarios that spoil labels themselves.
        num_requests: at most; scenarios that change the training set have up to four, streams half as many.
        seed, request_seed, audit_seed: see above.
        values: called for the memorisation values of `noisy`.
    """
    rows = _num_rows(noisy)
    few = min(4, num_requests)
    most = min(64, rows // 6)
    if name == "random":
        return (random_rows(noisy, num_requests=num_requests, sizes=(min(8, most), most), request_seed=request_seed),)
    if name == "memorised":
        return memorised_rows(noisy, values(), num_requests=num_requests, size=min(32, rows // 6), request_seed=request_seed)
    if name == "class":
        return (classes(noisy, num_requests=num_requests, request_seed=request_seed),)
    if name == "classes":
        return (classes(noisy, num_requests=num_requests, together=2, request_seed=request_seed),)
    if name == "subclass":
        return (subclass(noisy, num_requests=num_requests, seed=seed, request_seed=request_seed),)
    if name == "group":
        seeds = {"seed": seed, "request_seed": request_seed, "audit_seed": audit_seed}
        return (group(noisy, num_requests=num_requests, **seeds),)
    if name == "confusion":
        return (confusion(clean, num_pairs=few, seed=seed),)
    if name == "backdoor":
        return (backdoor(clean, num_attackers=few, seed=seed),)
    if name == "sequential":
        return (sequential(noisy, num_streams=few, size=min(12, rows // 12), request_seed=request_seed),)
    raise ValueError(f"unknown scenario {name!r}: choose from {', '.join(NAMES)}")


def _num_rows(study: Study) -> int:
    return study.data.present.shape[0]


def _require_classes(study: Study, least: int, what: str) -> None:
    if study.num_classes < least:
        raise ValueError(f"{what} needs at least {least} classes, this study has {study.num_classes}")


def _relabelled(data: ju.Data, targets: Int[np.ndarray, " n"]) -> ju.Data:
    return data._replace(train=data.train._replace(targets=jnp.asarray(targets)))
