"""Searches as a user starts them: they go on where they were, prune, never look at the test photographs."""

import csv
import json
import shlex
import signal
import subprocess
import time

import hydra
import optuna
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.types import HydraContext
from hypothesis import given
from hypothesis import strategies as st

from drgrade.config import CONF
from drgrade.data.datamodules import GradingDataModule
from drgrade.errors import ConfigError
from drgrade.evaluation.validation import read_run
from drgrade.sweeps.grammar import as_override
from drgrade.sweeps.space import read_space
from drgrade.training.run import train

THRESHOLD = (
    "hydra/sweeper/pruner=threshold",
    "hydra.sweeper.pruner.lower=2",
    "hydra.sweeper.pruner.n_warmup_steps=0",
)


def call(command, folder, status=0):
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=600, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout + done.stderr


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def trials_of(folder):
    return optuna.load_study(study_name="search", storage=f"sqlite:///{folder}/study.db").trials


@pytest.fixture
def search(command, tmp_path):
    """``search("a=b")``: the command of a tiny search for MsSSL, all its trials in one process."""

    def make(*more, place="found"):
        return command(
            "+experiment=msssl_search",
            "init=random",
            "label_fraction=1.0",
            "hydra/launcher=basic",
            f"hydra.sweep.dir='{tmp_path / place}'",
            *more,
        )

    return make


@pytest.mark.slow
def test_a_search_goes_on_where_it_was_and_never_tests(search, tmp_path):
    folder = tmp_path / "found"
    assert "2 trials wanted, 0 of them have ended" in call(search("hydra.sweeper.n_trials=2"), tmp_path)
    before = [(folder / f"trial-00{number}" / "metrics.json").stat().st_mtime_ns for number in (0, 1)]
    output = call(search("hydra.sweeper.n_trials=3"), tmp_path)
    assert "3 trials wanted, 2 of them have ended" in output
    assert before == [(folder / f"trial-00{number}" / "metrics.json").stat().st_mtime_ns for number in (0, 1)]
    trials = trials_of(folder)
    assert [each.value for each in trials] == [
        metrics(folder / f"trial-00{each.number}")["val/qwk"] for each in trials
    ]
    assert len({each.params["optimizer.lr"] for each in trials}) == 3
    check_that_nothing_was_tested(folder, 3)
    check_what_is_left_for_the_reader(folder, trials)
    assert json.loads((folder / "search.json").read_text())["best"]["command"] in output


@pytest.mark.slow
def test_an_interrupted_search_chooses_as_if_it_had_not_been_interrupted(search, tmp_path):
    for count in (1, 2, 4):
        call(search(f"hydra.sweeper.n_trials={count}", place="in parts"), tmp_path)
    call(search("hydra.sweeper.n_trials=4", place="whole"), tmp_path)
    first, second = (trials_of(tmp_path / place) for place in ("in parts", "whole"))
    assert [each.params for each in first] == [each.params for each in second]
    assert [each.value for each in first] == [each.value for each in second]


def check_that_nothing_was_tested(folder, count):
    runs = sorted(folder.glob("trial-*"))
    assert len(runs) == count
    for run in runs:
        assert not (run / "predictions.csv").exists()
        assert metrics(run)["status"] == "finished"
        assert not [name for name in metrics(run) if name.startswith(("test/", "external/"))]
        with pytest.raises(ConfigError, match="stay unseen"):
            read_run(run)


def check_what_is_left_for_the_reader(folder, trials):
    with (folder / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["params_optimizer.lr"]) for row in rows] == [
        each.params["optimizer.lr"] for each in trials
    ]
    assert (folder / "search.png").read_bytes().startswith(b"\x89PNG")
    best = json.loads((folder / "search.json").read_text())["best"]
    winner = max(trials, key=lambda each: each.value)
    assert best["trial"] == winner.number
    command = shlex.split(best["command"])
    assert {f"{name}={value}" for name, value in winner.params.items()} < set(command)
    assert command[:4] == ["python", "train.py", "-m", "hydra/sweeper=cells"]
    assert "fold=0,1,2,3,4" in command
    assert not [each for each in command if each.startswith(("test=", "hydra.sweeper", "hydra.sweep"))]


