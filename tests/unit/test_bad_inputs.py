"""Mistakes in settings, files and sweeps: each is refused in one short line that names it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedvsr.config import load_config
from fedvsr.data.videos import resolve
from fedvsr.errors import UserError
from fedvsr.tuning.estimate import cost
from fedvsr.tuning.sweep import any_trial, expand, load_sweep

SETTINGS = {
    # Booleans, text and lists for numbers.
    "local.lr=true": "local.lr = true: true and false are not numbers",
    "seed=false": "seed = false: true and false are not numbers",
    "local.betas=[true, 0.9]": "local.betas = [true, 0.9]: true and false are not numbers",
    "data.max_train_clips=true": "true and false are not numbers",
    "evaluation.tiles.size=true": "evaluation.tiles.size = true: true and",
    "model.channels=true": "model.channels = true: true and",
    "seed=1:30": "seed = '1:30': input should be a valid integer",
    "local.lr=2020-01-01": "local.lr = '2020-01-01': input should be a valid number",
    "local.lr=yes": "local.lr = 'yes': input should be a valid number",
    "local.lr=1e400": "local.lr = inf: input should be a finite number",
    "local.lr=1e-400": "local.lr = 0.0: input should be greater than 0",
    "seed=1.5": "seed = 1.5: input should be a valid integer",
    "seed=[1]": "seed = [1]: input should be a valid integer",
    "seed=": "seed = None: input should be a valid integer",
    "seed=\uff11": "seed = '\uff11': input should be a valid integer",
    "federation.clients_per_round=1e30": "federation.clients_per_round = 1e+30: ",
    "local.lr.x=1": "local.lr = {'x': 1}: input should be a valid number",
    # Numbers and the like for text.
    "name=5": "name = 5: input should be a valid string; write it in quotes",
    "name=true": "write it in quotes",
    "description=[a]": "description = ['a']: input should be a valid string",
    "data.held_out=5": "data.held_out = 5: input should be a valid list or input should be 'reds4'",
    "data.videos=[5]": "data.videos.0 = 5: input should be a valid string; write it in quotes",
    "data.videos=a.mp4": "data.videos = 'a.mp4': input should be a valid list",
    # Names of folders.
    "name=.": "name = '.': give letters, digits, _, . and -, the first of them a letter",
    "name=..": "name = '..': give letters",
    "name=-x": "name = '-x': give letters",
    "name=a/b": "name = 'a/b': give letters",
    "name=../a": "name = '../a': give letters",
    "name=''": "name = '': give letters",
    "name=.hidden": "name = '.hidden': give letters",
    'name="a\\nb"': "name = 'a\\nb': give letters",
    # Values for sections, and settings that there are not.
    "local=null": "local = None: give settings in it, as {key: value}",
    "local=true": "local = True: give settings in it",
    "data=[a]": "data = ['a']: give settings in it",
    "algorithm=fedavg": "algorithm = 'fedavg': give settings in it",
    "algorithm.name=": "algorithm.name = None is not one of the algorithms",
    "algorithm.name=../fedavg": "is not one of the algorithms; did you mean 'fedavg'?",
    'algorithm.name="a\\nb"': "algorithm.name = a b is not one of the algorithms",
    "model.name=spec": "model.name = spec is not one of the models",
    "local.=1": "local.'' is not a setting",
    ".=1": "'' is not a setting",
    "=1": "--set '=1' is not of the form",
    "seed: 1": "--set 'seed: 1' is not of the form",
    "extends=demo": "extends is not a setting",
    "local.a\nb=1": "local.a b is not a setting",
    "local={lr: 1, lr: 2}": "lr is given twice; leave one of them out",
    "algorithm.wavelet=''": "'' is not an orthogonal wavelet",
    "algorithm.wavelet=db99": "'db99' is not an orthogonal wavelet",
    'data.cache_dir="a\\0b"': "text holds a null character",
    # What would take long, or exhaust the stack.
    "seed=" + "9" * 5000: "a number has more than 40 digits",
    "seed=0x" + "f" * 5000: "a number has more than 40 digits",
    "seed=" + "x" * 100_000: "xxx...: input should be a valid integer",
    "seed=" + "[" * 5000: "more than 40 lists and sections in one another",
    "a." * 5000 + "b=1": "a.a.... is not of the form section.key=value",
    "x" * 100_000: "xxx... is not of the form section.key=value",
    "seed=!!int x": "the tag !!int is not supported; leave it out",
    "seed=!!python/name:os.system": "is not supported; leave it out",
    "seed=*a": "--set seed=*a is not valid YAML: found undefined alias 'a'",
    "seed=\0": "it holds the character '\\x00'",
    "seed=\udce9": "it holds the character '\\udce9'",
}  # fmt: skip


def refusal(call: object, *arguments: object) -> str:
    """The message with which a call refuses its arguments; it is one line that can be read."""
    assert callable(call)
    with pytest.raises(UserError) as refused:
        call(*arguments)
    message = str(refused.value)
    assert message.splitlines() == [message]
    assert len(message) < 400
    return message


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda text: ascii(text)[:40])
def test_a_bad_setting_is_refused(setting: str) -> None:
    assert SETTINGS[setting] in refusal(load_config, "demo", [setting])


ALIASES = "description: [&b0 [x,x,x,x,x,x,x,x,x,x]" + "".join(
    f", &b{i} [{','.join([f'*b{i - 1}'] * 10)}]" for i in range(1, 9)
)
FILES: dict[str, tuple[bytes | str, str]] = {
    "latin-1": (b"extends: demo\ndescription: caf\xe9\n", "line 2 is not UTF-8; save the file as"),
    "utf-16": ("extends: demo".encode("utf-16"), "line 1 is not UTF-8"),
    "utf-16-le": ("extends: demo".encode("utf-16-le"), "it holds the character '\\x00'"),
    "gzip": (b"\x1f\x8b\x08\x00abc", "line 1 is not UTF-8"),
    "empty": ("", "holds no settings"),
    "comment": ("# nothing\n", "holds no settings"),
    "text": ("hello", "holds no settings"),
    "number": ("5", "holds no settings"),
    "xml": ("<a>\n</a>", "holds no settings"),
    "toml": ("[local]\nlr = 1\n", "line 2 is not valid YAML"),
    "tabs": ("local:\n\tlr: 1\n", "line 2 is not valid YAML: found character '\\t'"),
    "two documents": ("extends: demo\n---\nseed: 1\n", "line 2 is not valid YAML"),
    "too large": ("#" * (1 << 21), "is larger than 1 MiB"),
    "twice": ("extends: demo\nseed: 1\nseed: 2\n", "line 3: seed is given twice"),
    "twice below": ("local: {lr: 1, lr: 2}", "lr is given twice"),
    "aliases": (ALIASES, "its aliases stand for millions of characters; write less"),
    "circle": ("local: &a {x: *a}", "*a holds itself"),
    "deep": ("local: " + "[" * 5000, "more than 40 lists"),
    "itself": ("extends: a.yaml", "a.yaml extends itself: a.yaml -> a.yaml; break the circle"),
    "itself by another name": ("extends: ./a.yaml", "extends itself: a.yaml -> ./a.yaml"),
    "in a circle": ("extends: b.yaml", "extends itself: a.yaml -> b.yaml -> c.yaml -> a.yaml"),
    "a long chain": ("extends: chain0.yaml", "a.yaml extends 20 files in a row"),
    "a list": ("extends: [demo, vrt]", "a.yaml: extends = ['demo', 'vrt'] is not a preset"),
    "a number of a file": ("extends: 5", "extends = 5 is not a preset"),
    "nothing": ("extends: ''", "'' is neither a preset nor a .yaml file"),
    "outside": ("extends: ../../config", "'../../config' is neither a preset nor"),
    "an absolute path": ("extends: /etc/passwd", "'/etc/passwd' is neither a preset nor"),
    "missing": ("extends: nosuch.yaml", "nosuch.yaml cannot be read: No such file"),
    "misspelt": ("extends: dmeo", "'dmeo' is neither a preset nor a .yaml file; did you mean"),
    "empty section": ("extends: demo\nlocal:\n", "local = None: give settings in it"),
    "date": ("extends: demo\nseed: 2020-02-30\n", "seed = '2020-02-30': input should be a valid"),
    "merge": ("extends: demo\nlocal: {<<: 5}\n", "line 2 is not valid YAML"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_bad_file_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, message = FILES[name]
    monkeypatch.chdir(tmp_path)
    Path("b.yaml").write_text("extends: c.yaml")
    Path("c.yaml").write_text("extends: a.yaml")
    for i in range(30):
        Path(f"chain{i}.yaml").write_text(f"extends: chain{i + 1}.yaml")
    Path("a.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert message in refusal(load_config, "a.yaml")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("..", "'..' is neither a preset nor a .yaml file"),
        ("../presets/demo", "'../presets/demo' is neither"),
        ("a\nb", "'a\\nb' is neither a preset"),
        ("a\0.yaml", "cannot be read: embedded null byte"),
        ("[bold]demo", "'[bold]demo' is neither a preset"),
        ("x" * 5000, "xxx... is neither a preset"),
        (".", "'.' is neither a preset"),
    ],
)
def test_a_bad_source_is_refused(source: str, message: str) -> None:
    assert message in refusal(load_config, source)


@pytest.mark.parametrize(
    ("video", "message"),
    [
        ("package:../..", "'package:../..' (data.videos) is not of the form package:NAME/FILE"),
        ("package:..", "is not of the form package:NAME/FILE"),
        ("package:", "is not of the form package:NAME/FILE"),
        ("package:fedvsr/../../x.mp4", "is not of the form package:NAME/FILE"),
        ("package:fedvsr//etc/passwd", "is not of the form package:NAME/FILE"),
        ("package:xml.dom/a.mp4", "is not of the form package:NAME/FILE"),
        ("package:fedvsr", "there is no video"),
        ("package:__main__/a.mp4", "is not installed"),
        ("", "data.videos = '': give a name"),
        ("x" * 5000, "xxx...: File name too long"),
        ("~nosuchuser/a.mp4", "Could not determine home directory"),
        ("/dev/zero", "there is no video /dev/zero"),
    ],
)
def test_a_bad_name_of_a_video_is_refused(video: str, message: str) -> None:
    assert message in refusal(resolve, video)


ESTIMATE = "estimate: {gpu_seconds_per_round: X, source: y}"
SWEEPS = {
    # Too many trials.
    "space: {local.lr: {linspace: [0.1, 1, 1000000000]}}": "at least 2 values and at most 2,000",
    "space: {local.lr: {linspace: [0.1, 1, 99]}, algorithm.alpha: {linspace: [0.1, 1, 99]}}":
        "the sweep has 9,801 trials, more than 2,000; draw some of them",
    "searcher: {name: random, num_samples: 1000000000}": "searcher.num_samples = 1000000000: ",
    f"seeds: {list(range(3000))}": "the sweep has 3,000 trials",
    # Numbers without end.
    ESTIMATE.replace("X", ".inf"): "gpu_seconds_per_round = inf: ",
    ESTIMATE.replace("X", "1e400"): "gpu_seconds_per_round = inf: ",
    ESTIMATE.replace("X", ".nan"): "gpu_seconds_per_round = nan: ",
    ESTIMATE.replace("X", "1e308 * 10"): "'1e308 * 10' is beyond the largest number",
    ESTIMATE.replace("X", "1e308"): "1e+308 in trial 0 is not the time of a round",
    ESTIMATE.replace("X", "-5"): "= -5 in trial 0 is not the time of a round",
    ESTIMATE.replace("X", "true"): "true and false are not numbers",
    ESTIMATE.replace("X", "9**9**9"): "only + - * / ( ), numbers and names",
    ESTIMATE.replace("X", "'(" + "(" * 300 + "'"): "is longer than 200 characters",
    ESTIMATE.replace("X", "9" * 4400): "a number has more than 40 digits",
    ESTIMATE.replace("X", "local.optimizer"): "local.optimizer = 'adam' is not a number",
    "space: {local.lr: {linspace: [0, .inf, 3]}}": "linspace.1 = inf: input should be a finite",
    "space: {local.lr: {uniform: [-1.7e308, 1.7e308]}}": "uniform: a bound is beyond 1e+300",
    "space: {local.lr: {loguniform: [1, 1.7e308]}}": "loguniform: a bound is beyond 1e+300",
    "constraints: {algorithm.alpha: local.lr * 1e308 * 1e308}": "is beyond the largest number",
    # Metrics that no trial reports.
    "metric: test/nosuch/psnr_db": "but no test set is called nosuch (there are: held-out)",
    "metric: test/held_out/ssim": "no test set is called held_out; did you mean 'held-out'?",
    "metric: test//psnr_db": "is not reported",
    "metric: 5": "metric = 5: input should be a valid string; write it in quotes",
    'metric: "psnr_db\\n"': "metric = 'psnr_db\\n' is not reported",
    # Values that are none.
    "space: {local.lr: {grid: [true]}}": "trial 0 (lr=True): local.lr = true: true and false are",
    "space: {local.lr: {grid: [null, 1]}}": "grid: None is not a number, text or boolean; name",
    "space: {local.betas: {grid: [[0.9, 0.99]]}}": "[0.9, 0.99] is not a number, text or boolean",
    "space: {local.lr: {grid: [0.1, 0.1]}}": "space.local.lr: grid has 0.1 more than once",
    "space: {local.lr: {grid: 5}}": "space.local.lr.grid = 5: input should be a valid list",
    "space: {local.lr: [1, 2]}": "space.local.lr = [1, 2]: give settings in it",
    "space: {local.lr: {linspace: [1, 1, 3]}}": "linspace needs two different ends",
    "space: {local.lr: {linspace: [0, 1, true]}}": "linspace = [0, 1, true]: true and false are",
    "space: {x: {cases: {a: null}}}": "space.x.cases.a = None: give settings in it",
    "space: {x: {cases: {1: {local.lr: 1}}}}": "the key '1' is not text; write it in quotes",
    "space: {'': {grid: [1]}}": "'' does not name a setting; write section.key",
    "space: {'..': {grid: [1]}}": "'..' does not name a setting",
    "space: [a]": "space = ['a']: give settings in it",
    "set:": "set = None: give settings in it",
    "set: {local.steps: true}": "trial 0 (lr=0.001): local.steps = true: true and false",
    "seeds: [true]": "seeds = [true]: true and false are not numbers",
    "max_failures: true": "max_failures = true: true and false are not numbers",
    # Names.
    "name: ..": "name = '..': give letters, digits",
    "name: -x": "name = '-x': give letters, digits",
    "name: a/b": "name = 'a/b': give letters, digits",
    "name: '[bold]a'": "name = '[bold]a': give letters, digits",
    "base: [demo]": "base = ['demo']: input should be a valid string",
    "base: ../../demo": "'../../demo' is neither a preset nor a .yaml file",
    "base: sweep.yaml": "trial 0 (lr=0.001): base is not a setting",
}  # fmt: skip


def expanded(path: Path) -> None:
    sweep = load_sweep(path)
    if sweep.searcher.built_in:
        cost(sweep, expand(sweep), path.parent / "results")
    else:
        any_trial(sweep)


@pytest.mark.parametrize("line", SWEEPS, ids=lambda text: text[:50])
def test_a_bad_sweep_is_refused(line: str, tmp_path: Path) -> None:
    given = line.partition(":")[0]
    lines = {"name": "s", "base": "demo", "space": "{local.lr: {grid: [0.001]}}"}
    whole = [line, *(f"{key}: {value}" for key, value in lines.items() if key != given)]
    path = tmp_path / "sweep.yaml"
    path.write_text("\n".join(whole))
    assert SWEEPS[line] in refusal(expanded, path)
