"""What a service is told by its user: model, data, ids, how to remove and how to certify. A small Python file returns it."""

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from jaxunlearn import checks
from jaxunlearn.answering.asked import Lookup
from jaxunlearn.service.fingerprints import RecordId
from jaxunlearn.types import Data, ForgetRequest, Model, UnlearnFn, Variables


class Setup(NamedTuple):
    """One model that forgets on request.

    A file for the command line, `--setup heads.py:setup`:

        import jax, jaxunlearn as ju

        def setup():
            rows, labels, ids = ...
            data = ju.training_data(ju.convex.feature_rows(rows), labels)
            problem = ju.convex.softmax(1e-2, 10)
            return ju.answering.convex_setup(
                problem, ju.convex.fit(problem, data), data, ids, epsilon=1.0, delta=1e-5, extractor="none", adaptive=False
            )
    """

    variables: Variables  # the trained model; once something was removed, only its tree, shapes and dtypes count
    data: Data  # rows that were removed may be missing or blank, once a release without them is out
    record_ids: Sequence[RecordId]  # of every row, [n]; rows of one person may share theirs, and go together
    unlearn: UnlearnFn  # jit it: the service does not
    key: PRNGKeyArray
    prepare: Callable[[Variables, Data, PRNGKeyArray], Data] | None = None  # jit it, too; see `jaxunlearn.prepare`
    certify: Callable[..., Any] | None = None  # (result, data, request) -> Certificate; None for a method without one
    check: Callable[[Data, ForgetRequest], None] | None = None  # raises ValueError for what may not be removed together
    capacity: int | None = None  # slots of a window's request; None for the smallest bucket that holds it
    groups: Mapping[str, Sequence[Any]] = {}  # columns that requests may name, each with a text or an integer per row
    features: Float[np.ndarray, "n d"] | None = None  # in which near-duplicates are looked for
    near: float = 0.99  # smallest cosine of them
    model: Model | None = None  # for the loss in a dry run
    budget: tuple[float, float] | None = None  # epsilon and delta that all releases may cost together
    purge: bool = True  # delete un-noised weights from before a window once its release is out
    retract: bool = False  # delete releases from before a window: they were trained on its rows


def load(source: str) -> Setup:
    """Run a user's file.

    Args:
        source: `FILE.py:function`; the function takes nothing and returns a `Setup`.

    Returns:
        The setup.

    Raises:
        ValueError, TypeError: no such form, no such function, or something else came back.
        FileNotFoundError: there is no such file.

    Example:
        >>> from jaxunlearn.answering.setup import load
        >>> load("heads.py:setup")  # doctest: +SKIP
    """
    file, colon, name = source.rpartition(":")
    if not colon or not file or not name.isidentifier():
        raise ValueError(f"expected FILE.py:function, got {source!r}")
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"there is no setup at {path}")
    spec = importlib.util.spec_from_file_location("jaxunlearn_setup", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is no Python file: give FILE.py:function")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and typing look a module up by its name
    spec.loader.exec_module(module)
    make = getattr(module, name, None)
    if not callable(make):
        raise ValueError(f"{path} has no function {name!r}")
    made: Any = make()
    return checked(made)


def checked(setup: Setup) -> Setup:
    """A setup, once it is looked at.

    Raises:
        TypeError: something else than a `Setup`, or a method that is not finished.
        ValueError: another number of ids than of rows, or options out of range.
    """
    if not isinstance(setup, Setup):
        raise TypeError(f"expected a jaxunlearn.answering.Setup, got {type(setup).__name__}")
    checks.require_unlearn_fn(setup.unlearn, "answering.Setup")
    checks.check_key(setup.key)
    rows = len(setup.data.present)
    if len(setup.record_ids) != rows:
        raise ValueError(f"expected one record id for each of the {rows} rows, got {len(setup.record_ids)}")
    if setup.features is not None and np.shape(setup.features)[:1] != (rows,):
        raise ValueError(f"expected features [{rows}, d], got {np.shape(setup.features)}")
    if setup.capacity is not None:
        checks.require_count("capacity", setup.capacity)
    return setup


def convex_setup(
    problem: Any,
    variables: Variables,
    data: Data,
    record_ids: Sequence[RecordId],
    *,
    epsilon: float,
    delta: float,
    extractor: str,
    adaptive: bool,
    sensitivity: float | None = None,
    seed: int = 0,
    **options: Any,
) -> Setup:
    """The setup of a convex head: Newton's removal, certified and noised.

    Args:
        problem: see `jaxunlearn.convex`.
        variables: trained by `convex.fit`.
        data: its rows.
        record_ids: of every row.
        epsilon, delta: of every release.
        extractor, adaptive: declared to `certificates.certify`.
        sensitivity: distance to the retrained head that counts as removed; None measures it per release.
        seed: of the key.
        options: further fields of `Setup`.

    Returns:
        `Setup`.

    Raises:
        ValueError: as `Setup`'s.

    Example:
        >>> rows = jaxunlearn.training_data(jaxunlearn.convex.feature_rows(data.train.inputs), data.train.targets)
        >>> problem = jaxunlearn.convex.softmax(0.1, 3)
        >>> promised = {"epsilon": 1.0, "delta": 1e-5, "extractor": "none", "adaptive": False}
        >>> setup = convex_setup(problem, jaxunlearn.convex.fit(problem, rows), rows, range(60), **promised)
        >>> setup.purge
        True
    """
    from functools import partial

    from jaxunlearn import convex
    from jaxunlearn.certificates import DeleteThenNoise, certify

    mechanism = DeleteThenNoise() if sensitivity is None else DeleteThenNoise(sensitivity)
    promised = {"epsilon": epsilon, "delta": delta, "mechanism": mechanism, "extractor": extractor, "adaptive": adaptive}
    found = Setup(
        variables,
        data,
        record_ids,
        jax.jit(convex.newton_removal(problem)),
        jax.random.key(seed),
        certify=partial(certify, problem=problem, **promised),
        check=partial(convex.check_request, problem),
        model=problem.model,
    )
    return checked(found._replace(**options))


def lookup_of(setup: Setup) -> Lookup:
    """Where requests are looked up."""
    return Lookup(setup.record_ids, setup.groups)
