from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from fedvsr.config import ExperimentConfig, load_config, presets
from fedvsr.errors import UserError


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("local.stpes=3", r"^local\.stpes is not a setting; did you mean 'steps'\?$"),
        ("lcoal.steps=3", r"^lcoal is not a setting; did you mean 'local'\?$"),
        ("algorithm.lambda_vrs=1", r"^algorithm\.lambda_vrs is not .* 'lambda_vsr'\?$"),
        ("evaluation.tiles.sise=9", r"^evaluation\.tiles\.sise is not .* 'size'\?$"),
        ("local.lr=-1", r"^local\.lr = -1: .*greater than 0$"),
        ("local.betas=[0.9, 1]", r"^local\.betas\.1 = 1: .*less than 1$"),
        ("local.lr=.nan", r"^local\.lr = nan: .*finite number$"),
        ("local.crop=abc", r"^local\.crop = 'abc': .*integer"),
        ("algorithm.name=fedvrs", r"^algorithm\.name = fedvrs is not .* did you mean 'fedvsr'\?"),
        ("algorithm.wavelet=bior2.2", r"not an orthogonal wavelet"),
        ("federation.clients_per_round=9", r"^federation\.clients_per_round = 9 .* = 4$"),
        ("local.num_frames=5", r"^local\.num_frames = 5 is more than data\.clip_frames = 4$"),
        (
            "local.interval=2",
            r"^local\.num_frames = 3 at local\.interval = 2 reaches over 5 frames, more than "
            r"data\.clip_frames = 4$",
        ),
        ("local.ends=repeat", r"^local\.ends = 'repeat': .*'redraw' or 'mirror'"),
        ("local.num_workers=-1", r"^local\.num_workers = -1: .*greater than or equal to 0$"),
        ("local.crop=34", r"^local\.crop = 34 is not a multiple of data\.scale = 4$"),
        ("data.scale=2", r"^data\.scale = 2, but the network enlarges by 4"),
        ("data.videos=[]", r"^data\.videos is missing: give files .* or prepared data sets"),
        ("data.train=[reds]", r"^data\.videos and data\.train exclude each other"),
        ("data.held_out=reds4", r"^data\.test and data\.held_out go with data\.train"),
        ("evaluation.tiles={frames: 2, overlap_frames: 2}", r"overlap_frames = 2 must be below"),
        ("local.steps", r"^--set 'local\.steps' is not of the form"),
        ("local.steps=[", r"^--set local\.steps: '\[' is not a valid value"),
    ],
)
def test_refusals_are_one_line_with_the_way_out(
    small_yaml: Path, override: str, message: str
) -> None:
    with pytest.raises(UserError, match=message) as refused:
        load_config(str(small_yaml), [override])
    assert "\n" not in str(refused.value)


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a preset; did you mean 'demo'"):
        load_config("dmeo")
    with pytest.raises(UserError, match="cannot be read: No such file"):
        load_config(str(tmp_path / "none.yaml"))
    bad = tmp_path / "bad.yaml"
    bad.write_text("a: [1\nb: 2")
    with pytest.raises(UserError, match=r"bad\.yaml line \d is not valid YAML"):
        load_config(str(bad))
    bad.write_text("- 1")
    with pytest.raises(UserError, match="holds no settings"):
        load_config(str(bad))
    bad.write_text("name: x")
    with pytest.raises(UserError, match=r"^data is missing: .* \(and 2 more\)"):
        load_config(str(bad))


def test_overrides_and_extends(tmp_path: Path, small_yaml: Path) -> None:
    config = load_config(str(small_yaml), ["local.lr=1e-4", "cluster.slots=2"])
    assert config.local.lr == 1e-4
    assert config.local.crop == 32, "the section's other keys stay"
    child = tmp_path / "child.yaml"
    child.write_text("extends: demo\nlocal: {lr: 0.5}\n")
    assert load_config(str(child)).local.lr == 0.5
    assert load_config(str(child)).local.crop == load_config("demo").local.crop


