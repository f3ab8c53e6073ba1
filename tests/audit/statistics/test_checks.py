"""What no metric may be computed from."""

import ml_dtypes
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn.audit.statistics.checks import require_disjoint

ROWS = np.random.default_rng(0).normal(size=(20, 3))
LABELS = np.arange(20) % 3


@pytest.mark.parametrize("inputs", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("labels", [np.int64, np.int32, np.uint8, np.float32])
def test_rows_are_the_same_whatever_their_dtypes(inputs, labels):
    members = ju.Examples(ROWS.astype(np.float32), LABELS.astype(np.int32))
    others = ju.Examples(ROWS[[4]].astype(inputs), LABELS[[4]].astype(labels))
    with pytest.raises(ValueError, match="1 non-members are members as well"):
        require_disjoint("run", members=members, nonmembers=others)
    with pytest.raises(ValueError, match="1 non-members are members as well"):
        require_disjoint("run", members=others, nonmembers=members)
    require_disjoint("run", members=members, nonmembers=others._replace(inputs=(ROWS[[4]] + 1).astype(inputs)))
    require_disjoint("run", members=members, nonmembers=others._replace(targets=others.targets + labels(3)))


def test_zero_and_minus_zero_are_one_number():
    members = ju.Examples(np.zeros((1, 2)), np.zeros(1, int))
    with pytest.raises(ValueError, match="are members as well"):
        require_disjoint("run", members=members, nonmembers=members._replace(inputs=-members.inputs))
