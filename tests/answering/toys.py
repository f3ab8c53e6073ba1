"""A convex head of forty rows, its service, and keys."""

import json
from functools import cache

import jax
import numpy as np
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

import jaxunlearn as ju

ROWS = 40
IDS = [f"person {row // 2}" if row < 8 else f"person {row}" for row in range(ROWS)]  # eight rows are of four people
PROMISED = {"epsilon": 1.0, "delta": 1e-5, "extractor": "none", "adaptive": False, "sensitivity": 1e-2}
KEY = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


@cache
def problem():
    return ju.convex.logistic(0.05)


@cache
def toy(ids=tuple(IDS), **options):
    rng = np.random.default_rng(0)
    rows = ju.convex.feature_rows(rng.normal(size=(len(ids), 3)))
    data = ju.training_data(rows, rng.integers(0, 2, len(ids)).astype(np.int32))
    variables = ju.convex.fit(problem(), data)
    return ju.answering.convex_setup(
        problem(), variables, data, list(ids), capacity=16, groups={"parity": [row % 2 for row in range(len(ids))]}, **PROMISED
    )._replace(**options)


def setup():
    """For the command line."""
    return toy()


def keys(folder):
    """Files with a private and a public key."""
    private, public = folder / "release.pem", folder / "release.pub"
    private.write_bytes(
        KEY.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    private.chmod(0o600)
    public.write_bytes(
        KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


def ask(path, *asked):
    """Append requests; what is text already goes as it is."""
    with open(path, "a") as file:
        for each in asked:
            file.write(each if isinstance(each, str) else json.dumps(each) + "\n")


def ids(request, *names):
    return {"request": request, "ids": list(names)}


def retrained(chosen, *names):
    """Weights of the head that never saw some people."""
    rows = [row for row, name in enumerate(chosen.record_ids) if name in names]
    data = chosen.data._replace(present=jax.numpy.asarray(np.where(np.isin(np.arange(len(chosen.record_ids)), rows), 0.0, 1.0)))
    return np.asarray(ju.convex.fit(problem(), data).params["kernel"])
