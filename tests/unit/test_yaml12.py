from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

import fedvsr
from fedvsr.errors import UserError
from fedvsr.yaml12 import dump, load, load_file


@pytest.mark.parametrize(
    ("text", "value"),
    [
        # Numbers of YAML 1.2, and text that YAML 1.1 took for numbers, dates and booleans.
        ("8", 8),
        ("-0", 0),
        ("+1", 1),
        ("0o17", 15),
        ("0x1F", 31),
        ("1e-3", 0.001),
        ("5.", 5.0),
        (".5", 0.5),
        ("-.inf", -math.inf),
        ("010", "010"),
        ("00", "00"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("2020-13-45", "2020-13-45"),
        ("2020-01-01", "2020-01-01"),
        ("yes", "yes"),
        ("off", "off"),
        ("true", True),
        ("~", None),
        ("", None),
        ("=", "="),
        ("!!str 8", "8"),
        ("%YAML 1.1\n---\n010", "010"),
    ],
)
def test_plain_values_are_those_of_yaml_1_2(text: str, value: object) -> None:
    read = load(text, "here")
    assert (read, type(read)) == (value, type(value))


def test_aliases_and_merges_are_read() -> None:
    text = "a: &a {x: 1, y: 2}\nb: *a\nc: {<<: *a, y: 3}\n"
    assert load(text, "here") == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 1, "y": 2},
        "c": {"x": 1, "y": 3},
    }


def test_what_is_written_reads_the_same() -> None:
    text = ["010", "1e-3", "0o7", "0b1", "1:30", "yes", "=", "<<", "2020-01-01", "null", "", "~"]
    text += ["1_0", "a\nb", "-", "+1", ".5", "5.", "caf\xe9", "\U0001f600", "[bold]"]
    value = {"text": text, "numbers": [1e-5, 1e20, math.inf, -3, 0.1], "rest": [None, True]}
    assert load(dump(value), "here") == value
    assert load(dump(value, flow=True), "here") == value


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: caf\xc3\xa9\r\n")
    assert load_file(path) == {"a": 1, "b": "caf\xe9"}
    load_file(path)["a"] = 2
    assert load_file(path)["a"] == 1, "what a caller changes is its own"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "here line 3: a is given twice; leave one of them out"),
        ("{a: {b: 1, b: 1}}", "here: b is given twice"),
        ("a: &a [*a]", "here: *a holds itself"),
        ("a: !!int x", "here: the tag !!int is not supported"),
        ("a: !!python/name:os.system", "the tag !!python/name:os.system is not supported"),
        ("- ! 1", "the tag ! is not supported"),
        ("- !mine 1", "the tag !mine is not supported"),
        ("1: 2", "the key '1' is not text; write it in quotes"),
        ("[a]: 2", "the key '[...]' is not text"),
        ('"a\\nb": 1', "a key has several lines"),
        ("9" * 5000, "a number has more than 40 digits"),
        ("0x" + "f" * 5000, "a number has more than 40 digits"),
        ("[" * 100_000, "more than 40 lists and sections in one another"),
        ("- " * 5000 + "a", "more than 40 lists and sections in one another"),
        ("a: *b", "found undefined alias 'b'"),
        ('a: "\\0"', "text holds a null character"),
        ("a: \0", "it holds the character '\\x00'"),
        ("a: [", "here is not valid YAML: expected the node content"),
        ("a: 1\n---\nb: 1", "here line 2 is not valid YAML: but found another document"),
    ],
)
def test_a_refusal_says_where_and_why(text: str, message: str) -> None:
    with pytest.raises(UserError) as refused:
        load(text, "here")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def nested(level: str, first: str = "x") -> str:
    """Twenty anchors, each of which holds the one before."""
    lines = [f"a0: &b0 [{first}]"]
    return "\n".join(
        lines + [f"a{i}: &b{i} {level.replace('B', f'*b{i - 1}')}" for i in range(1, 20)]
    )


@pytest.mark.parametrize(
    "text",
    [
        nested("[B,B,B,B,B,B,B,B,B,B]"),
        nested("{<<: [B,B,B,B,B,B,B,B,B,B]}").replace("[x]", "{a: x}"),
        nested("[[[B]]]"),
        nested("[B,B]", first="x" * 100_000),
    ],
    ids=["lists", "merges", "levels", "text"],
)
def test_aliases_that_stand_for_too_much_are_refused_at_once(text: str) -> None:
    with pytest.raises(UserError, match=r"aliases stand for millions|more than 40 lists"):
        load(text, "here")


def test_there_is_one_reader_of_yaml() -> None:
    package = Path(str(fedvsr.__file__)).parent
    users = [
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if re.search(r"^\s*(import|from) yaml\b", path.read_text(), re.MULTILINE)
    ]
    assert users == ["yaml12.py"]
