"""Makes oracle.json with an independent implementation: curvlinops on PyTorch.

    python -m venv oracle && oracle/bin/pip install torch curvlinops-for-pytorch==3.0.1
    oracle/bin/python tests/curvature/oracle.py

A network 5-4-3 with tanh, cross-entropy, 12 rows, float64; products of its Gauss-Newton matrix, K-FAC and EK-FAC, all with
exact labels, with three vectors.
"""

import json
from pathlib import Path

import numpy as np
import torch
from curvlinops import EKFACLinearOperator, GGNLinearOperator, KFACLinearOperator

torch.set_default_dtype(torch.float64)
rng = np.random.default_rng(0)
sizes = {"first": (5, 4), "first_bias": (4,), "last": (4, 3), "last_bias": (3,)}  # kernels [inputs, outputs]
weights = {name: 0.7 * rng.normal(size=shape) for name, shape in sizes.items()}
inputs, targets = rng.normal(size=(12, 5)), rng.integers(0, 3, 12)
vectors = [{name: rng.normal(size=shape) for name, shape in sizes.items()} for _ in range(3)]

first, last = torch.nn.Linear(5, 4), torch.nn.Linear(4, 3)
network = torch.nn.Sequential(first, torch.nn.Tanh(), last)
order = {"first": first.weight, "first_bias": first.bias, "last": last.weight, "last_bias": last.bias}
with torch.no_grad():
    for name, parameter in order.items():
        parameter.copy_(torch.tensor(weights[name].T))

params = list(order.values())
data = [(torch.tensor(inputs), torch.tensor(targets))]
loss = torch.nn.CrossEntropyLoss(reduction="mean")
exact = {"fisher_type": "type-2", "separate_weight_and_bias": False}
operators = {
    "ggn": GGNLinearOperator(network, loss, params, data),
    "kfac": KFACLinearOperator(network, loss, params, data, **exact),
    "ekfac": EKFACLinearOperator(network, loss, params, data, **exact),
}


def product(operator, vector):
    columns = [torch.tensor(vector[name].T.copy()) for name in order]
    return {name: x.detach().numpy().T.tolist() for name, x in zip(order, operator @ columns, strict=True)}


found = {
    "params": {name: x.tolist() for name, x in weights.items()},
    "inputs": inputs.tolist(),
    "targets": targets.tolist(),
    "vectors": [{name: x.tolist() for name, x in vector.items()} for vector in vectors],
    "products": {name: [product(operator, vector) for vector in vectors] for name, operator in operators.items()},
}
Path(__file__).with_suffix(".json").write_text(json.dumps(found) + "\n")
