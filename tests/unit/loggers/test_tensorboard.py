"""TensorBoard's files, read as any reader of them would."""

from __future__ import annotations

from pathlib import Path

from fedvsr.loggers.feed import Ending, Round
from fedvsr.loggers.subject import Subject
from fedvsr.loggers.tensorboard import FOLDER, TensorBoard, last_round, read, table


def subject_in(folder: Path) -> Subject:
    (folder / "config.yaml").write_text("seed: 1\n")
    return Subject("r", folder, 3, {"seed": 1}, {})


def test_a_cut_off_record_is_left_out_and_its_round_logged_again(tmp_path: Path) -> None:
    first = TensorBoard(subject_in(tmp_path))
    assert first.last_round == -1
    for round_idx in range(3):
        first.log(Round(round_idx, {"train/loss": 1.0 / (1 + round_idx)}))
    (path,) = (tmp_path / FOLDER).iterdir()
    whole = path.read_bytes()
    assert last_round(tmp_path / FOLDER) == 2
    for cut in (1, 8, 20):
        path.write_bytes(whole[:-cut])
        assert last_round(tmp_path / FOLDER) == 1
    path.write_bytes(whole[:-5])
    second = TensorBoard(subject_in(tmp_path))
    assert second.last_round == 1
    second.log(Round(2, {"train/loss": 0.5}))
    second.end(Ending("finished", 2, [{"test_set": "a", "psnr_db": 30.5}]))
    events = [event for path in (tmp_path / FOLDER).iterdir() for event in read(path)]
    values = [(e.step, v.tag) for e in events for v in e.summary.value]
    assert sorted(values) == [
        (0, "configuration/text_summary"),
        *((i, "train/loss") for i in range(2)),
        (2, "scores/text_summary"),
        (2, "train/loss"),
    ]


def test_scores_are_a_table() -> None:
    rows = [{"test_set": "Vid4", "psnr_db": 24.0}, {"test_set": "b", "psnr_db": 30.123456}]
    assert table(rows).splitlines() == [
        "| test_set | psnr_db |",
        "| --- | --- |",
        "| Vid4 | 24.0000 |",
        "| b | 30.1235 |",
    ]
