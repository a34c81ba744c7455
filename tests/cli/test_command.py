"""Command line: arguments for Hydra, help, and checked settings."""

import runpy
import subprocess
import sys

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from tiny_run import REPOSITORY

from drgrade.cli.command import arguments, help_text
from drgrade.config import as_override, compose, declared, describe
from drgrade.errors import ConfigError
from drgrade.settings import (
    COMMANDS,
    AppSettings,
    AuditSettings,
    PredictSettings,
    ReportSettings,
    TrainSettings,
)


def read(override: str) -> object:
    return OverridesParser.create().parse_override(override).value()


@pytest.mark.parametrize(
    "path", ["my eyes", "a,b", "lr=0.1", "[x] (y)", "it's", "-", "2024", "*.jpg", "a: b"]
)
def test_paths_need_no_quotes(path):
    for name in ("out", "device"):
        (override,) = arguments([f"{name}={path}"], PredictSettings)
        assert read(override) == path
    (override,) = arguments([f"input={path}"], PredictSettings)
    assert read(override) in (path, [path], path.split(","))


def test_existing_path_is_one_value(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read(arguments(["checkpoint=a,b=1"], AppSettings)[0]) == ["a", "b=1"]
    (tmp_path / "a,b=1").mkdir()
    assert read(arguments(["checkpoint=a,b=1"], AppSettings)[0]) == "a,b=1"
    assert arguments(["data.root=a,b"], TrainSettings) == ["data.root=a,b"]  # a sweep
    (tmp_path / "a,b").mkdir()
    assert read(arguments(["data.root=a,b"], TrainSettings)[0]) == "a,b"
    assert arguments(["init=ssl,random", "seed=0,1"], TrainSettings) == ["init=ssl,random", "seed=0,1"]


def test_quoted_values_are_kept_and_home_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    given = ["out='a b'", "checkpoint=[a,b]", 'data.root="/x/(y)"', "title=null"]
    assert arguments(given, ReportSettings)[:2] == given[:2]
    assert arguments(given[2:3], TrainSettings) == given[2:3]
    assert arguments(["data.root=~/ddr"], TrainSettings) == ["data.root=/home/me/ddr"]


def test_positional_paths_become_a_setting(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fold=0").mkdir()
    options, seed, runs = arguments(["a b", "--cfg", "job", "seed=1", "fold=0", "x/lr=[1]"], ReportSettings)[
        1:
    ]
    assert (options, seed) == ("job", "seed=1")
    assert read(runs) == ["a b", "fold=0", "x/lr=[1]"]
    assert read(arguments(["input=a.jpg", "b.jpg"], PredictSettings)[0]) == ["a.jpg", "b.jpg"]
    assert arguments(["levle=1"], ReportSettings) == ["levle=1"]  # Hydra refuses it by name
    (tmp_path / "run").mkdir()
    with pytest.raises(ConfigError, match=r"written name=value \(checkpoint=run\?\)"):
        arguments(["run"], AppSettings)


@given(st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1))
def test_written_values_are_read_unchanged(text):
    assert read(f"out={as_override(text)}") == text
    assert read(f"out={as_override([text, 1, None, True])}") == [text, 1, None, True]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_purpose_usage_examples_and_defaults(name):
    text = help_text(COMMANDS[name])
    purpose, rest = text.split("\n\nusage: ", 1) if "\n\nusage: " in text else ("", text)
    assert purpose
    examples = rest.split("examples:\n")[1].split("\n\n")[0]
    assert len([line for line in examples.splitlines() if "drgrade" in line or "train.py" in line]) >= 2
    assert "settings, with their defaults:" in rest
    assert max(map(len, text.splitlines())) <= 130


def test_help_needs_no_torch_and_lists_the_settings_of_a_chosen_group():
    code = (
        "import sys, drgrade.cli.train as t; sys.argv = ['train', 'data=folder', '--help']; t.main();"
        "assert 'torch' not in sys.modules"
    )
    text = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "data.patient_column=null" in text
    assert "data.batch_size=${scale.batch_size}" in text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=x", "seed=x is not allowed: whole number ≥ 0"),
        ("seed=true", "seed=true is not allowed"),
        ("test=maybe", "test=maybe is not allowed: true or false"),
        ("task=grade", "task=grade is not allowed; did you mean grading?"),
        ("task=both", "task=both is not allowed: grading, pretext"),
        ("label_fraction=0", "label_fraction=0 is not allowed: number > 0 and ≤ 1"),
        ("fold=last", "fold=last is not allowed: whole number ≥ 0, or published"),
        ("data.batch_size=null", "data.batch_size=null is not allowed: whole number ≥ 1"),
        ("head.dropout=1", "head.dropout=1 is not allowed: number ≥ 0 and < 1"),
        ("protocol.shots=0", "protocol.shots=0 is not allowed: whole number ≥ 1, or null"),
        ("pretext.seed=1.5", "pretext.seed=1.5 is not allowed"),
        ("split.disagreeing=keep", "split.disagreeing=keep is not allowed; did you mean keep_one?"),
    ],
)
def test_invalid_value_error_lists_what_is_allowed(override, message):
    with pytest.raises(ConfigError) as error:
        TrainSettings.read(compose("train", override))
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("name", ["train", "prepare", "audit", "reproduce"])
def test_defaults_are_valid_and_declared_settings_exist(name):
    cfg = compose(name)
    COMMANDS[name].read(cfg)
    other_choices = ("data.", "head.", "logger.", "protocol.probe_sees_val")
    for setting in declared(COMMANDS[name]):
        parent, _, key = setting.rpartition(".")
        node = OmegaConf.select(cfg, parent) if parent else cfg
        assert key in node or setting.startswith(other_choices) or setting == "paths.run", setting


def test_configuration_page_is_up_to_date():
    tool = runpy.run_path(str(REPOSITORY / "tools" / "configuration_tables.py"))
    written = tool["PAGE"].read_text(encoding="utf-8")
    assert written == tool["page"](written), "run: python tools/configuration_tables.py"


def test_types_are_described_in_words():
    assert describe(declared(PredictSettings)["sensitivity"]) == "number > 0 and ≤ 1, or null"
    assert describe(declared(PredictSettings)["checkpoint"]) == "list of path"
    assert describe(declared(AuditSettings)["audit.folds"]) == "whole number ≥ 2"
