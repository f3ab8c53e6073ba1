import numpy as np
import pytest

import jaxunlearn as ju


def test_entanglement_by_hand():
    features, forgotten = np.array([[0.0], [2], [10], [12], [14]]), np.array([1, 1, 0, 0, 0], bool)
    # Within: 1 and 8/3. Means 1 and 12; of all 7.6; of the two 6.5.
    assert float(ju.audit.entanglement(features, forgotten)) == pytest.approx((1 + 8 / 3) / ((6.6**2 + 4.4**2) / 2))
    assert float(ju.audit.entanglement(features, forgotten, reference=True)) == pytest.approx((1 + 8 / 3) / 5.5**2)
    with pytest.raises(ValueError, match="entanglement: expected features"):
        ju.audit.entanglement(np.ones((3, 2)), np.ones(2, bool))
