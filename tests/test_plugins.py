"""Plugins: one file adds an entry to each table and runs only where the user names it."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import itertools
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import TINY, do_nothing_model
from documents import ROOT, run_blocks
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import pipeline as pl
from pipeline import plugins, processes, registry
from pipeline.config import dump, from_dict, load, to_dict
from pipeline.data import cache, cases, properties
from pipeline.data.loaders import PatchDataset
from pipeline.documents import PluginRecord
from pipeline.files.documents import problem
from pipeline.losses import LOSSES
from pipeline.records import NamedOptions
from pipeline.registry import Alias, Registry

PAGE = ROOT / "docs" / "extending.md"

MINE = '''
import numpy as np
import torch
from monai.transforms import MapTransform, RandomizableTransform

import pipeline as pl


def brier(*, power: float = 2.0):
    """Error of the foreground probability; voxels that are ignored have ``valid`` 0."""

    def loss(head, target, valid):  # (B, 1, *S) logits, labels, 0 or 1
        error = (head.float().sigmoid() - (target > 0).float()).abs() ** power
        return (error * valid).sum() / valid.sum().clamp(min=1)

    return loss


class Shallow(pl.HeadedNet):
    """Two convolutions."""

    def __init__(self, in_channels, out_channels, dims, width):
        super().__init__(heads=["main"], divisor=[1] * dims)  # axes may have any length
        conv = torch.nn.Conv3d if dims == 3 else torch.nn.Conv2d
        first = conv(in_channels, width, 3, padding=1)
        self.layers = torch.nn.Sequential(first, torch.nn.ReLU(), conv(width, out_channels, 1))
        self.outputs = ("layers.2",)  # for train.init_from.fresh_heads
        self.levels = (("layers.0",),)  # for train.layer_decay, from the input on

    def run(self, x):  # (B, C, *S) -> logits (B, K, *S) of each head
        return {"main": self.layers(x)}


def shallow(*, in_channels: int, out_channels: int, dims: int, width: int = 8):
    return Shallow(in_channels, out_channels, dims, width)


class RandInverted(RandomizableTransform, MapTransform):
    """Intensities upside down."""

    def __init__(self, keys, prob):
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)

    def __call__(self, data):
        self.randomize(None)  # draws from self.R: a seed gives the same sample
        changed = self.keys if self._do_transform else ()
        return {**data, **{key: 1 - data[key] for key in changed}}


def invert(keys, p: float = 0.5):
    return [RandInverted(keys.image, p)]


def volume_difference(prediction, target, valid=None):
    """Difference of the two volumes of foreground, in voxels."""
    counted = ... if valid is None else valid
    volumes = [np.count_nonzero(array[counted]) for array in (prediction, target)]
    return {"volume_difference": float(abs(volumes[0] - volumes[1]))}


def drop_left(array, column: int = 10):
    """Takes the foreground left of a column away."""
    return np.where(np.arange(array.shape[-1]) < column, 0, array).astype(array.dtype)


pl.register("brier", pl.LossEntry(brier, targets=("labels",)))
pl.register("shallow", pl.NetworkEntry(shallow))
pl.register("invert", pl.AugmentationEntry(invert))
pl.register(
    "volume_difference", pl.MetricEntry(volume_difference, better="lower", compares_numbers=False)
)
pl.register("drop_left", pl.PostprocessStep(drop_left, sees="local"))
'''
"""A plugin with five kinds of entries."""

FURTHER = {
    "normalisation": (
        """
from pipeline.data.normalise import IntensityScale

def halves(array, at: float = 255.0):
    return IntensityScale(low=(0.0,) * len(array), high=(at,) * len(array)), ()

pl.register("halves", pl.NormalisationEntry(halves))
"""
    ),
    "optimizer": (
        """
def plain(parameters, lr: float = 1e-2):
    return torch.optim.SGD(parameters, lr=lr)

