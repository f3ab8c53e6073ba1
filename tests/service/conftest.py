"""The small ledger of `tests.crashes`, open for writing."""

import gc
import time

import pytest

from jaxunlearn.service.ledger import Ledger
from tests.crashes import IDS, SALT, identity, problem


@pytest.fixture(scope="module")
def about():
    return identity()


@pytest.fixture(scope="module")
def toy():
    return problem()


@pytest.fixture
def book(tmp_path, about):
    with Ledger.create(tmp_path / "ledger", IDS, salt=SALT, **about) as opened:
        yield opened


@pytest.fixture
def leftovers():
    """Collects coroutines and threads that orbax leaves behind when it fails, while their warnings are still ignored."""
    gc.freeze()  # what was there before is not searched: it is gigabytes of programs, at two seconds each time
    yield
    time.sleep(0.1)
    gc.collect()
    gc.unfreeze()