def test_another_algorithm_takes_no_key_along(small_yaml: Path) -> None:
    config = load_config(str(small_yaml), ["algorithm.lambda_vsr=0.5", "algorithm.name=fedavg"])
    assert config.algorithm.model_dump()["name"] == "fedavg"
    assert config.algorithm.model_dump()["lambda_vsr"] == 1
    same = load_config(str(small_yaml), ["algorithm.lambda_vsr=0.5", "algorithm.name=fedvsr"])
    assert same.algorithm.model_dump()["lambda_vsr"] == 0.5


def test_hash_covers_what_changes_numbers_and_nothing_else(small_yaml: Path) -> None:
    def hash_of(*overrides: str) -> str:
        return load_config(str(small_yaml), overrides).config_hash()

    same = ["name=other", "cluster.slots=1", "checkpoint.every_rounds=3", "data.cache_dir=/x"]
    same += ["local.num_workers=0"]
    assert all(hash_of(override) == hash_of() for override in same)
    different = ["seed=4", "local.num_threads=2", "algorithm.alpha=2", "data.num_clients=3"]
    assert len({hash_of(override) for override in [*different, "seed=3"]}) == 5


def test_presets_resolve_and_print(tmp_path: Path) -> None:
    for name, description in presets().items():
        # Those of the paper's networks lack nothing but videos.
        videos = ["data.videos=[a.mp4]"] if name in {"vrt", "rvrt", "iart"} else []
        config = load_config(name, videos)
        assert description, name
        assert "\n" not in description
        copy = tmp_path / f"{name}.yaml"
        copy.write_text(config.to_yaml())
        assert load_config(str(copy)) == config


def test_schema_describes_every_field() -> None:
    schema = ExperimentConfig.model_json_schema()
    definitions = [schema, *schema["$defs"].values()]
    fields = [f for d in definitions for f in d.get("properties", {}).items() if f[0] != "name"]
    assert len(fields) > 30
    assert [name for name, field in fields if "description" not in field] == []
    assert "lambda_vsr" in yaml.safe_dump(schema)


def test_what_local_leaves_out_is_the_networks_recipe(small_yaml: Path) -> None:
    demo = load_config("demo")
    assert (demo.local.crop, demo.local.batch_size, demo.local.steps) == (96, 4, 20)
    rvrt = load_config("demo", ["model.name=rvrt"])
    assert (rvrt.model.size, rvrt.local.crop, rvrt.local.num_frames) == ("demo", 128, 4)
    assert rvrt.local.slow_params == ("spynet",)
    assert rvrt.evaluation.max_frames == 5, "what the preset says of a section stands"
    given = load_config("demo", ["model.name=rvrt", "local.crop=160", "model.mlp_ratio=1.5"])
    assert (given.local.crop, given.local.num_frames) == (160, 4)
    assert (given.model.mlp_ratio, given.model.embed_dims) == (1.5, (24, 24, 24))
    own = load_config(str(small_yaml))
    assert own.local.crop == 32


def test_a_printed_configuration_loads_as_the_same(tmp_path: Path) -> None:
    for name in ("tiny", "vrt", "rvrt", "iart"):
        config = load_config("demo", [f"model.name={name}"])
        path = tmp_path / f"{name}.yaml"
        path.write_text(config.to_yaml())
        assert load_config(str(path)) == config


@pytest.mark.parametrize("name", ["vrt", "rvrt", "iart"])
def test_presets_of_the_papers_networks(name: str) -> None:
    with pytest.raises(UserError, match=r"^data\.videos is missing: .*--set data\.videos="):
        load_config(name)
    config = load_config(name, ["data.videos=[a.mp4]"])
    assert (config.model.name, config.model.size) == (name, "paper")
    assert config.local.crop == 256
    assert config.local.freeze_steps > 0
    # The weights of the two losses that the paper found best.
    best = {"vrt": (1.0, 1.0), "rvrt": (1.0, 0.5), "iart": (0.5, 0.5)}[name]
    algorithm = config.algorithm.model_dump()
    assert (algorithm["lambda_vsr"], algorithm["lambda_hifr"]) == best


def test_a_size_that_a_network_lacks_is_refused() -> None:
    with pytest.raises(UserError, match=r"^model\.size = 'paper': .*'demo'"):
        load_config("demo", ["model.size=paper"])