pl.register("plain", pl.OptimizerEntry(plain))
"""
    ),
    "schedule": (
        """
def halved(optimizer, epochs, every: int = 1):
    return torch.optim.lr_scheduler.StepLR(optimizer, step_size=every, gamma=0.5)

pl.register("halved", pl.ScheduleEntry(halved))
"""
    ),
}
"""What the plugin of these tests adds to the other tables."""

for _name in pl.__all__:
    getattr(pl, _name)  # loads every table
TABLES = {table.kind: record for record, table in registry.TABLES.items()}

SETTINGS = [
    *(
        "network={name: shallow, options: {width: 4}}",
        "losses=[{name: brier}, {name: dice}]",
        "data.augment=[invert, flip]",
    ),
    *(
        "metrics=[{name: dice}, {name: volume_difference}]",
        "postprocess=[{name: threshold}, {name: drop_left, options: {column: 2}}]",
    ),
    "data.normalise={name: halves, options: {at: 200}}",
    *(
        "train.optimizer={name: plain}",
        "train.schedule={name: halved}",
        "train.average=null",
        "train.epochs=2",
        "data.workers=2",
    ),
]


def python(code: str, *words: object) -> str:
    """Run code in a process of its own, where no plugin was loaded; returns its output."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *map(str, words)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


ONE_BY_ONE = """
import contextlib, importlib, io, json, sys
told = []
for name, *words in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.redirect_stderr(text):
        code = importlib.import_module(f"pipeline.{name}").main(words)
    told.append((code, text.getvalue()))
print(json.dumps(told))
"""


def commands(*lines: list[object]) -> list[str]:
    """Commands, one after the other in one such process; returns what each prints behind its exit
    code, ``0 ...``.
    """
    told = json.loads(
        python(
            ONE_BY_ONE, json.dumps([[str(word) for word in line] for line in lines])
        ).splitlines()[-1]
    )
    assert "Traceback" not in str(told)
    return [f"{code} {text}" for code, text in told]


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plugin") / "mine.py"
    path.write_text(MINE + "".join(FURTHER.values()))
    return path


