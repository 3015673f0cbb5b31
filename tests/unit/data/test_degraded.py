import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fedvsr.checked_text import read_json
from fedvsr.data import degraded as module
from fedvsr.data.clips import Clip, checksum
from fedvsr.data.config import DataConfig
from fedvsr.data.degrade import degrade
from fedvsr.data.degrade_config import pipelines
from fedvsr.data.degraded import deal, degraded
from fedvsr.data.split import Split, prepare
from fedvsr.errors import UserError
from tests.conftest import moving_texture
from tests.unit.data.clips import write_store

NOISY = [{"step": "downscale"}, {"step": "gaussian_noise", "sigma": [5, 20]}]
STEPS = pipelines({"clean": "bi", "noisy": NOISY, "soft": "blur_noise"})


@pytest.fixture
def clips(tmp_path: Path) -> list[Clip]:
    frames = moving_texture(8, 32, 48).astype(np.uint8)
    return write_store(tmp_path / "store", {f"a-{i:03d}": frames[i : i + 3] for i in range(6)})


def test_frames_are_made_once_and_kept_with_what_made_them(
    tmp_path: Path, clips: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [(clips[0], "noisy"), (clips[1], "soft"), (clips[2], "clean"), (clips[0], "soft")]
    told = list[tuple[int, int]]()
    made = degraded(wanted, STEPS, 0, tmp_path / "cache", lambda *n: told.append(n))
    assert [clip.degradation for clip in made] == ["noisy", "soft", "clean", "soft"]
    # The store's own frames are the clean ones.
    assert made[2].lq_path == ""
    assert Path(made[0].lq_path).is_relative_to(tmp_path / "cache")
    assert {n for n in told if n[0] == n[1]} == {(3, 3), (6, 6)}
    for clip, (before, _) in zip(made, wanted, strict=True):
        assert clip.lq().shape == (3, 8, 12, 3)
        np.testing.assert_array_equal(clip.gt(), before.gt())
    assert (made[0].lq() != clips[0].lq()).any()
    record = read_json(Path(made[0].lq_path.replace("_lq.npy", ".json")))
    assert record["lq_sha256"] == checksum(made[0].lq())
    assert record["clip_id"] == "a-000"
    assert record["steps"][1]["step"] == "gaussian_noise"
    assert 5 <= record["steps"][1]["sigma"] <= 20
    # With the same seed nothing is made; with another, everything.
    monkeypatch.setattr(module, "write_frames", None)
    assert degraded(wanted, STEPS, 0, tmp_path / "cache") == made
    monkeypatch.undo()
    other = degraded(wanted, STEPS, 1, tmp_path / "cache")
    assert (other[0].lq() != made[0].lq()).any()


def test_any_number_of_cores_makes_the_same_bits(
    tmp_path: Path, clips: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [(clip, "soft") for clip in clips]
    sums = list[list[str]]()
    for cores in (1, 4):
        monkeypatch.setattr(module, "num_cores", lambda cores=cores: cores)
        made = degraded(reversed(wanted) if cores == 1 else wanted, STEPS, 0, tmp_path / str(cores))
        sums.append(sorted(checksum(clip.lq()) for clip in made))
    assert sums[0] == sums[1]
    assert len({*sums[0]}) == 6


@pytest.mark.parametrize("harm", ["record", "frames", "both", "bit", "header"])
def test_a_damaged_clip_is_made_again(tmp_path: Path, clips: list[Clip], harm: str) -> None:
    (clip,) = degraded([(clips[0], "noisy")], STEPS, 0, tmp_path)
    before, path = checksum(clip.lq()), Path(clip.lq_path)
    record = path.with_name(path.name.replace("_lq.npy", ".json"))
    if harm in ("record", "both"):
        record.write_text(json.dumps(read_json(record)))
    if harm in ("frames", "both"):
        path.write_bytes(path.read_bytes()[:-10])
    if harm == "bit":
        content = bytearray(path.read_bytes())
        content[-700] ^= 4
        path.write_bytes(content)
    if harm == "header":
        path.write_bytes(path.read_bytes().replace(b"(3, 8, 12, 3)", b"(3, 12, 8, 3)"))
    assert degraded([(clips[0], "noisy")], STEPS, 0, tmp_path) == [clip]
    assert checksum(clip.lq()) == before


def test_a_clip_that_a_pipeline_cannot_take_ends_in_one_line(
    tmp_path: Path, clips: list[Clip]
) -> None:
    steps = pipelines([{"step": "h265", "qp": 30}, {"step": "downscale"}])
    with pytest.raises(UserError, match=r"h265 .* 48 pixels"):
        degraded([(clip, "steps") for clip in clips], steps, 0, tmp_path / "cache")
    assert not [*(tmp_path / "cache").rglob("*.json")]


def test_a_full_disk_is_refused_before_anything_is_made(
    tmp_path: Path, clips: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedvsr.data.prepare._SPARE_BYTES", 1 << 60)
    with pytest.raises(UserError, match=r"needs .* and its disk has"):
        degraded([(clips[0], "noisy")], STEPS, 0, tmp_path / "cache")


def test_dealing_one_degradation_per_client_is_balanced_and_seeded(clips: list[Clip]) -> None:
    clients = [clips[:2]] * 7
    dealt = deal(clients, ["a", "b", "c"], 1, "client", 0.5)
    assert all(len({*own}) == 1 and len(own) == 2 for own in dealt)
    assert sorted(Counter(own[0] for own in dealt).values()) == [2, 2, 3]
    assert dealt == deal(clients, ["a", "b", "c"], 1, "client", 0.5)
    assert any(dealt != deal(clients, ["a", "b", "c"], seed, "client", 0.5) for seed in (2, 3))


def test_dealing_by_dirichlet_follows_its_concentration(clips: list[Clip]) -> None:
    clients = [clips * 100] * 20
    uneven, even = (deal(clients, ["a", "b"], 1, "dirichlet", alpha) for alpha in (0.05, 1000))
    shares = [[own.count("a") / len(own) for own in dealt] for dealt in (uneven, even)]
    # Var of a share of Dirichlet(alpha, alpha) is 1 / (4 (2 alpha + 1)): 0.477^2 and 0.011^2.
    assert np.std(shares[0]) > 0.35
    assert np.std(shares[1]) < 0.05
    assert np.mean(shares[1]) == pytest.approx(0.5, abs=0.03)
    # A client's draw does not depend on how many others there are.
    assert deal(clients[:3], ["a", "b"], 1, "dirichlet", 0.05) == uneven[:3]


def split(tmp_path: Path, seed: int = 0, **settings: object) -> Split:
    config = DataConfig(
        train=[str(tmp_path / "store")],
        held_out=["a-005"],
        num_clients=2,
        cache_dir=str(tmp_path / "cache"),
        **settings,  # type: ignore[arg-type]
    )
    return prepare(config, seed, lambda *_: None)


def test_clients_differ_and_test_clips_are_scored_under_each(
    tmp_path: Path, clips: list[Clip]
) -> None:
    plain = split(tmp_path)
    both = split(tmp_path, degradation={"clean": "bi", "noisy": NOISY})
    assert [[c.clip_id for c in own] for own in both.clients] == [
        [c.clip_id for c in own] for own in plain.clients
    ]
    kinds = [{clip.degradation for clip in own} for own in both.clients]
    assert sorted(map(sorted, kinds)) == [["clean"], ["noisy"]]
    assert [(c.clip_id, c.degradation) for c in both.test] == [
        ("a-005", "clean"),
        ("a-005", "noisy"),
    ]
    assert {*both.train} == {clip for own in both.clients for clip in own}
    # Another seed of the run deals otherwise, and scores the same frames.
    other = split(tmp_path, 5, degradation={"clean": "bi", "noisy": NOISY})
    assert other.test == both.test
    # A store of another scale serves too, if its frames can be divided.
    finer = split(tmp_path, degradation="bi", scale=2)
    np.testing.assert_array_equal(finer.test[0].lq(), degrade(clips[5].gt(), "bi", 2))
    with pytest.raises(UserError, match=r"--scale 4, and data\.scale = 3"):
        split(tmp_path, degradation="bi", scale=3)
    # The short form is the store's own frames.
    assert split(tmp_path, degradation="bi") == plain
