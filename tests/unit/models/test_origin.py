from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from fedvsr import models
from fedvsr.checked import write_tensors
from fedvsr.models import iart, origin, rvrt, vrt
from fedvsr.models.origin import SPYNET, joined, licence_note, parts, source_of, weights_source
from fedvsr.models.spec import RELEASED_FLOW
from fedvsr.training.checkpoint import save_model

UNKNOWN = "weights of unknown origin"


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("001_VRT_videosr_bi_REDS_6frames.pth", "VRT, CC-BY-NC-4.0"),
        ("002_RVRT_videosr_bi_Vimeo_14frames.pth", "RVRT, CC-BY-NC-4.0"),
        ("IART_REDS_BI_N16.pth", "IART, MIT"),
        ("basicvsr_plusplus_reds-0a.pth", "BasicVSR++, Apache-2.0"),
        (RELEASED_FLOW, SPYNET),
        ("VRT.pth", UNKNOWN),
        ("my_001_VRT_x.pth", UNKNOWN),
        ("001_VRT_x.safetensors", UNKNOWN),
        ("spynet.pth", UNKNOWN),
    ],
)
def test_released_files_are_recognised_by_their_names(
    name: str, source: str, tmp_path: Path
) -> None:
    assert source_of(tmp_path / name) == (f"{name}: {source}",)


def test_spynets_file_is_recognised_by_its_digest_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (RELEASED_FLOW, "renamed.pth"):
        torch.save({"params": {"a": torch.zeros(1)}}, tmp_path / name)
    false = f"{RELEASED_FLOW}: {UNKNOWN}, not the released file"
    assert source_of(tmp_path / RELEASED_FLOW) == (false,)
    digest = hashlib.sha256((tmp_path / "renamed.pth").read_bytes()).hexdigest()
    monkeypatch.setattr(origin, "_SPYNET_DIGITS", digest[:8])
    assert source_of(tmp_path / "renamed.pth") == (f"renamed.pth: {SPYNET}",)


def test_released_names_give_the_digits_of_the_digest() -> None:
    assert origin._SPYNET_DIGITS == "3d2a1287"


def test_the_record_travels_through_files(tmp_path: Path) -> None:
    config = rvrt.Config(size="demo")
    network = models.build_fresh(config)
    source = ("a.pth: RVRT, CC-BY-NC-4.0", f"spynet.pth: {SPYNET}")
    for name, own in (("mine", ()), ("tuned", source)):
        save_model(tmp_path / f"{name}.safetensors", network, config, own)
        assert source_of(tmp_path / f"{name}.safetensors") == own
        torch.save({"params": {}, "weights_source": list(own)}, tmp_path / f"{name}.pth")
        assert source_of(tmp_path / f"{name}.pth") == own
    started = rvrt.Config(
        size="demo",
        weights=str(tmp_path / "tuned.safetensors"),
        flow_weights=str(tmp_path / RELEASED_FLOW),
    )
    assert weights_source(started) == (*source, f"{RELEASED_FLOW}: {SPYNET}")
    assert weights_source(rvrt.Config()) == ()
    assert parts(joined(source)) == source
    assert joined(()) is None
    assert parts(None) == ()
    note = licence_note(source)
    assert note.endswith("see docs/explanation/licences.md")
    assert all(part in note for part in source)


def test_a_file_of_an_older_version_has_the_paths_of_its_settings(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    tensors = {"a": np.zeros(1, np.float32)}
    for model, source in (
        (vrt.Config(), ()),
        (vrt.Config(weights="x/001_VRT_a.pth"), ("001_VRT_a.pth: VRT, CC-BY-NC-4.0",)),
        (iart.Config(flow_weights="x/flow.pth"), (f"flow.pth: {UNKNOWN}",)),
    ):
        write_tensors(path, tensors, {"format": 2, "model": model.model_dump(mode="json")})
        assert source_of(path) == source


@pytest.mark.parametrize("record", ["text", [1], ["line\nbreak"], ["x" * 201], ["x"] * 17])
def test_a_record_that_fedvsr_did_not_write_counts_as_none(record: object, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": np.zeros(1, np.float32)}, {"weights_source": record})
    assert source_of(path) == (f"a.safetensors: {UNKNOWN}",)


def test_names_of_files_keep_a_record_on_one_line(tmp_path: Path) -> None:
    (part,) = source_of(tmp_path / "a; b\n.pth")
    assert part == f"a, b?.pth: {UNKNOWN}"
    assert parts(joined([part, part])) == (part, part)