@pytest.mark.slow
def test_trials_in_processes_of_their_own_are_pruned_by_the_shared_study(search, tmp_path):
    output = call(
        search("hydra/launcher=local", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=2", *THRESHOLD),
        tmp_path,
    )
    assert "2 at a time" in output
    for each in trials_of(tmp_path / "found"):
        record = metrics(tmp_path / "found" / f"trial-00{each.number}")
        assert each.state == optuna.trial.TrialState.PRUNED
        assert record["status"] == "pruned"
        assert list(each.intermediate_values) == [0]
        assert each.value == pytest.approx(record["val/qwk"], abs=1e-6)


def test_a_trial_that_fails_is_named_in_the_end_and_made_up_for(search, tmp_path):
    folder = tmp_path / "found"
    output = call(search("head.hidden=-1,16", "hydra.sweeper.n_trials=2"), tmp_path, status=1)
    states = [each.state.name for each in trials_of(folder)]
    assert "FAIL" in states
    assert f"{states.count('FAIL')} trials of the search failed" in output
    assert output.rstrip().splitlines()[-1].startswith("error: ")


@pytest.mark.slow
def test_all_processes_of_a_trial_end_with_it(search, tmp_path):
    more = ("hydra/launcher=local", "hydra.sweeper.n_trials=1", "trainer=ddp_cpu", *THRESHOLD)
    call(search(*more), tmp_path)
    (trial,) = trials_of(tmp_path / "found")
    assert trial.state == optuna.trial.TrialState.PRUNED
    assert list(trial.intermediate_values) == [0]


@pytest.mark.slow
def test_a_trial_whose_search_was_killed_goes_on_from_its_checkpoint(search, tmp_path):
    command = search("hydra.sweeper.n_trials=1", "scale.matched_epochs=8")
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    run, end = tmp_path / "found" / "trial-000", time.monotonic() + 300
    while not (run / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    output = call(command, tmp_path)
    assert "1 go on" in output
    assert "epoch 1/8" not in output
    (trial,) = trials_of(tmp_path / "found")
    assert trial.state == optuna.trial.TrialState.COMPLETE
    assert sorted(trial.intermediate_values) == list(range(8))


@pytest.mark.parametrize("pruner", ["median", "hyperband", "threshold", "none"])
@pytest.mark.parametrize("sampler", ["tpe", "random", "cmaes", "nsgaii"])
def test_every_sampler_and_pruner_can_be_made(sampler, pruner):
    chosen = ["hydra/sweeper=search", f"hydra/sweeper/sampler={sampler}", f"hydra/sweeper/pruner={pruner}"]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("train", chosen, return_hydra_config=True).hydra.sweeper
    assert isinstance(hydra.utils.instantiate(cfg.sampler), optuna.samplers.BaseSampler)
    assert isinstance(hydra.utils.instantiate(cfg.pruner), optuna.pruners.BasePruner)


@pytest.fixture
def refused(overrides, tmp_path):
    """``refused("hydra.sweeper.metric=test/qwk", task=("test=true",))``: what a search says to this."""

    def make(*hydra_settings, task=("optimizer.lr=interval(0.1,1)",)):
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            given = [*overrides, "hydra/sweeper=search", "hydra/launcher=basic", *hydra_settings]
            cfg = hydra.compose("train", given, return_hydra_config=True)
            cfg.hydra.runtime.output_dir = str(tmp_path)
            context = HydraContext(GlobalHydra.instance().config_loader(), callbacks=None)
            with pytest.raises(Exception) as caught:  # noqa: PT011 - Hydra wraps what a constructor raises
                Plugins.instance().instantiate_sweeper(
                    config=cfg, hydra_context=context, task_function=print
                ).sweep([*overrides, *task])
        causes = [caught.value, caught.value.__cause__]
        return next(str(each) for each in causes if isinstance(each, ConfigError))

    return make


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("hydra.sweeper.metric=test/qwk", "validation only"),
        ("hydra.sweeper.n_trials=0", "n_trials=0"),
        ("hydra/sweeper/sampler=grid", "a grid is a table"),
    ],
)
def test_settings_that_no_search_has_are_refused(argument, words, refused):
    assert words in refused(argument)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["optimizer.lr=interval(0.1,1)", "test=true"], "never looks at the test photographs"),
        (["optimizer.lr=interval(0.1,1)", "test=true,false"], "never looks at the test photographs"),
        (["optimizer.lr=0.1"], "nothing to search"),
        (["optimizer.lr=interval(0.1,1)", "resume=auto"], "goes on by itself"),
        (["optimizer.lr=interval(0.1,1)", "data.root=???"], "data.root is not given"),
    ],
)
def test_a_search_that_cannot_be_is_refused_before_a_trial_runs(arguments, words, refused, tmp_path):
    assert words in refused(task=arguments)
    assert not (tmp_path / "searches").exists()


