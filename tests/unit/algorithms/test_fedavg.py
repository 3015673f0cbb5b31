from __future__ import annotations

import numpy as np
import pytest

from fedvsr.algorithms.fedavg import Algorithm, Config
from fedvsr.messages import ClientReport, Round


def test_weights_and_average_by_hand() -> None:
    # n = 30 and 10 samples: weights 3/4 and 1/4; (4, 0) and (0, 8) average to (3, 2).
    algorithm = Algorithm(Config())
    reports = [ClientReport(i, 1, n, 1, 9.0 * i + 1, 0.1, 0.0) for i, n in enumerate((30, 10))]
    weights = algorithm.weights(reports, 10)
    assert weights == pytest.approx([0.75, 0.25])
    vectors = [np.array([4, 0], np.float32), np.array([0, 8], np.float32)]
    uploads = [{"params": vector} for vector in vectors]
    result = algorithm.aggregate(uploads, weights, {"params": vectors[0]}, Round(1, 3, 2, 2, ()))
    np.testing.assert_allclose(result.vectors["params"], [3, 2])
