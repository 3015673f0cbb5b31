from __future__ import annotations

import pytest

from fedvsr.errors import UserError
from fedvsr.tuning.expressions import evaluate, names_in

VALUES = {"algorithm.lambda_vsr": 0.9, "local.epochs": 5, "name": "x", "flag": True}


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("1 - algorithm.lambda_vsr", 0.1),  # 0.09999999999999998 in binary
        ("1656 * local.epochs", 8280),
        ("-(2 + 4) / local.epochs + +1", -0.2),
        ("2", 2),
    ],
)
def test_arithmetic(expression: str, value: float) -> None:
    assert evaluate(expression, VALUES) == value


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("1 - algorithm.lamda_vsr", "did you mean 'algorithm.lambda_vsr'"),
        ("__import__('os').getcwd()", r"only \+ - \* /"),
        ("(lambda: 1)()", r"only \+ - \* /"),
        ("local.epochs ** 99999999", r"only \+ - \* /"),
        ("[1][0]", r"only \+ - \* /"),
        ("'a' * local.epochs", r"only \+ - \* /"),
        ("True + 1", r"only \+ - \* /"),
        ("name + 1", "name = 'x' is not a number"),
        ("flag + 1", "is not a number"),
        ("1 / (5 - local.epochs)", "divides by zero"),
        ("1 -", "is not arithmetic"),
        ("1 - \0", "is not arithmetic"),
        ("-" * 300 + "1", "is longer than 200"),
    ],
)
def test_anything_else_is_refused(expression: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(expression, VALUES)


def test_names_in_an_expression() -> None:
    assert names_in("1 - (local.epochs + a) * -algorithm.b") == ["local.epochs", "a", "algorithm.b"]
