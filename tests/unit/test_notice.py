"""The command `on_finish`: what it is told, and that it never harms the run that calls it."""

from __future__ import annotations

import json
import shlex
import sys
import time
from pathlib import Path

import pytest

from fedvsr import notice
from fedvsr.config import load_config
from fedvsr.errors import UserError
from fedvsr.federation.executors import SerialExecutor
from fedvsr.notice import FACTS, notify
from fedvsr.runs import launch as launching
from fedvsr.runs.events import RoundRecorded
from fedvsr.runs.launch import launch, prepare_data
from fedvsr.runs.run import create_run
from fedvsr.tuning.finish import noticed
from fedvsr.tuning.sweep import load_sweep
from tests.unit.cli.test_tune import killed_sweep


def telling(path: Path, *words: str) -> str:
    """A command that appends its words, and the facts that it is told, to a file."""
    code = (
        "import json, os, sys; "
        "facts = {k: v for k, v in os.environ.items() if k.startswith('FEDVSR_')}; "
        "open(sys.argv[1], 'a').write(json.dumps([sys.argv[2:], facts]) + chr(10))"
    )
    return shlex.join([sys.executable, "-S", "-c", code, str(path)]) + " " + " ".join(words)


def told(path: Path) -> list[tuple[list[str], dict[str, str]]]:
    return [tuple(json.loads(line)) for line in path.read_text().splitlines()]


def test_words_are_split_as_a_shell_splits_them_and_facts_stay_one_word(tmp_path: Path) -> None:
    path = tmp_path / "told"
    facts = {"run_id": "a b; rm -rf $HOME {error}", "status": "finished"}
    command = telling(path, '"{run_id}: {status}!"', "{run_id}", "$HOME", "*", '\'{"a": "{x}"}\'')
    notify(command, {**facts, "error": "two\nlines"})
    ((words, environment),) = told(path)
    name = facts["run_id"]
    assert words == [f"{name}: finished!", name, "$HOME", "*", '{"a": "{x}"}']
    assert environment == {
        **{f"FEDVSR_{name.upper()}": "" for name in FACTS},
        "FEDVSR_RUN_ID": name,
        "FEDVSR_STATUS": "finished",
        "FEDVSR_ERROR": "two lines",
    }


