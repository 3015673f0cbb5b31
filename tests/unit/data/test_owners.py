"""Owners' stores, as their nodes read them, and what is known of them elsewhere."""

from __future__ import annotations

import pickle
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from fedvsr.config import ExperimentConfig
from fedvsr.dashboard.state import RunReader
from fedvsr.data.config import DataConfig
from fedvsr.data.owned import deal_here, deal_own, with_owners
from fedvsr.data.owned_clip import OwnedClip
from fedvsr.data.owners import NOBODY, Owners
from fedvsr.data.split import Split, keys_of, prepare
from fedvsr.errors import UserError
from fedvsr.records import load_results
from fedvsr.report.gather import flat_settings
from tests.unit.cli.test_cli import fedvsr
from tests.unit.data.test_split import data_set


def owner(*stores: str, clients: int = 1, label: str = "x") -> dict[str, Any]:
    return {"nodes": {"owner": label}, "train": list(stores), "clients": clients}


def split_of(config: DataConfig, seed: int = 0) -> Split:
    split = prepare(config, seed, lambda *_: None)
    assert split.clients == (), "the owners' clips are not known yet"
    return with_owners(split, config, deal_here(config, seed, keys_of(split.test)))


@pytest.fixture
def stores(tmp_path: Path) -> dict[str, str]:
    return {
        "alice": data_set(tmp_path / "alice", "secret-a", "secret-b", "rare-c", "rare-d", seed=1),
        "bob": data_set(tmp_path / "bob", "other-a", "other-b", seed=10),
        "test": data_set(tmp_path / "test", "t", seed=90),
    }


def test_each_clip_goes_to_one_client_of_its_owner(stores: dict[str, str]) -> None:
    # Named in another order than they are numbered.
    both = {"bob": owner(stores["bob"]), "alice": owner(stores["alice"], clients=3)}
    config = DataConfig(owners=both, test=[stores["test"]])
    assert config.num_clients == 4
    owners = Owners.in_config(config)
    assert [owners.of(i) for i in range(4)] == ["alice"] * 3 + ["bob"]
    assert (NOBODY.of(3), bool(NOBODY), bool(owners)) == ("", False, True)
    split = split_of(config)
    names = [[clip.clip_id for clip in own] for own in split.clients]
    assert sorted(chain(*names[:3])) == [f"alice-{i:04d}" for i in range(4)]
    assert sorted(names[3]) == ["bob-0000", "bob-0001"]
    assert [len(own) for own in split.clients] == [2, 1, 1, 2]
    assert {clip.label for clip in split.clients[3]} == {"bob"}
    assert split_of(config) == split, "by the seed"
    assert any(split_of(config, seed) != split for seed in range(1, 4))
    assert [clip.clip_id for clip in split.test] == ["t"]


def test_only_numbers_leave_and_they_open_the_clips_where_these_lie(
    stores: dict[str, str],
) -> None:
    config = DataConfig(owners={"alice": owner(stores["alice"])}, test=[stores["test"]])
    split = split_of(config)
    sent = pickle.dumps(split.clients)
    assert not [word for word in (b"secret", b"rare") if word in sent]
    for clip in split.train:
        assert isinstance(clip, OwnedClip)
        found = np.load(
            f"{stores['alice']}/{('secret-a', 'secret-b', 'rare-c', 'rare-d')[clip.number]}_gt.npy"
        )
        np.testing.assert_array_equal(clip.gt(), found)
        assert clip.lq().shape == (6, 12, 16, 3)
    (Path(stores["alice"]) / "secret-a_gt.npy").unlink()
    with pytest.raises(UserError, match=r"^clip alice-0000, number 0 from 0 of owner alice") as why:
        next(clip for clip in split.train if clip.number == 0).gt()  # type: ignore[attr-defined]
    assert "secret" not in str(why.value)


def test_a_partition_that_looks_at_labels_or_frames_is_made_where_they_lie(
    stores: dict[str, str],
) -> None:
    for partition in ("by_folder", "more", "motion"):
        config = DataConfig(
            owners={"alice": owner(stores["alice"], clients=2), "bob": owner(stores["bob"])},
            test=[stores["test"]],
            partition=partition,
        )
        numbers = [{clip.clip_id for clip in own} for own in split_of(config).clients]
        assert [len(own) for own in numbers] == [2, 2, 2]
        if partition != "motion":
            assert {"alice-0000", "alice-0001"} in numbers, "secret-a and secret-b"


