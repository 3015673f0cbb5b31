from __future__ import annotations

import os
import re
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from fedvsr import models
from fedvsr.data import pictures
from fedvsr.data.colour import Colour
from fedvsr.data.degrade import bicubic_downscale, quantise
from fedvsr.data.frames import Video, open_clip
from fedvsr.inference import upscale
from fedvsr.inference.evaluate import bicubic
from fedvsr.lookup import load
from fedvsr.models.tiny.network import Model
from fedvsr.training.checkpoint import save_model
from tests.conftest import moving_texture
from tests.unit.cli.test_cli import fedvsr
from tests.unit.data.clips import SOFT, sound_packets, timestamps, write_clip, write_pictures

RUN = ("--tile", "5")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained `tiny`, which equals bicubic enlargement."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    config = load("fedvsr.models", "tiny").Config(channels=4, blocks=0)
    save_model(path, models.build_fresh(config), config)
    return str(path)


@pytest.fixture(scope="module")
def run_folder(small_yaml: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "results"
    assert fedvsr("run", str(small_yaml), "--executor", "serial", "--out", str(out)) == 0
    (folder,) = out.iterdir()
    return folder


def frames_of(path: Path) -> np.ndarray:
    return np.stack([rgb for rgb, _ in open_clip(path).frames()])


def assert_same(got: np.ndarray, expected: np.ndarray) -> None:
    """Equal up to a few roundings, because overlapping tiles are averaged."""
    difference = np.abs(got.astype(int) - expected)
    assert difference.max() <= 1
    assert difference.mean() < 1e-4


def test_a_video_keeps_its_times_sound_and_colours(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    times = [0, 1001, 2002, 5005, 6006, 6500, 7000, 12012, 13013, 14014, 20020, 21021]
    colour = Colour(1, False, 1, 1)
    video = write_clip(
        tmp_path / "v.mp4", SOFT, times=times, time_base=Fraction(1, 30000), colour=colour,
        sound="aac",
    )  # fmt: skip
    assert fedvsr("upscale", str(video), "--checkpoint", weights) == 0
    printed = capsys.readouterr().out
    assert "tiles of 12 frames of 48 x 32 (whole frames), about" in printed
    assert "v_x4.mp4: 12 frames of 192 x 128 in" in printed
    out = tmp_path / "v_x4.mp4"
    assert open_clip(out).colour == colour
    assert timestamps(out) == timestamps(video)
    assert sound_packets(out) == sound_packets(video)
    enlarged, expected = frames_of(out), bicubic(frames_of(video), 4)
    assert enlarged.shape == (12, 128, 192, 3)
    assert np.abs((enlarged.astype(int) - expected).mean((0, 1, 2))).max() < 0.5
    assert 10 * np.log10(255**2 / np.square(enlarged.astype(float) - expected).mean()) > 38
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v.mp4", "v_x4.mp4"]
    assert fedvsr("upscale", str(video), "--checkpoint", weights, "--no-sound", "--overwrite") == 0
    clip = open_clip(out)
    assert isinstance(clip, Video)
    assert not clip.has_sound


def test_weights_of_others_are_named_with_their_licence(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load("fedvsr.models", "tiny").Config(channels=4, blocks=0)
    network, tuned = models.build_fresh(config), tmp_path / "tuned.safetensors"
    save_model(tuned, network, config, ["a.pth: RVRT, CC-BY-NC-4.0"])
    torch.save(network.state_dict(), tmp_path / "foreign.pth")
    video = write_clip(tmp_path / "v.mp4", SOFT[:3])
    settings = ("--model", "tiny", "--set", "channels=4", "--set", "blocks=0")
    for file, own, source in (
        (weights, (), None),
        (str(tuned), (), "a.pth: RVRT, CC-BY-NC-4.0"),
        (str(tmp_path / "foreign.pth"), settings, "foreign.pth: weights of unknown origin"),
    ):
        arguments = ["--checkpoint", file, *own, "--overwrite"]
        assert fedvsr("upscale", str(video), *arguments, *RUN) == 0
        note = f"the weights come from others ({source}); see docs/explanation/licences.md"
        lines = capsys.readouterr().out.splitlines()
        assert [line for line in lines if "weights" in line and "licences" in line] == (
            [note] if source else []
        )


def test_pictures_keep_their_names_and_are_exact(weights: str, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "p", SOFT, "f{}.png")
    arguments = ["upscale", str(folder), "--checkpoint", weights, *RUN]
    assert fedvsr(*arguments) == 0
    assert {p.name for p in (tmp_path / "p_x4").iterdir()} == {f"f{i}.png" for i in range(12)}
    assert_same(frames_of(tmp_path / "p_x4"), bicubic(SOFT, 4))
    again = tmp_path / "again"
    assert fedvsr(*arguments, "--out", str(again / "x%03d.png")) == 0
    assert fedvsr(*arguments, "--out", str(again / "x%03d.png")) == 2
    assert fedvsr(*arguments, "--out", str(again / "x%03d.png"), "--overwrite") == 0
    assert_same(frames_of(again), bicubic(SOFT, 4))
    assert (again / "x011.png").is_file()
    assert fedvsr(*arguments, "--out", str(tmp_path / "v.mkv"), "--fps", "30000/1001") == 0
    assert round(float(open_clip(tmp_path / "v.mkv").rate), 1) == 30.0


def test_a_video_to_pictures(weights: str, tmp_path: Path) -> None:
    video = write_clip(tmp_path / "v.mp4", SOFT[:3])
    out = tmp_path / "out"
    assert fedvsr("upscale", str(video), "--checkpoint", weights, "--out", str(out)) == 0
    assert sorted(p.name for p in out.iterdir()) == [f"{i:08d}.png" for i in range(3)]
    assert_same(frames_of(out), bicubic(frames_of(video), 4))


def test_the_same_tile_gives_the_same_bits(tmp_path: Path) -> None:
    torch.manual_seed(1)
    config = load("fedvsr.models", "tiny").Config(channels=4)
    network = models.build_fresh(config)
    torch.nn.init.normal_(network.to_pixels.weight, std=0.1)
    weights = tmp_path / "w.safetensors"
    save_model(weights, network, config)
    folder = write_pictures(tmp_path / "p", SOFT)
    outs = [tmp_path / name for name in ("a", "b", "c")]
    for out, tile in zip(outs, ("5x24", "5x24", "4x32"), strict=True):
        arguments = ["--checkpoint", str(weights), "--tile", tile, "--out", str(out)]
        assert fedvsr("upscale", str(folder), *arguments, "--threads", "1") == 0
    a, b, c = map(frames_of, outs)
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


def test_a_truncated_video_leaves_no_output(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = moving_texture(60, 64, 64)
    # The index comes first, as for streaming, so that half of the file still opens.
    whole = write_clip(tmp_path / "whole.mp4", frames, options={"movflags": "faststart"})
    video = tmp_path / "cut.mp4"
    video.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    for out in ("out.mp4", "out"):
        arguments = ["--checkpoint", weights, "--out", str(tmp_path / out), *RUN]
        assert fedvsr("upscale", str(video), *arguments) == 2
        err = capsys.readouterr().err
        assert "cut.mp4 is" in err
        assert ("truncated" in err) or ("damaged" in err)
        assert err.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut.mp4", "whole.mp4"]


def test_ctrl_c_leaves_nothing(
    weights: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    video = write_clip(tmp_path / "v.mp4", SOFT)
    real = upscale.super_resolve_stream

    def interrupted(*arguments, **options):
        for index, frame in enumerate(real(*arguments, **options)):
            if index == 7:
                raise KeyboardInterrupt
            yield frame

    monkeypatch.setattr(upscale, "super_resolve_stream", interrupted)
    for out in ("o.mp4", "o"):
        arguments = ["--checkpoint", weights, "--out", str(tmp_path / out), *RUN]
        assert fedvsr("upscale", str(video), *arguments) == 130
        assert f"stopped; {tmp_path / out} is not written" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["v.mp4"]


def test_existing_files_are_kept(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = write_clip(tmp_path / "v.mp4", SOFT[:2])
    folder = write_pictures(tmp_path / "p", SOFT[:2])
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("")
    taken = tmp_path / "taken.mp4"
    taken.write_bytes(b"")

    def refused(source: Path, out: str, *more: str) -> str:
        command = ["upscale", str(source), "--checkpoint", weights, "--out", out, *RUN, *more]
        assert fedvsr(*command) == 2
        return capsys.readouterr().err

    assert "is the input" in refused(video, str(video), "--overwrite")
    assert "is the input" in refused(folder, f"{folder}/%d.png", "--overwrite")
    os.symlink(video, tmp_path / "link.mp4")
    assert "is the input" in refused(video, str(tmp_path / "link.mp4"), "--overwrite")
    assert "exists; replace it with --overwrite" in refused(video, str(taken))
    assert "holds other files than PNG pictures" in refused(video, str(precious), "--overwrite")
    assert "is a file, not a folder" in refused(video, f"{taken}/", "--overwrite")
    assert "there is no folder" in refused(video, str(tmp_path / "no" / "o.mp4"))
    assert "videos are written as .mp4" in refused(video, str(tmp_path / "o.avi"))
    for name in ("o.png", "%d_%d.png", "o%s.png"):
        assert "a clip is many pictures; write e.g. NAME%05d" in refused(
            video, f"{tmp_path}/{name}"
        )
    assert (precious / "thesis.txt").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "nowhere"], "there is no checkpoint nowhere: no file, no run's folder"),
        (["--tile", "8xbig"], "--tile 8xbig is not of the form FRAMESxSIZE"),
        (["--tile", "0"], "--tile 0 is not of the form"),
        (["--memory", "lots"], "--memory 'lots' is not a size"),
        (["--memory", "1MB"], "1.0 MB do not suffice: the program and the network take"),
        (["--fps", "0"], "--fps 0 is not a rate"),
        (["--codec", "libx999"], "--codec libx999 is no encoder"),
        (["--set", "channels=8"], "name the network with --model"),
        (["--model", "tiny", "--set", "chanels=8"], "model.chanels is not a setting"),
        (["--model", "tinny"], "did you mean 'tiny'"),
        (["--model", "tiny", "--set", "channels=8"], "tiny.safetensors has extract.weight as"),
    ],
)
def test_mistakes_are_one_line(
    weights: str,
    tmp_path: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    video = write_clip(tmp_path / "v.mp4", SOFT[:2])
    options = arguments if "--checkpoint" in arguments else ["--checkpoint", weights, *arguments]
    assert fedvsr("upscale", str(video), *options) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["v.mp4"]


def test_no_gpu_and_no_such_video(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert fedvsr("upscale", "no.mp4", "--checkpoint", weights, "--device", "cuda") == 2
    assert "PyTorch sees no GPU here" in capsys.readouterr().err
    assert fedvsr("upscale", "no.mp4", "--checkpoint", weights) == 2
    assert "there is no video or folder no.mp4" in capsys.readouterr().err


def test_an_explicit_tile_that_does_not_fit(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    def forward(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Model, "forward", forward)
    video = write_clip(tmp_path / "v.mp4", SOFT[:2])
    assert fedvsr("upscale", str(video), "--checkpoint", weights, *RUN) == 2
    assert "does not suffice for this tile; give a smaller one" in capsys.readouterr().err
    assert fedvsr("upscale", str(video), "--checkpoint", weights) == 2
    assert "do not suffice for this network: a tile of" in capsys.readouterr().err


def test_runs_and_checkpoints_by_name(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = write_pictures(tmp_path / "p", SOFT[:3]), tmp_path / "o"
    base = ["upscale", str(folder), "--out", str(out), "--overwrite", *RUN]

    def with_checkpoint(name: object, *more: str) -> tuple[int, np.ndarray | None, str]:
        code = fedvsr(*base, "--checkpoint", str(name), *more)
        printed = capsys.readouterr()
        return code, frames_of(out) if code == 0 else None, printed.out + printed.err

    results = ["--results", str(run_folder.parent)]
    _, by_id, printed = with_checkpoint(run_folder.name, *results)
    assert f"run {run_folder.name}, finished; x4 on" in printed
    _, by_folder, _ = with_checkpoint(run_folder)
    _, by_file, _ = with_checkpoint(run_folder / "model.safetensors")
    assert by_id is not None
    np.testing.assert_array_equal(by_id, by_folder)
    np.testing.assert_array_equal(by_id, by_file)

    torch_file = tmp_path / "released.pth"
    network = models.load_checkpoint(run_folder / "model.safetensors")
    torch.save({"params": network.state_dict()}, torch_file)
    own = ["--model", "tiny", "--set", "channels=4", "--set", "blocks=1"]
    _, by_hand, _ = with_checkpoint(torch_file, *own)
    np.testing.assert_array_equal(by_id, by_hand)

    stopped = tmp_path / "stopped"
    shutil.copytree(run_folder, stopped)
    (stopped / "model.safetensors").unlink()
    code, last, printed = with_checkpoint(stopped)
    assert code == 0
    assert "run stopped, not finished: after round 3 of 3" in printed
    np.testing.assert_array_equal(by_id, last)
    (stopped / "checkpoints" / "round-000003.safetensors").unlink()
    _, earlier, printed = with_checkpoint(stopped)
    assert "not finished: after round 2 of 3" in printed
    assert earlier is not None
    assert (earlier != by_id).any()
    shutil.rmtree(stopped / "checkpoints")
    assert "run stopped has no checkpoint yet" in with_checkpoint(stopped)[2]

    part = run_folder / "checkpoints" / "round-000003.safetensors"
    assert "is part of a run; give the run's folder" in with_checkpoint(part)[2]
    assert "leave --model out" in with_checkpoint(run_folder, *own)[2]
    assert "is not a run's folder" in with_checkpoint(folder)[2]


def test_a_run_is_scored_as_in_its_table(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores.parquet"
    assert fedvsr("evaluate", str(run_folder), "--out", str(out)) == 0
    printed = capsys.readouterr().out
    table = pd.read_parquet(run_folder / "evaluations.parquet")
    last = table[table["round_idx"] == 3].iloc[0]
    (row,) = pd.read_parquet(out).to_dict("records")
    for name in ("psnr_db", "ssim_y", "bicubic_psnr_db", "bicubic_ssim_y"):
        assert row[name] == last[name], name
    for name in ("num_frames", "clip_id", "test_set"):
        assert row[name] == last[name], name
    assert f"{last['psnr_db']:.2f} dB" in printed
    assert (row["checkpoint"], row["test_set"], row["scale"]) == (run_folder.name, "held-out", 4)


def test_a_run_that_scores_the_middle_is_scored_so_again(
    small_yaml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["evaluation.crop=32", "evaluation.max_frames=3"]
    settings += ["evaluation.tiles.frames=2", "evaluation.tiles.overlap_frames=1"]
    settings += ["federation.num_rounds=1", "data.test_clips_per_video=2"]
    flags = [flag for setting in settings for flag in ("--set", setting)]
    results = tmp_path / "results"
    command = [str(small_yaml), *flags, "--executor", "serial", "--out", str(results)]
    assert fedvsr("run", *command) == 0
    (folder,) = results.iterdir()
    out = tmp_path / "s.parquet"
    assert fedvsr("evaluate", folder.name, "--results", str(results), "--out", str(out)) == 0
    table = pd.read_parquet(folder / "evaluations.parquet")
    names = ["test_set", "clip_id", "num_frames", "psnr_db", "ssim", "bicubic_psnr_y_db"]
    last = table[table["round_idx"] == 1][names].reset_index(drop=True)
    assert last["num_frames"].tolist() == [3, 3]
    pd.testing.assert_frame_equal(pd.read_parquet(out)[names], last, check_exact=True)
    assert "mean" in capsys.readouterr().out


def test_test_sets(weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = {"000": moving_texture(6, 36, 50, seed=1), "011": moving_texture(9, 32, 48, seed=2)}
    for name, frames in truth.items():
        write_pictures(tmp_path / "gt" / name, frames)
        cut = frames[:, : 32 + 4 * (name == "000"), :48]
        low = [quantise(bicubic_downscale(f.astype(np.float32) / 255, 4)) for f in cut]
        write_pictures(tmp_path / "lq" / name, np.stack(low))
    write_pictures(tmp_path / "lq" / "020", SOFT)
    tables = []
    for index, more in enumerate(([], ["--lq", str(tmp_path / "lq")])):
        out = tmp_path / f"{index}.parquet"
        command = ["evaluate", weights, str(tmp_path / "gt"), *more, "--out", str(out), *RUN]
        assert fedvsr(*command) == 0
        tables.append(pd.read_parquet(out))
    printed = capsys.readouterr().out
    made_lq, named = tables
    assert made_lq["clip_id"].tolist() == ["000", "011"]
    assert made_lq["num_frames"].tolist() == [6, 9]
    # An untrained network is bicubic.
    assert made_lq["psnr_db"].to_numpy() == pytest.approx(made_lq["bicubic_psnr_db"], abs=1e-6)
    assert made_lq["degradation"].tolist() == ["bi", "bi"]
    assert named["degradation"].isna().all(), "nobody said how these frames were made"
    kinds = ["degradation"]
    pd.testing.assert_frame_equal(made_lq.drop(columns=kinds), named.drop(columns=kinds))
    assert set(made_lq["test_set"]) == {"gt"}
    assert (made_lq["psnr_y_db"] > made_lq["psnr_db"]).all()
    assert re.search(rf"mean +{made_lq['psnr_db'].mean():.2f} dB", printed)
    assert made_lq["lpips"].isna().all()

    def refused(*arguments: str) -> str:
        assert fedvsr("evaluate", weights, *arguments, *RUN) == 2
        return capsys.readouterr().err

    gt = str(tmp_path / "gt")
    assert "is a file, not a run with test clips" in refused()
    assert "--lq needs ground truth" in refused("--lq", gt)
    assert "it must be 12 x 9" in refused(gt, "--lq", gt)
    assert "--degrade needs ground truth" in refused("--degrade", "bd")
    assert "--lq and --degrade both say" in refused(gt, "--lq", gt, "--degrade", "bd")
    assert "give the name of a pipeline, or steps" in refused(gt, "--degrade", "7")
    assert "bda is no ready-made pipeline" in refused(gt, "--degrade", "bda")
    several = ["--degrade", "{clean: bi, soft: bd}", "--max-frames", "1"]
    assert fedvsr("evaluate", weights, gt, *several, *RUN) == 0
    printed = capsys.readouterr().out
    assert "mean of clean" in printed
    assert "mean of soft" in printed
    lone = str(write_pictures(tmp_path / "lone", SOFT[:2]))
    assert "2 clips of ground truth and 1 of --lq" in refused(gt, "--lq", lone)
    assert "name a .parquet file" in refused(gt, "--out", str(tmp_path / "s.csv"))
    (tmp_path / "lq" / "011" / "8.png").unlink()
    assert "lq/011 ends after 8 frames" in refused(gt, "--lq", str(tmp_path / "lq"))
    assert fedvsr("evaluate", weights, gt, "--lq", str(tmp_path / "lq"), "--max-frames", "5") == 0
    tiny = str(write_pictures(tmp_path / "small", SOFT[:2, :10]))
    assert "SSIM needs 11 pixels a side" in refused(tiny)


def test_10_bits_in_10_bits_out(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A slow ramp, which has steps of four levels of 10 bits with 8.
    ramp = np.linspace(20000, 26000, 128).round()[None, None, :, None]
    frames = ramp.repeat(4, 0).repeat(48, 1).repeat(3, -1).astype(np.uint16)
    source = write_clip(tmp_path / "v.mp4", frames, colour=Colour(9, False, 9, 16), bits=10)
    base = ["upscale", str(source), "--checkpoint", weights, *RUN, "--crf", "0"]
    assert fedvsr(*base) == 0
    out = open_clip(tmp_path / "v_x4.mp4")
    assert isinstance(out, Video)
    assert (out.depth, out.colour) == (10, Colour(9, False, 9, 16))
    wide = np.linspace(20000, 26000, 512)[8:-8]
    (deep, _), *_ = out.frames(deep=True)
    assert np.abs(deep[96, 8:-8, 1] - wide).max() < 150, "under 0.6 levels of 8 bits"
    assert fedvsr(*base, "--bits", "8", "--out", str(tmp_path / "8.mp4")) == 0
    assert open_clip(tmp_path / "8.mp4").depth == 8
    assert "10 bits per sample are reduced to 8" in capsys.readouterr().out
    assert fedvsr(*base, "--out", str(tmp_path / "p")) == 0
    folder = open_clip(tmp_path / "p")
    assert folder.depth == 16
    (deep, _), *_ = folder.frames(deep=True)
    assert np.abs(deep[96, 8:-8, 1] - wide).max() < 150
    assert "HDR colours, but no tag for them" in capsys.readouterr().out
    for more, message in (
        (["--bits", "12"], "--bits 12: a video by libx264 has 8 or 10 bits per sample"),
        (["--bits", "10", "--out", str(tmp_path / "q")], "--bits 10: a picture has 8 or 16"),
    ):
        assert fedvsr(*base, *more, "--overwrite") == 2
        assert message in capsys.readouterr().err


def test_pictures_keep_transparency_profiles_and_16_bits(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "p"
    folder.mkdir()
    alpha = np.full((32, 48), 65535, np.uint16)
    alpha[:8] = 0
    for index in range(2):
        pictures.write(folder / f"{index}.png", SOFT[index].astype(np.uint16) * 256, alpha)
    command = ["upscale", str(folder), "--checkpoint", weights, *RUN]
    assert fedvsr(*command) == 0
    assert "dropped" not in capsys.readouterr().out
    out = tmp_path / "p_x4" / "0.png"
    large = pictures.alpha(out)
    assert large is not None
    assert (pictures.bits(out), large.shape, large[:24].max(), large[40:].min()) == (
        16, (128, 192), 0, 65535,
    )  # fmt: skip
    assert fedvsr(*command, "--deinterlace", "--overwrite") == 2
    assert "--deinterlace is for videos" in capsys.readouterr().err
    assert fedvsr(*command, "--out", str(tmp_path / "v.mp4")) == 0
    printed = capsys.readouterr().out
    assert "transparency is dropped: a video is written without it" in printed
    assert "16 bits per sample are reduced to 10" in printed


def test_interlaced_video_is_warned_about(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = 1 << 18 | 1 << 29
    encoder = {"x264-params": "bff=1"}
    source = write_clip(tmp_path / "v.mp4", SOFT, flags=flags, encoder=encoder)
    command = ["upscale", str(source), "--checkpoint", weights, *RUN, "--overwrite"]
    assert fedvsr(*command) == 0
    assert "the video is interlaced: each frame holds two moments" in capsys.readouterr().out
    plain = frames_of(tmp_path / "v_x4.mp4")
    assert fedvsr(*command, "--deinterlace") == 0
    assert "is interlaced" not in capsys.readouterr().out
    separated = frames_of(tmp_path / "v_x4.mp4")
    assert separated.shape == plain.shape
    assert (separated != plain).any()


def test_a_video_that_was_cut_short_is_refused_before_computing(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    video = write_clip(tmp_path / "v.mkv", moving_texture(40, 32, 48))
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    monkeypatch.setattr(Model, "forward", lambda *_: pytest.fail("computed"))
    assert fedvsr("upscale", str(video), "--checkpoint", weights, *RUN) == 2
    assert re.search(r"v\.mkv is truncated: \d+ bytes are missing", capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir()] == ["v.mkv"]


def test_outputs_that_cannot_be_named(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = write_clip(tmp_path / "v.mp4", SOFT[:2])
    longest = "n" * 300
    for command, message in (
        (["upscale", str(video), "--out", f"{tmp_path}/{longest}.mp4"], "the name is too long"),
        (["upscale", str(video), "--out", f"{tmp_path}/{longest}"], "the name is too long"),
        (["upscale", str(video), "--out", f"{tmp_path}/{longest}/%05d.png"], "the name is too lo"),
        (["upscale", str(video), "--out", f"{tmp_path}/{longest}/o.mp4"], "the name is too long"),
        (["upscale", str(video), "--out", f"{video}/o.mp4"], "v.mp4 is a file, not a folder"),
        (["upscale", f"{tmp_path}/{longest}.mp4"], "File name too long"),
    ):
        assert fedvsr(*command, "--checkpoint", weights, *RUN) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "t.parquet").mkdir()
    for out, message in (
        (f"{tmp_path}/{longest}.parquet", "the name is too long"),
        (f"{tmp_path}/t.parquet", "t.parquet is a folder"),
        (f"{video}/t.parquet", "name a .parquet file in an existing folder"),
    ):
        assert fedvsr("evaluate", weights, str(video), "--out", out, *RUN) == 2
        assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.parquet", "v.mp4"]


def test_deep_ground_truth_is_scored_with_8_bits(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = write_clip(tmp_path / "v.mp4", moving_texture(2, 32, 48), bits=10)
    assert fedvsr("evaluate", weights, str(video), *RUN) == 0
    assert "v.mp4: 10 bits per sample are reduced to 8, and scored so" in capsys.readouterr().out