@pytest.fixture
def empty(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process without plugins, and afterwards as it was before."""
    tables = list(registry.TABLES.values())
    for name in ("_loaded", "_owners"):
        monkeypatch.setattr(plugins, name, {})
    with contextlib.ExitStack() as stack:
        for table in tables:
            stack.enter_context(table.restored())
        yield
    for name in [n for n in sys.modules if n.startswith("pipeline_plugin_")]:
        del sys.modules[name]


def written(path: Path, text: str) -> Path:
    path.write_text("import pipeline as pl\n" + text)
    return path


SIMPLE = "pl.register({0!r}, pl.LossEntry(lambda: None, targets=('labels',)))\n"


# --- a whole run ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(mine: Path, surfaces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``run``, whose first fold was trained with two loader workers, and its config."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.yaml").write_text(TINY)
    (told,) = commands([*train(folder, surfaces), "--fold", 0, "--plugin", mine])
    assert told.startswith("0 "), told
    return folder


def train(folder: Path, surfaces: Path) -> list[object]:
    words = [
        "train",
        "--config",
        folder / "tiny.yaml",
        "--data-dir",
        surfaces,
        "--out",
        folder / "run",
        "--device",
        "cpu",
    ]
    return [*words, "--set", *SETTINGS]


def test_every_table_that_is_open_has_a_piece() -> None:
    """A table that is opened to plugins later belongs into ``FURTHER``, into ``SETTINGS`` and on
    the page.
    """
    plugin = MINE + "".join(FURTHER.values())
    for record in TABLES.values():
        assert f"pl.{record.__name__}(" in plugin
        assert f"pl.{record.__name__}(" in PAGE.read_text()
        assert getattr(pl, record.__name__) is record


@pytest.mark.slow
def test_a_run_keeps_a_copy_and_the_hash(trained: Path, mine: Path) -> None:
    record = {"name": "mine.py", "sha256": hashlib.sha256(mine.read_bytes()).hexdigest()}
    assert (trained / "run/plugins/mine.py").read_bytes() == mine.read_bytes()
    assert json.loads((trained / "run/plugins/plugins.json").read_text()) == [record]
    with safe_open(trained / "run/fold_0/best_model.safetensors", "pt") as file:
        header = json.loads(file.metadata()["pipeline"])
    assert header["plugins"] == [record]
    assert "plugins" not in header["config"]
    assert "plugins:" not in (trained / "run/config.yaml").read_text()


def users(folder: Path, surfaces: Path, out: Path) -> list[list[object]]:
    """A line for each command that reads the run: training goes on, prediction, search, report."""
    predict = [
        "predict",
        "--checkpoint",
        folder / "run/fold_0",
        "--input",
        surfaces / "test_images",
        "--output",
        out / "p",
        "--save-soft",
    ]
    tune = [
        "tune",
        folder / "run",
        "--metric",
        "volume_difference",
        "--workers",
        2,
        "--out",
        out / "tuned.yaml",
        "--by",
        "group",
    ]
    return [
        [*train(folder, surfaces), "--fold", 1],
        [*predict, "--device", "cpu"],
        tune,
        ["report", folder / "run"],
    ]


@pytest.mark.slow
def test_whoever_uses_the_run_names_the_file_again(
    trained: Path, surfaces: Path, mine: Path, tmp_path: Path
) -> None:
    lines = users(trained, surfaces, tmp_path)
    if importlib.util.find_spec("fastapi"):
        lines.append(["serve", "--checkpoint", trained / "run/fold_0", "--port", 0])
    sha256 = hashlib.sha256(mine.read_bytes()).hexdigest()
    for told in commands(*lines):
        assert told.startswith("2 error: ")
        assert f"was made with plugins:\n  mine.py (SHA-256 {sha256[:12]}...) is not loaded" in told
        assert f"A copy lies in {trained / 'run/plugins'}; it is never run by itself." in told
        assert "--plugin FILE" in told
    assert not list(tmp_path.iterdir())
    assert not (trained / "run/fold_1").exists()


@pytest.mark.slow
def test_a_changed_file_is_another_plugin(
    trained: Path, surfaces: Path, mine: Path, tmp_path: Path
) -> None:
    changed = tmp_path / "mine.py"
    changed.write_text(mine.read_text() + "\n# changed\n")
    for told in commands(
        *([*line, "--plugin", changed] for line in users(trained, surfaces, tmp_path / "out"))
    ):
        assert told.startswith("2 error: ")
        assert (
            f", but {changed} has SHA-256"
            f" {hashlib.sha256(changed.read_bytes()).hexdigest()[:12]}...: it was changed" in told
        )


@pytest.mark.slow
def test_with_the_file_everything_goes_on(
    trained: Path, surfaces: Path, mine: Path, tmp_path: Path
) -> None:
    """A fold that is complete, another one, prediction, two processes of a search, a report; the
    copy in the run is as good as the file.
    """
    copy = trained / "run/plugins/mine.py"
    lines = users(trained, surfaces, tmp_path)
    told = commands(
        *(
            [*line, "--plugin", file]
            for line, file in zip([[*lines[0][:-1], 0], *lines], itertools.cycle([copy, mine]))
        )
    )
    assert "already complete" in told[0]
    assert [text[0] for text in told] == ["0"] * 5, told
    assert (trained / "run/fold_1/best_model.safetensors").is_file()
    assert len(list((tmp_path / "p").glob("90?.tif"))) == 2
    assert (tmp_path / "tuned.yaml").is_file()
    assert all(
        f"--plugin {copy}" in text for text in (told[1], told[3])
    )  # the next command, as it is printed
    assert "drop_left: no search knows this step" in told[3]
    summary = json.loads((tmp_path / "p" / "summary.json").read_text())
    assert summary["plugins"] == [
        {"name": "mine.py", "sha256": hashlib.sha256(mine.read_bytes()).hexdigest()}
    ]
    (bare,) = commands(["ensemble", "--fold-dirs", tmp_path / "p", "--output", tmp_path / "e"])
    assert bare.startswith("2 error: ")
    assert "mine.py (SHA-256" in bare
    (named,) = commands(
        ["ensemble", "--fold-dirs", tmp_path / "p", "--output", tmp_path / "e", "--plugin", copy]
    )
    assert named.startswith("0 "), named


@pytest.mark.slow
def test_a_config_of_ones_own_names_plugins(mine: Path, surfaces: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    dry = [*train(tmp_path, surfaces), "--dry-run"]
    unnamed, named = commands(dry, [*dry[:-1], f"plugins=[{mine}]", "--dry-run"])
    assert unnamed.startswith("2 ")
    assert "'shallow' is unknown" in unnamed
    assert "'brier' is unknown" in unnamed
    assert named.startswith("0 "), named


@pytest.mark.slow
def test_ranks_share_a_fold_of_a_plugin(mine: Path, surfaces: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    words = train(tmp_path, surfaces)[1:]
    ranks = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "pipeline.train",
    ]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    line = [
        sys.executable,
        *ranks,
        *map(str, [*words, "data.workers=0", "--fold", 0, "--plugin", mine]),
    ]
    done = subprocess.run(
        line, capture_output=True, text=True, env=environment, timeout=400, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "run/fold_0/best_model.safetensors").is_file()


def test_the_page_runs(
    surfaces: Path,
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    empty: None,
) -> None:
    monkeypatch.chdir(tmp_path)
    least = re.search(r"^```py\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert least is not None
    Path("brier.py").write_text(least[1])
    run_blocks(PAGE, {"PLUGIN": "brier.py", "DATA": surfaces, "CONFIG": tiny})
    assert capsys.readouterr().out.endswith("['brier.py', 'plugins.json']\n")


# --- nothing in a run or a model file is run ------------------------------------------------------

HARMFUL = "import pathlib\npathlib.Path({!r}).write_text('run')\n"


@pytest.fixture
def hostile(trained: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A run that does all it can to have its plugin run, and the file that this would leave."""
    run, trace = tmp_path / "run", tmp_path / "trace"
    shutil.copytree(trained / "run", run)
    evil = run / "plugins" / "mine.py"
    evil.write_text(HARMFUL.format(str(trace)))
    record = {"name": "mine.py", "sha256": hashlib.sha256(evil.read_bytes()).hexdigest()}
    (run / "plugins" / "plugins.json").write_text(json.dumps([record]))
    (run / "config.yaml").write_text((run / "config.yaml").read_text() + f"plugins: [{evil}]\n")
    model = run / "fold_0" / "best_model.safetensors"
    with safe_open(model, "pt") as file:
        header = json.loads(file.metadata()["pipeline"])
    header["config"]["plugins"] = [str(evil)]
    header["plugins"] = [record]
    save_file(load_file(model), model, {"pipeline": json.dumps(header)})
    return run, trace


@pytest.mark.slow
def test_a_hostile_run_runs_nothing(
    hostile: tuple[Path, Path], surfaces: Path, trained: Path, tmp_path: Path
) -> None:
    run, trace = hostile
    own, stored = (
        ["train", "--data-dir", surfaces, "--out", run, "--config", path]
        for path in (trained / "tiny.yaml", run / "config.yaml")
    )
    out = ["--input", surfaces / "test_images", "--output", tmp_path / "out", "--device", "cpu"]
    (tmp_path / "e.yaml").write_text(f"members: [{{run: {run}, folds: [0]}}]\n")
    checkpoints = [run / "fold_0", run / "fold_0/best_model.safetensors"]
    lines = [
        stored,
        [*stored, "--dry-run"],
        own,
        [*own, "--set", *SETTINGS],
        ["tune", run, "--out", tmp_path / "t.yaml"],
        ["report", run],
    ]
    lines += [["predict", "--checkpoint", path, *out] for path in checkpoints]
    lines += [["ensemble", "--spec", tmp_path / "e.yaml", *out]]
    told = commands(*lines)
    assert [text[:2] for text in told] == ["2 "] * len(lines), told
    assert all("a path that stands in a run is never run" in text for text in told[:2])
    assert all("it is never run by itself" in text for text in told[2:])
    assert not trace.exists()


IN_PYTHON = """
import sys
import pipeline as pl
run, data, out = sys.argv[1:]
config = pl.RunFolder(run).config()
print(config.plugins)
for work in (
    lambda: pl.Predictor.load(run),
    lambda: pl.train_folds(config, data, out=out),
    lambda: pl.load_config(run + "/config.yaml"),
):
    try:
        work()
    except pl.UserError as error:
        print(error)
"""


@pytest.mark.slow
def test_a_hostile_run_runs_nothing_in_python_either(
    hostile: tuple[Path, Path], surfaces: Path, tmp_path: Path
) -> None:
    run, trace = hostile
    told = python(IN_PYTHON, run, surfaces, tmp_path / "new")
    assert told.startswith(f"('{run}/plugins/mine.py',)\n")
    assert "mine.py (SHA-256" in told
    assert "'brier' is unknown" in told
    assert "a path that stands in a run is never run" in told
    assert not trace.exists()


@pytest.mark.usefixtures("empty")
def test_a_name_that_no_run_could_keep_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(pl.UserError, match=r"NAME\.py"):
        pl.load_plugins(written(tmp_path / "a\\b.py", ""))


@pytest.mark.usefixtures("empty")
def test_classes_of_any_plugin_can_be_pickled(tmp_path: Path) -> None:
    pl.load_plugins(written(tmp_path / "k.x.py", "class A: pass\npl.A = A\n"))
    try:
        assert isinstance(pickle.loads(pickle.dumps(pl.A())), pl.A)
    finally:
        del pl.A


@pytest.mark.usefixtures("empty")
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("pl.load_plugins(__file__)", "loads itself"),
        ("import sys; del sys.modules[__name__]; raise ValueError('x')", "ValueError: x"),
        ("pl.register(7, None)", "a name is a text"),
        ("pl.register(['a'], None)", "a name is a text"),
    ],
)
def test_odd_plugins_are_told_in_words(text: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(pl.UserError, match=told):
        pl.load_plugins(written(tmp_path / "odd.py", text + "\n"))


def test_records_of_plugins_are_names_and_hashes() -> None:
    good = {"name": "mine.py", "sha256": "0" * 64}
    assert problem(good, PluginRecord) is None
    for key, value in (
        ("name", "../mine.py"),
        ("name", "a\0.py"),
        ("name", "a\n.py"),
        ("name", "mine"),
        ("sha256", "0" * 63),
        ("sha256", "G" * 64),
    ):
        assert problem({**good, key: value}, PluginRecord) is not None


def test_a_model_file_without_plugins_says_nothing_of_them(tmp_path: Path) -> None:
    with safe_open(do_nothing_model(tmp_path / "m.safetensors"), "pt") as file:
        assert "plugins" not in json.loads(file.metadata()["pipeline"])


def test_a_config_keeps_no_paths_of_plugins(tiny: Path) -> None:
    config = load(tiny, "plugins=[a.py]")
    assert config.plugins == ("a.py",)
    assert to_dict(config) == to_dict(load(tiny))
    assert "plugins" not in to_dict(config)
    assert dump(config) == dump(load(tiny))
    assert from_dict({**to_dict(config), "plugins": ["x.py"]}).plugins == (
        "x.py",
    )  # data, which nobody runs


# --- loading --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("empty")
def test_the_same_bytes_are_loaded_once(tmp_path: Path) -> None:
    one = written(tmp_path / "one.py", SIMPLE.format("once"))
    pl.load_plugins([one, str(one)])
    shutil.copy(one, tmp_path / "other.py")
    pl.load_plugins(tmp_path / "other.py")
    assert LOSSES["once"].targets == ("labels",)
    assert len(plugins.carried().plugins) == 1


@pytest.mark.usefixtures("empty")
def test_a_name_belongs_to_one_plugin(tmp_path: Path) -> None:
    one, other = (
        written(tmp_path / f"{n}.py", f"x = '{n}'\n" + SIMPLE.format("taken"))
        for n in ("one", "other")
    )
    pl.load_plugins(one)
    with pytest.raises(
        pl.UserError, match=rf"plugin {other}, line 3: loss 'taken' is registered by {one}, too"
    ):
        pl.load_plugins(other)
    with pytest.raises(pl.UserError, match=r"line 2: loss 'dice' is there already"):
        pl.load_plugins(written(tmp_path / "third.py", SIMPLE.format("dice")))
    with pytest.raises(pl.UserError, match=r"line 2: loss 'two words': a name consists of letters"):
        pl.load_plugins(written(tmp_path / "fourth.py", SIMPLE.format("two words")))
    with pytest.raises(pl.UserError, match=r"line 3: loss 'twice' is registered twice"):
        pl.load_plugins(written(tmp_path / "fifth.py", SIMPLE.format("twice") * 2))
    assert "twice" not in LOSSES


@pytest.mark.usefixtures("empty")
def test_another_file_of_the_same_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    pl.load_plugins(written(tmp_path / "mine.py", SIMPLE.format("first")))
    with pytest.raises(pl.UserError, match="loaded under the same name and holds other bytes"):
        pl.load_plugins(written(tmp_path / "a" / "mine.py", SIMPLE.format("second")))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("\n1 / 0\n", r"line 3: ZeroDivisionError: division by zero"),
        ("def f(:\n", r"line 2: SyntaxError: "),
        ("raise SystemExit(3)\n", r"line 2: SystemExit: 3"),
        ("import no_such_package\n", r"line 2: ModuleNotFoundError: "),
        ("pl.register('x', 3)\n", r"line 2: register\('x', int\): no table has such entries"),
        (
            "pl.register('x', pl.LossEntry(len, targets=('volumes',)))\n",
            r"line 2: ValueError: targets is \('volumes',\)",
        ),
        (
            "pl.register('x', pl.LossEntry(len, targets=('labels',), map='edge'))\n",
            r"line 2: ValueError: map is 'edge'",
        ),
    ],
)
@pytest.mark.usefixtures("empty")
def test_a_plugin_that_fails_is_named_with_its_line(text: str, told: str, tmp_path: Path) -> None:
    path = written(tmp_path / "bad.py", text)
    with pytest.raises(pl.UserError, match=f"plugin {path}, {told}"):
        pl.load_plugins(path)
    path.write_text("import pipeline as pl\n" + SIMPLE.format("mended"))
    pl.load_plugins(path)


