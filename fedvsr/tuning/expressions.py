"""Arithmetic in sweep files: + - * / over numbers and names of settings."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Iterator, Mapping

from fedvsr.errors import UserError
from fedvsr.lookup import did_you_mean
from fedvsr.section import short

_OPERATIONS: dict[type[ast.operator | ast.unaryop], Callable[..., float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
# Nobody writes longer ones by hand, and a deep one would exhaust the stack.
_MAX_CHARACTERS = 200


def evaluate(expression: str, values: Mapping[str, object]) -> float:
    """The value of e.g. `1 - algorithm.lambda_vsr`, with names looked up in `values`.

    It is rounded to 10 significant digits, so that `1 - 0.9` is 0.1.

    Raises:
        UserError: the expression is not arithmetic, has a name that is unknown or not a number, or
            divides by zero, or the value is not finite.
    """
    try:
        value = tidy(_evaluate(_parse(expression), values))
        if not math.isfinite(value):
            raise OverflowError
    except ZeroDivisionError:
        raise UserError(f"{short(expression)} divides by zero") from None
    except OverflowError:
        raise UserError(f"{short(expression)} is beyond the largest number") from None
    except UserError as error:
        raise UserError(f"{short(expression)}: {error}") from None
    return value


def names_in(expression: str) -> list[str]:
    """The names in an expression, in order.

    Raises:
        UserError: it is not arithmetic.
    """
    try:
        return list(_names(_parse(expression)))
    except UserError as error:
        raise UserError(f"{short(expression)}: {error}") from None


def tidy(value: float) -> float:
    """A float rounded to 10 significant digits, without the errors of binary arithmetic."""
    return float(f"{value:.10g}")


def _parse(expression: str) -> ast.expr:
    if len(expression) > _MAX_CHARACTERS:
        raise UserError(f"is longer than {_MAX_CHARACTERS} characters")
    try:
        return ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise UserError("is not arithmetic") from None


def _evaluate(node: ast.expr, values: Mapping[str, object]) -> float:
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        left, right = _evaluate(node.left, values), _evaluate(node.right, values)
        return _OPERATIONS[type(node.op)](left, right)
    if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATIONS:
        return _OPERATIONS[type(node.op)](_evaluate(node.operand, values))
    if isinstance(node, ast.Constant) and _is_number(node.value):
        return float(node.value)  # type: ignore[arg-type]
    name = _name(node)
    if name not in values:
        hint = did_you_mean(name, values) or f" (there are: {', '.join(values)})"
        raise UserError(f"{name} is not a known setting{hint}")
    value = values[name]
    if not _is_number(value):
        raise UserError(f"{name} = {value!r} is not a number")
    return float(value)  # type: ignore[arg-type]


def _names(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.BinOp):
        yield from _names(node.left)
        yield from _names(node.right)
    elif isinstance(node, ast.UnaryOp):
        yield from _names(node.operand)
    elif not isinstance(node, ast.Constant):
        yield _name(node)


def _name(node: ast.expr) -> str:
    """The dotted name of a node; Python parses `algorithm.alpha` as an attribute of a name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    raise UserError("only + - * / ( ), numbers and names of settings are allowed")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