def test_another_search_in_the_same_folder_is_refused(refused, tmp_path):
    study = optuna.create_study(
        study_name="search", storage=f"sqlite:///{tmp_path}/study.db", direction="maximize"
    )
    study.set_user_attr("settings", {"space of optimizer.lr": "UniformDistribution(high=1.0, low=0.2)"})
    said = refused(f"hydra.sweep.dir={tmp_path}")
    assert (
        "holds another search (space of optimizer.lr was UniformDistribution(high=1.0, low=0.2) and is"
        in said
    )


def test_a_run_without_a_test_never_asks_for_the_test_photographs(compose, tmp_path, monkeypatch):
    def refuse(self):
        raise AssertionError("the test photographs were asked for")

    monkeypatch.setattr(GradingDataModule, "test_dataloader", refuse)
    record = train(compose("test=false"))
    assert record["status"] == "finished"
    assert "val/qwk" in record
    assert not [name for name in record if name.startswith("test/")]
    assert not (tmp_path / "run" / "predictions.csv").exists()
    with pytest.raises(ConfigError, match="neither true nor false"):
        train(compose("test=perhaps"))


@pytest.mark.parametrize(("warm_up", "status"), [(0, "pruned"), (1, "finished")])
def test_a_trial_that_is_over_anyway_is_not_pruned(warm_up, status, compose, tmp_path):
    storage = f"sqlite:///{tmp_path}/study.db"
    study = optuna.create_study(study_name="search", storage=storage, direction="maximize")
    trial = study.ask()
    callback = {
        "_target_": "drgrade.training.pruning.Pruning",
        "metric": "val/qwk",
        "trial": trial.number,
        "study": "search",
        "storage": storage,
        "pruner": {
            "_target_": "optuna.pruners.ThresholdPruner",
            "lower": 2,
            "n_warmup_steps": warm_up,
        },
    }
    record = train(compose("test=false", f"+callbacks.search={as_override(callback)}"))  # two epochs
    assert record["status"] == status
    assert len(trials_of(tmp_path)[0].intermediate_values) == warm_up + 1


def test_an_unreachable_study_is_one_clear_line_without_its_password(compose, tmp_path):
    callback = {
        "_target_": "drgrade.training.pruning.Pruning",
        "metric": "val/qwk",
        "trial": 3,
        "study": "search",
        "storage": f"sqlite:///{tmp_path}/secret/study.db",
    }
    with pytest.raises(ConfigError, match="database of the search cannot be used") as caught:
        train(compose("test=false", f"+callbacks.search={as_override(callback)}"))
    assert "secret" not in str(caught.value)


def test_a_space_is_what_hydra_says_it_is():
    lines = [
        "a=range(0,5)",
        "b=range(1,2,0.25)",
        "c=tag(log,interval(1e-5,1e-2))",
        "d=x,y",
        "e=7",
        "f=int(interval(1,4))",
    ]
    space = read_space(OverridesParser.create().parse_overrides(lines)).distributions
    assert space == {
        "a": optuna.distributions.IntUniformDistribution(0, 4),
        "b": optuna.distributions.DiscreteUniformDistribution(1, 1.75, 0.25),
        "c": optuna.distributions.LogUniformDistribution(1e-5, 1e-2),
        "d": optuna.distributions.CategoricalDistribution(["x", "y"]),
        "f": optuna.distributions.IntUniformDistribution(1, 4),
    }


texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1)
plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts


@given(st.dictionaries(st.sampled_from(["a", "b_c", "_target_"]), plain | st.lists(plain)))
def test_hydra_reads_the_value_that_was_written(value):
    (parsed,) = OverridesParser.create().parse_overrides([f"x={as_override(value)}"])
    assert unquoted(parsed.value()) == value


def unquoted(value):
    if isinstance(value, dict):
        return {str(key): unquoted(item) for key, item in value.items()}
    if isinstance(value, list):
        return [unquoted(item) for item in value]
    return value