@pytest.mark.usefixtures("empty")
def test_a_plugin_that_fails_late_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(pl.UserError, match="line 3"):
        pl.load_plugins(written(tmp_path / "late.py", SIMPLE.format("early") + "1 / 0\n"))
    assert "early" not in LOSSES


def test_a_pipe_is_no_plugin(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.py")
    with pytest.raises(pl.UserError, match="no regular file"):
        pl.load_plugins(tmp_path / "pipe.py")


def test_a_command_says_what_is_wrong_with_a_plugin(tmp_path: Path) -> None:
    bad = written(tmp_path / "bad.py", "1 / 0\n")
    words = ["evaluate", "--predictions", tmp_path, "--labels", tmp_path, "--plugin"]
    told = commands(*([*words, path] for path in (bad, tmp_path / "none.py", tmp_path / "none.so")))
    assert told[0] == f"2 error: plugin {bad}, line 2: ZeroDivisionError: division by zero\n"
    assert "cannot be read: No such file" in told[1]
    assert "a plugin is a file of Python" in told[2]


def test_registering_outside_of_a_plugin_is_refused() -> None:
    with pytest.raises(pl.UserError, match=r"stands outside of a plugin.*--plugin FILE"):
        pl.register("loose", pl.LossEntry(lambda: None, targets=("labels",)))  # type: ignore[arg-type,return-value]


@pytest.mark.usefixtures("empty")
def test_only_plugins_that_a_config_names_are_kept(tmp_path: Path, tiny: Path) -> None:
    pl.load_plugins([written(tmp_path / f"{n}.py", SIMPLE.format(n)) for n in ("used", "unused")])
    assert plugins.used_by(load(tiny)) == []
    assert [p.name for p in plugins.used_by(load(tiny, "losses=[used]"))] == ["used.py"]


# --- other processes ------------------------------------------------------------------------------


def _known(name: str) -> bool:
    return name in LOSSES


@pytest.mark.slow
@pytest.mark.usefixtures("empty")
def test_worker_processes_know_the_bytes_that_were_loaded(tmp_path: Path) -> None:
    path = written(tmp_path / "mine.py", SIMPLE.format("carried"))
    pl.load_plugins(path)
    path.write_text("1 / 0\n")  # whoever is started later gets what this process has
    with processes.pool(2) as pool:
        assert list(pool.map(_known, ["carried", "unknown"])) == [True, False]


@pytest.mark.slow
@pytest.mark.usefixtures("empty")
def test_loader_workers_that_are_started_anew_know_them(
    mine: Path, surfaces: Path, tiny: Path, tmp_path: Path
) -> None:
    """Such a worker gets the data set as bytes, in which transforms of a plugin stand by name."""
    pl.load_plugins(mine)
    config = load(
        tiny, ["data.augment=[{name: invert, options: {p: 1.0}}]", "data.patch.foreground=null"]
    )
    found = cases.find(config.data, config.targets, surfaces).train[:1]
    stored = cache.build(found, properties.examine(found, config, tmp_path), config, tmp_path)
    dataset = PatchDataset(stored, config, 0, training=True)
    (tmp_path / "dataset").write_bytes(pickle.dumps(dataset))
    code = (
        "import pickle\n"
        f"d = pickle.load(open({str(tmp_path / 'dataset')!r}, 'rb'))\n"
        "print(float(d[0, 0, 0]['image'].sum()))"
    )
    assert float(python(code)) == float(dataset[0, 0, 0]["image"].sum())


# --- the tables -----------------------------------------------------------------------------------


def test_a_table_is_read_like_a_dict_and_never_loses_an_entry() -> None:
    first, second = pl.OptimizerEntry(torch.optim.SGD), pl.OptimizerEntry(torch.optim.Adam)
    table = Registry("thing", {"a": first}, {"old": Alias("a", {"below": "least"})})
    table.add("b", second)
    assert dict(table) == {"a": first, "b": second}
    assert table["old"] is first
    assert table.resolve("old", {"below": 3}) == ("a", {"least": 3})
    assert table.resolve("b", {"x": 1}) == ("b", {"x": 1})
    for taken in ("a", "old"):
        with pytest.raises(ValueError, match="is there already"):
            table.add(taken, second)
    with pytest.raises(KeyError):
        table["c"]


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_reads_the_map_of_its_record(name: str) -> None:
    entry = LOSSES[name]
    assert entry.reads(entry.map_if) == entry.map
    assert entry.trial({}).keys() <= {"weights"}
    assert NamedOptions(name=name).name == name
