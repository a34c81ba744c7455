"""Shared fixtures: a small drawn data set, prepared once, and tiny runs on it."""

import copy
import functools
import hashlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import hydra
import hypothesis
import omegaconf
import pandas as pd
import pytest
from filelock import FileLock
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, grammar_parser
from tiny_run import REPOSITORY, TINY

from drgrade.config import CONF
from drgrade.data.photographs import Photographs
from drgrade.data.sources.base import Source, SourceTable
from drgrade.data.sources.demo import Demo
from drgrade.data.splits.spec import SplitSpec
from drgrade.settings import TrainSettings
from drgrade.training.run import train

IMAGE_SIZE = 32

# Shells start background commands with SIGINT ignored, and the commands of the tests would inherit this.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Fewer examples than by default; other tests of the run slow an example down, so it has no deadline.
hypothesis.settings.register_profile("tests", max_examples=50, deadline=None)
hypothesis.settings.load_profile("tests")


@pytest.fixture(scope="session", autouse=True)
def parsed_once():
    """Parse each YAML text, override and interpolation once per worker: one config has about 30 files."""
    load, parse_rule, yaml_files, rules = OmegaConf.load, OverridesParser.parse_rule, {}, {}

    def read(file):
        if not hasattr(file, "read"):
            return load(file)
        text = file.read()
        if text not in yaml_files:
            file.seek(0)
            yaml_files[text] = load(file)
        return copy.deepcopy(yaml_files[text])

    def parse(parser, *text_and_rule):
        if text_and_rule not in rules:
            rules[text_and_rule] = parse_rule(parser, *text_and_rule)
        return copy.deepcopy(rules[text_and_rule])

    parse_interpolation = functools.cache(grammar_parser.parse)  # of which only the result is read
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OmegaConf, "load", staticmethod(read))
        patch.setattr(OverridesParser, "parse_rule", parse)
        patch.setattr(omegaconf.base, "parse", parse_interpolation)
        patch.setattr(omegaconf._utils, "parse", parse_interpolation)
        yield


@functools.cache
def composed_once(*overrides: str) -> DictConfig:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("train", list(overrides))


def composed(*overrides: str) -> DictConfig:
    """Compose and check the config of a training; configs that differ only in two paths are composed once."""
    places = [each for each in overrides if each.startswith(("paths.run=", "paths.outputs="))]
    cfg = copy.deepcopy(composed_once(*(each for each in overrides if each not in places)))
    for name, value in (each.split("=", 1) for each in places):
        OmegaConf.update(cfg, name, value)
    TrainSettings.read(cfg)
    return cfg


class Relabelled(Source):
    """The photographs of another source with a changed manifest."""

    def __init__(self, source: Source, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
        self.name, self.root = source.name, source.root
        self._source, self._change = source, change

    def read(self) -> SourceTable:
        return SourceTable(self._change(self._source.read().manifest.copy()))


@pytest.fixture(scope="session")
def demo_source(tmp_path_factory) -> Demo:
    """60 photographs of 64 px, drawn in half a second; most patients have two."""
    return Demo(tmp_path_factory.mktemp("demo"), count=60, size=64, workers=1)


@pytest.fixture(scope="session")
def stores(tmp_path_factory) -> Path:
    """Folder of all prepared stores of this session."""
    return tmp_path_factory.mktemp("stores")


@pytest.fixture(scope="session")
def make_photographs(demo_source, stores) -> Callable[..., Photographs]:
    """``make_photographs(change=None, **split)``: the 60 photographs at 32 px, split as asked.

    ``change`` takes the manifest and returns another (other grades, patients, published split).
    """

    def make(change: Callable[[pd.DataFrame], pd.DataFrame] | None = None, **split) -> Photographs:
        source = Relabelled(demo_source, change) if change else demo_source
        return Photographs(source, SplitSpec(**split), stores, IMAGE_SIZE, workers=1)

    return make


@pytest.fixture(scope="session")
def photographs(make_photographs) -> Photographs:
    """The 60 photographs at 32 px: fold 0 of 5, all labels, 15 % validation."""
    return make_photographs(val_fraction=0.15)


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory) -> Path:
    """Folder that all workers of pytest-xdist share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "session"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def shared(session_folder) -> list[str]:
    """Overrides that let all runs of a session share the drawn photographs and their stores."""
    return [f"data.root={session_folder}/demo", f"paths.stores={session_folder}/stores"]


@pytest.fixture(scope="session")
def finished_run(shared, session_folder) -> Callable[..., Path]:
    """``finished_run("encoder=msssl")``: folder of a finished run with these overrides; do not change it.

    Each run is trained once per session, whichever worker asks first. Without overrides it is a DenseNet with
    the cumulative head. 14 photographs are used for validation, so that a calibration is fitted.
    """

    def run(*more: str) -> Path:
        folder = session_folder / "runs" / hashlib.sha256(" ".join(more).encode()).hexdigest()[:8]
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not (folder / "metrics.json").is_file():
                places = [f"paths.outputs={folder}", f"paths.run={folder}"]
                train(composed(*places, *TINY, *shared, "protocol.val_fraction=0.3", *more))
        return folder

    return run


@pytest.fixture
def overrides(shared, tmp_path) -> list[str]:
    """Overrides of a tiny run whose outputs go to a folder of its own."""
    return [*TINY, *shared, f"paths.outputs={tmp_path}"]


@pytest.fixture
def compose(overrides, tmp_path) -> Callable[..., DictConfig]:
    """``compose("a=b", run="name")``: the checked config of a tiny run that writes to ``tmp_path/name``."""

    def make(*more: str, run: str = "run") -> DictConfig:
        return composed(*overrides, f"paths.run={tmp_path / run}", *more)

    return make


@pytest.fixture
def command(overrides) -> Callable[..., list[str]]:
    """``command("a=b")``: the command line of a tiny run."""

    def make(*more: str) -> list[str]:
        return [sys.executable, str(REPOSITORY / "train.py"), *overrides, *more]

    return make


@pytest.fixture
def call_main(tmp_path, monkeypatch, capfd) -> Callable[..., tuple[int, str, str]]:
    """``call_main(main, *argv)``: exit status, output and errors of a command, run in this process.

    Starting a process takes longer than a tiny run.
    """

    def call(main: Callable[[], int | None], *argv: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", list(argv))
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        try:
            status = main() or 0
        except SystemExit as end:
            status = end.code
        return (status, *capfd.readouterr())

    return call
