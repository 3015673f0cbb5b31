from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedvsr.data.clips import Clip, Frames
from fedvsr.data.partition import Partition, deal, motion, texture
from fedvsr.errors import UserError
from tests.unit.data.clips import write_store


def clips(num_labels: int = 10, each: int = 6) -> list[Clip]:
    return [
        Clip(f"{label}-{i}", f"class{label:02d}", "", 10, 32, 32, 4)
        for label in range(num_labels)
        for i in range(each)
    ]


def ids(dealt: Iterable[tuple[Clip, ...]]) -> list[list[str]]:
    return [[clip.clip_id for clip in own] for own in dealt]


@pytest.mark.parametrize("partition", ["less", "more", "dirichlet", "quantity"])
def test_every_clip_goes_to_one_client_and_the_seed_decides(partition: Partition) -> None:
    dealt = deal(clips(), 8, 1, partition)
    names = [name for own in ids(dealt) for name in own]
    assert sorted(names) == sorted(clip.clip_id for clip in clips())
    assert all(dealt)
    assert ids(deal(clips(), 8, 1, partition)) == ids(dealt)
    assert ids(deal(clips(), 8, 2, partition)) != ids(dealt)


@pytest.mark.parametrize(
    ("partition", "num_clients", "settings", "digest"),
    [
        ("less", 7, {}, "0492e865a9d839e0"),
        ("more", 4, {}, "7651386b6057be42"),
        ("more", 23, {}, "e9731bb83f0c0ff4"),
        ("by_folder", 10, {}, "b08bbc9735256b11"),
        ("dirichlet", 30, {"alpha": 0.05}, "20221dea8562e674"),
        ("quantity", 40, {"alpha": 0.1}, "125195978139f6a0"),
        ("less", 5, {"clips_per_client": 3}, "53d403afb2cc1b9a"),
    ],
)
def test_clips_are_dealt_as_in_earlier_versions(
    partition: Partition, num_clients: int, settings: dict[str, Any], digest: str
) -> None:
    # The digests are of the code that dealt the clips one by one.
    dealt = ids(deal(clips(), num_clients, 5, partition, **settings))
    assert hashlib.sha256(repr(dealt).encode()).hexdigest()[:16] == digest


def test_less_deals_evenly_and_mixes_labels() -> None:
    dealt = deal(clips(), 8, 1, "less")
    assert sorted(map(len, dealt)) == [7, 7, 7, 7, 8, 8, 8, 8]
    assert min(len({clip.label for clip in own}) for own in dealt) > 3


def test_more_gives_each_client_one_label() -> None:
    dealt = deal(clips(), 10, 1, "more")
    assert all(len({clip.label for clip in own}) == 1 and len(own) == 6 for own in dealt)
    assert len({own[0].label for own in dealt}) == 10
    # Ten labels for four clients: two or three each.
    counts = [len({clip.label for clip in own}) for own in deal(clips(), 4, 1, "more")]
    assert sorted(counts) == [2, 2, 3, 3]


@pytest.mark.parametrize(("num_clients", "each"), [(30, 2), (60, 1)])
def test_more_clients_than_labels_share_a_labels_clips(num_clients: int, each: int) -> None:
    # As the published experiments with 120 and 240 clients of 40 classes of 6 clips.
    dealt = deal(clips(), num_clients, 1, "more")
    assert {len(own) for own in dealt} == {each}
    assert all(len({clip.label for clip in own}) == 1 for own in dealt)
    counts = Counter(own[0].label for own in dealt)
    assert set(counts.values()) == {num_clients // 10}
    assert sorted(name for own in ids(dealt) for name in own) == sorted(c.clip_id for c in clips())
    assert ids(deal(clips(), num_clients, 2, "more")) != ids(dealt)


def test_more_needs_several_labels_with_enough_clips() -> None:
    with pytest.raises(UserError, match=r"has 1 clips for 2 of data\.num_clients = 12; lower it"):
        deal(clips(each=1)[:9] + clips(each=7)[-7:], 12, 1, "more")
    with pytest.raises(UserError, match="all have the label class00; set data"):
        deal(clips(num_labels=1), 2, 1, "more")


def test_smaller_alpha_skews_labels_more() -> None:
    def purity(alpha: float) -> float:
        """Mean share of a client's clips that have its most frequent label."""
        dealt = deal(clips(each=60), 10, 3, "dirichlet", alpha=alpha)
        tops = [Counter(c.label for c in own).most_common(1)[0][1] / len(own) for own in dealt]
        return float(np.mean(tops))

    assert purity(0.05) > 0.4 > 0.25 > purity(100)


def test_smaller_alpha_skews_quantities_more() -> None:
    def sizes(alpha: float) -> list[int]:
        return [len(own) for own in deal(clips(), 10, 3, "quantity", alpha=alpha)]

    assert sum(sizes(0.3)) == sum(sizes(1000)) == 60
    assert min(sizes(0.3)) >= 1
    assert max(sizes(1000)) - min(sizes(1000)) <= 3
    assert max(sizes(0.3)) > 12


def test_clips_per_client_limits_each_share() -> None:
    dealt = deal(clips(), 8, 1, "less", clips_per_client=6)
    assert [len(own) for own in dealt] == [6] * 8
    whole = deal(clips(), 8, 1, "less")
    assert all(set(part) <= set(own) for part, own in zip(dealt, whole, strict=True))
    with pytest.raises(UserError, match=r"clips_per_client = 8, but client \d gets only 7"):
        deal(clips(), 8, 1, "less", clips_per_client=8)
    with pytest.raises(UserError, match=r"num_clients = 61, but there are only 60 training clips"):
        deal(clips(), 61, 1)


def test_clips_of_similar_motion_or_texture_go_together(tmp_path: Path) -> None:
    """Noise of strength s that flickers by m has a texture that grows with s, and motion with m."""
    rng = np.random.default_rng(0)
    strengths, flickers = [5, 80, 20, 40], [40, 20, 5, 80]
    frames = dict[str, Frames]()
    for i, (strength, flicker) in enumerate(zip(strengths, flickers, strict=True)):
        still = rng.uniform(-strength, strength, (1, 32, 32, 3))
        level = flicker * (np.arange(6) % 2)[:, None, None, None]
        frames[f"c{i}"] = (100 + still + level).clip(0, 255).astype(np.uint8)
    textures = write_store(tmp_path / "store", frames)
    assert np.argsort([texture(clip) for clip in textures]).tolist() == [0, 2, 3, 1]
    moved = [motion(clip) for clip in textures]
    assert np.argsort(moved).tolist() == [2, 1, 0, 3]
    # The flicker changes all pixels equally.
    np.testing.assert_allclose(moved, flickers, atol=1)
    assert ids(deal(textures, 2, 0, "texture")) == [["c0", "c2"], ["c3", "c1"]]
    assert ids(deal(textures, 4, 0, "motion")) == [["c2"], ["c1"], ["c0"], ["c3"]]