def test_a_shell_reads_facts_as_text(tmp_path: Path) -> None:
    path = tmp_path / "told"
    error = """" '; touch {path}.x; $(touch {path}.x) `touch {path}.x`"""
    notify(
        f"""sh -c 'echo "$FEDVSR_ERROR" > {path}'""", {"error": error.replace("{path}", str(path))}
    )
    assert path.read_text() == error.replace("{path}", str(path)) + "\n"
    assert [file.name for file in tmp_path.iterdir()] == ["told"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("'open", "on_finish: no closing quotation in"),
        ("sh -c 'x $FEDVSR_RUN'", "$FEDVSR_RUN is not set; did you mean 'FEDVSR_RUN_ID'?"),
        (
            'notify-send "${FEDVSR_RUN_ID} ended"',
            "no shell reads it, so $FEDVSR_RUN_ID stays as it is; write {run_id}, or call a shell",
        ),
        (
            "echo ${FEDVSR_X}",
            "$FEDVSR_X is not set; did you mean 'FEDVSR_KIND'? (there are: FEDVSR_KIND, ",
        ),
    ],
)
def test_what_is_no_command_is_refused(command: str, message: str) -> None:
    with pytest.raises(UserError) as refused:
        load_config("demo", [f"on_finish={json.dumps(command)}"])
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("no-such-command a", "there is no command no-such-command here"),
        ("sh -c 'echo first >&2; echo last >&2; exit 3'", "sh ended with exit code 3: last"),
        ("sh -c 'kill -9 $$'", "sh ended with exit code -9"),
        ("/etc", "/etc: Permission denied"),
        ("sh -c 'sleep 60 & sleep 60'", "sh was killed after 0.3 s"),
    ],
)
def test_a_command_that_fails_is_one_warning(
    command: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(notice, "LIMIT_S", 0.3 if "sleep" in command else 30)
    began = time.monotonic()
    notify(command, {})
    assert time.monotonic() - began < 20
    (warning,) = caplog.messages
    assert warning.startswith("on_finish: ")
    assert message in warning
    assert "\n" not in warning


@pytest.fixture
def command(tmp_path: Path) -> str:
    return "on_finish=" + json.dumps(telling(tmp_path / "told", "{status}"))


def test_a_run_calls_it_once_at_each_end(
    command: str, small_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(str(small_yaml), [command, "federation.num_rounds=1"])
    assert config.config_hash() == config.model_copy(update={"on_finish": ""}).config_hash()
    run, split = create_run(config, tmp_path / "runs"), prepare_data(config, lambda *_: None)
    events = launch(run, split, "serial")
    while not isinstance(next(events), RoundRecorded):
        pass
    events.close()

    class Broken(SerialExecutor):
        def run_round(self, *_: object) -> None:  # type: ignore[override]
            raise RuntimeError("the client's disk\nis gone")

    with monkeypatch.context() as patch:
        patch.setattr(launching, "SerialExecutor", Broken)
        with pytest.raises(RuntimeError):
            list(launch(run, split, "serial"))
    list(launch(run, split, "serial"))
    calls = told(tmp_path / "told")
    assert [words for words, _ in calls] == [["interrupted"], ["failed"], ["finished"]]
    facts = calls[-1][1]
    assert facts["FEDVSR_RUN_ID"] == run.run_id
    assert facts["FEDVSR_FOLDER"] == str(run.folder)
    assert float(facts["FEDVSR_PSNR_DB"]) > 10
    assert [facts["FEDVSR_ERROR"] for _, facts in calls] == ["", "the client's disk is gone", ""]


def test_a_run_that_is_refused_calls_nobody(command: str, small_yaml: Path, tmp_path: Path) -> None:
    config = load_config(str(small_yaml), [command])
    run = create_run(config, tmp_path / "runs")
    with pytest.raises(UserError, match="no Ray"):
        list(launch(run, prepare_data(config, lambda *_: None), "ray", "ray://127.0.0.1:1"))
    assert not (tmp_path / "told").exists()


def test_a_missing_command_is_named_at_the_start(
    small_yaml: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = load_config(str(small_yaml), ["on_finish=notify-sned done"])
    run = create_run(config, tmp_path)
    events = launch(run, prepare_data(config, lambda *_: None), "serial")
    next(events)
    assert caplog.messages == ["on_finish: there is no command notify-sned here"]
    events.close()


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        (["finished", "failed"], "finished"),
        (["finished", "running"], "interrupted"),
        (["failed", "failed"], "failed"),
    ],
)
def test_a_sweep_calls_it_once(statuses: list[str], expected: str, tmp_path: Path) -> None:
    folder = killed_sweep(tmp_path, {f"r{i}": status for i, status in enumerate(statuses)})
    sweep, path = load_sweep(tmp_path / "s.yaml"), tmp_path / "told"
    with noticed(sweep, telling(path, "{kind}", "{status}"), folder):
        pass
    ((words, facts),) = told(path)
    assert words == ["sweep", expected]
    assert facts["FEDVSR_RUN_ID"] == "s"
    assert facts["FEDVSR_FOLDER"] == str(folder)
    with (
        pytest.raises(KeyboardInterrupt),
        noticed(sweep, telling(path, "{status}"), folder),
    ):
        raise KeyboardInterrupt
    assert told(path)[-1][0] == ["interrupted"]
    with pytest.raises(OSError, match="x"), noticed(sweep, telling(path, "a"), folder / "nothing"):
        raise OSError("x")
    assert len(told(path)) == 2, "a sweep that has not begun calls nobody"
