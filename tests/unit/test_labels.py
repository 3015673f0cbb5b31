"""Tags and notes of runs: given, taken, found again, kept apart from what the run writes."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedvsr.cli import app
from fedvsr.errors import DamagedError, UserError
from fedvsr.labels import FILE, Labels, add_tags, read_labels, remove_tags, write_note
from fedvsr.runs.run import locked
from tests.unit.report.synthetic import write_run


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for name in ("first", "second"):
        write_run(tmp_path, name)
    return tmp_path


def fedvsr(results: Path, *words: str) -> str:
    done = CliRunner().invoke(app, [*words, "--out", str(results)])
    if done.exception:
        raise done.exception
    return done.stdout


def test_tags_are_given_taken_and_printed(results: Path) -> None:
    assert fedvsr(results, "tag", "first") == "first: no tags\n"
    assert fedvsr(results, "tag", "first", "paper", "a/b", "paper") == "first: a/b, paper\n"
    assert fedvsr(results, "tag", "fi", "größe") == "first: a/b, größe, paper\n"
    assert fedvsr(results, "tag", "first", "--remove", "a/b", "größe") == "first: paper\n"
    assert fedvsr(results, "tag", "first") == "first: paper\n"
    assert read_labels(results / "second").tags == ()


def test_a_note_is_written_replaced_printed_and_deleted(results: Path) -> None:
    assert fedvsr(results, "note", "first") == "first: no note\n"
    fedvsr(results, "note", "first", "lr too high?")
    fedvsr(results, "tag", "first", "paper")
    assert fedvsr(results, "note", "first") == "lr too high?\n"
    shown = fedvsr(results, "show", "first")
    assert "\ntags: paper\nnote: lr too high?\n" in shown
    fedvsr(results, "note", "first", "[bold]no[/bold]")
    assert "note: [bold]no[/bold]\n" in fedvsr(results, "show", "first")
    assert fedvsr(results, "note", "first", "--remove") == "first: no note\n"
    assert read_labels(results / "first") == Labels(("paper",))


def test_runs_are_listed_by_tag(results: Path) -> None:
    assert "tags" not in fedvsr(results, "list")
    add_tags(results / "first", ["paper", "table-2"])
    add_tags(results / "second", ["paper"])
    write_note(results / "second", "good")
    head, *rows = fedvsr(results, "list", "--tag", "paper").splitlines()
    assert head.split()[-1] == "tags"
    assert [row.split()[0] for row in rows] == ["first", "second"]
    assert rows[0].endswith("paper, table-2")
    listed = fedvsr(results, "list", "--tag", "paper", "--tag", "table-2", "--json")
    assert [run["run_id"] for run in json.loads(listed)] == ["first"]
    assert json.loads(listed)[0]["tags"] == ["paper", "table-2"]
    assert json.loads(fedvsr(results, "list", "--json"))[1]["note"] == "good"
    assert fedvsr(results, "list", "--tag", "pape") == "no run fits\n"


@pytest.mark.parametrize("tag", ["", "two words", "-x", "a,b", "x" * 65, "a\x1b[1m"])
def test_what_is_no_tag(tag: str, results: Path) -> None:
    with pytest.raises(UserError, match="is no tag; a tag begins with a letter"):
        add_tags(results / "first", [tag])
    assert not (results / "first" / FILE).exists()


def test_a_note_is_text_of_bounded_length(results: Path) -> None:
    write_note(results / "first", "two\nlines, and a\ttab")
    for note in ("\x1b[2J", "x" * 10_001):
        with pytest.raises(UserError, match="a note"):
            write_note(results / "first", note)
    assert read_labels(results / "first").note == "two\nlines, and a\ttab"


def test_a_missing_tag_is_not_taken(results: Path) -> None:
    add_tags(results / "first", ["paper", "old"])
    with pytest.raises(UserError, match=r"no tag 'papr'; did you mean 'paper'\? \(it has: old, p"):
        remove_tags(results / "first", ["old", "papr"])
    assert read_labels(results / "first").tags == ("old", "paper")
    with pytest.raises(UserError, match="name the tags"):
        fedvsr(results, "tag", "first", "--remove")


def test_a_run_under_way_takes_labels(results: Path) -> None:
    with locked(results / "first"):
        add_tags(results / "first", ["paper"])
    assert read_labels(results / "first").tags == ("paper",)


def test_changes_at_once_are_all_kept(results: Path) -> None:
    tags = [f"t{i}" for i in range(12)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda tag: add_tags(results / "first", [tag]), tags))
    assert read_labels(results / "first").tags == tuple(sorted(tags))


@pytest.mark.parametrize("text", ["", "[]", '{"tags": ["a b"], "note": ""}', '{"tags": []}'])
def test_damaged_labels_are_named_and_hide_no_run(
    text: str, results: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (results / "first" / FILE).write_text(text)
    with pytest.raises(DamagedError, match=r"labels\.json .*; delete labels\.json, then give"):
        fedvsr(results, "tag", "first", "paper")
    assert "first" in fedvsr(results, "list")
    assert "finished" in fedvsr(results, "show", "first")
    assert len([r for r in caplog.messages if "labels.json" in r]) == 2
    (results / "first" / FILE).unlink()
    fedvsr(results, "tag", "first", "paper")


def test_an_edited_file_is_noticed(results: Path) -> None:
    add_tags(results / "first", ["paper"])
    path = results / "first" / FILE
    path.write_text(path.read_text().replace("paper", "table"))
    with pytest.raises(DamagedError, match="was edited by hand"):
        read_labels(results / "first")