def test_what_an_owner_lacks_is_refused(stores: dict[str, str], tmp_path: Path) -> None:
    def refusal(of: dict[str, Any], **settings: Any) -> str:
        config = DataConfig(owners={"alice": of}, test=[stores["test"]], **settings)
        with pytest.raises(UserError) as refused:
            split_of(config)
        return str(refused.value)

    missing = refusal(owner(str(tmp_path / "none")))
    assert missing.startswith(f"there is no clip store {tmp_path}/none on ")
    assert missing.endswith("(without Ray, the data of every owner is read on this machine)")
    few = refusal(owner(stores["bob"], clients=3))
    assert "data.owners.alice.clients = 3, but there are only 2" in few
    other = data_set(tmp_path / "x2", "a", scale=2)
    assert "store of data.owners.alice was prepared with --scale 2" in refusal(owner(other))
    same = data_set(tmp_path / "copy", "renamed", seed=90)
    assert "would train on 1 of the test clips (t)" in refusal(owner(stores["bob"], same))
    allowed = DataConfig(owners={"a": owner(same)}, test=[stores["test"]], allow_overlap=True)
    assert split_of(allowed).overlap == ("t",)
    # Another owner's clip may have the name of a test clip by chance.
    alike = data_set(tmp_path / "alike", "t", seed=50)
    split_of(DataConfig(owners={"a": owner(alike)}, test=[stores["test"]]))


def test_two_owners_draw_by_themselves(stores: dict[str, str]) -> None:
    config = DataConfig(
        owners={"a": owner(stores["alice"], clients=2), "b": owner(stores["alice"], clients=2)},
        test=[stores["test"]],
    )
    dealt = [
        [deal_own(name, config.owners[name], config, seed, ()).clients for name in "ab"]
        for seed in range(4)
    ]
    assert any(first != second for first, second in dealt)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train": ["/x"]}, "data.owners excludes data.train and data.videos"),
        ({"videos": ["x"]}, "data.owners excludes data.train and data.videos"),
        ({"test": []}, "data.owners needs clips to score on"),
        ({"degradation": "bd"}, "data.degradation does not reach the clips of data.owners"),
        ({"num_clients": 8}, "data.num_clients = 8, but the owners of data.owners have 1"),
        ({"owners": {"a": owner("relative")}}, "relative is relative; give the path on"),
    ],
)
def test_what_does_not_go_with_owners_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((UserError, ValidationError), match=message):
        DataConfig(**{"owners": {"a": owner("/store")}, "test": ["/test"], **settings})


def test_a_serial_run_names_the_owners_wherever_it_lists_clients(
    stores: dict[str, str],
    small: ExperimentConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = small.model_dump() | {
        "data": {
            "owners": {"bob": owner(stores["bob"]), "alice": owner(stores["alice"], clients=2)},
            "test": [stores["test"]],
        },
        "federation": {"num_rounds": 1, "clients_per_round": 3},
    }
    path = tmp_path / "owned.yaml"
    path.write_text(ExperimentConfig.model_validate(settings).to_yaml())
    assert fedvsr("run", str(path), "--executor", "serial", "--out", str(tmp_path / "out")) == 0
    assert "owners and their clients: alice (0 to 1), bob (client 2)\n" in capsys.readouterr().out
    (folder,) = (tmp_path / "out").iterdir()
    results = load_results(folder)
    labels = results.partition.groupby("client_id")["label"].agg(set)
    assert labels.tolist() == [{"alice"}, {"alice"}, {"bob"}]
    page = RunReader(folder.name, folder).state()
    assert page["errors"] == []
    assert [own["owner"] for own in page["clients"]["rows"]] == ["alice", "alice", "bob"]
    flat = flat_settings(results.runs["config"].iloc[0])
    assert flat["data.owners"]["bob"] == {"train": [stores["bob"]], "clients": 1}
    assert fedvsr("data", "partition", str(path)) == 0
    assert "2 of alice" in capsys.readouterr().out
