"""Searches: they resume, prune, and never use the test photographs."""

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
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from drgrade.config import CONF, as_override
from drgrade.data.datamodules import GradingDataModule
from drgrade.errors import ConfigError
from drgrade.evaluation.evaluation import read_run
from drgrade.sweeps import search as search_module
from drgrade.sweeps.search import SearchSweeper
from drgrade.sweeps.trials import read_space
from drgrade.training.run import train

THRESHOLD = (
    "hydra/sweeper/pruner=threshold",
    "hydra.sweeper.pruner.lower=2",
    "hydra.sweeper.pruner.n_warmup_steps=0",
)


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


def test_a_search_resumes_and_never_tests(search, call_here, tmp_path, metrics):
    """Two commands of one trial give the trials of one command of two; a finished trial is not repeated."""
    folder = tmp_path / "found"
    assert "1 trials wanted, 0 of them have ended" in call_here(search("hydra.sweeper.n_trials=1"))
    before = [path.stat().st_mtime_ns for path in sorted(folder.glob("*/metrics.json"))]
    output = call_here(search("hydra.sweeper.n_trials=2"))
    assert "2 trials wanted, 1 of them have ended" in output
    assert before == [path.stat().st_mtime_ns for path in sorted(folder.glob("*/metrics.json"))[:1]]
    trials = trials_of(folder)
    for trial in trials:
        run = folder / f"trial-00{trial.number}"
        assert trial.value == metrics(run)["val/qwk"]
        assert metrics(run)["status"] == "finished"
        assert not (run / "predictions.csv").exists()
        assert not [name for name in metrics(run) if name.startswith(("test/", "external/"))]
        with pytest.raises(ConfigError, match="stay unused"):
            read_run(run)
    assert len({trial.params["optimizer.lr"] for trial in trials}) == 2
    check_report(folder, trials)
    assert json.loads((folder / "search.json").read_text())["best"]["command"] in output
    call_here(search("hydra.sweeper.n_trials=2", place="whole"))
    whole = trials_of(tmp_path / "whole")
    assert [trial.params for trial in trials] == [trial.params for trial in whole]
    assert [trial.value for trial in trials] == [trial.value for trial in whole]


def check_report(folder, trials):
    with (folder / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    rates = [trial.params["optimizer.lr"] for trial in trials]
    assert [float(row["params_optimizer.lr"]) for row in rows] == rates
    assert (folder / "search.png").read_bytes().startswith(b"\x89PNG")
    best = json.loads((folder / "search.json").read_text())["best"]
    winner = max(trials, key=lambda trial: trial.value)
    assert best["trial"] == winner.number
    command = shlex.split(best["command"])
    assert {f"{name}={value}" for name, value in winner.params.items()} < set(command)
    assert command[:4] == ["python", "train.py", "-m", "hydra/sweeper=cells"]
    assert "fold=0,1,2,3,4" in command
    assert not [each for each in command if each.startswith(("test=", "hydra.sweeper", "hydra.sweep"))]


@pytest.mark.slow
def test_trials_in_processes_are_pruned(search, call, tmp_path, metrics):
    more = ("hydra/launcher=local", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=2", *THRESHOLD)
    assert "2 at a time" in call(search(*more))
    for trial in trials_of(tmp_path / "found"):
        record = metrics(tmp_path / "found" / f"trial-00{trial.number}")
        assert trial.state == TrialState.PRUNED
        assert record["status"] == "pruned"
        assert list(trial.intermediate_values) == [0]
        assert trial.value == pytest.approx(record["val/qwk"], abs=1e-6)


def test_failed_trial_is_listed_and_replaced(search, call_here, tmp_path):
    output = call_here(search("head.hidden=-1,16", "hydra.sweeper.n_trials=2"), status=1)
    states = [trial.state.name for trial in trials_of(tmp_path / "found")]
    assert "FAIL" in states
    assert f"{states.count('FAIL')} trials of the search failed" in output
    assert output.rstrip().splitlines()[-1].startswith("error: ")


def test_trial_without_all_settings_is_not_run(search, call_here, tmp_path):
    """Its command was killed while Optuna proposed the settings."""
    (tmp_path / "found").mkdir()
    storage = f"sqlite:///{tmp_path}/found/study.db"
    optuna.create_study(study_name="search", storage=storage, direction="maximize").ask()
    call_here(search("hydra.sweeper.n_trials=1"))
    states = [trial.state for trial in trials_of(tmp_path / "found")]
    assert states == [TrialState.FAIL, TrialState.COMPLETE]
    assert not (tmp_path / "found" / "trial-000").exists()


@pytest.mark.slow
def test_pruning_ends_all_ddp_processes(search, call, tmp_path):
    call(search("hydra/launcher=local", "hydra.sweeper.n_trials=1", "trainer=ddp_cpu", *THRESHOLD))
    (trial,) = trials_of(tmp_path / "found")
    assert trial.state == TrialState.PRUNED
    assert list(trial.intermediate_values) == [0]


@pytest.mark.slow
def test_trial_of_a_killed_search_resumes_from_its_checkpoint(search, call, tmp_path):
    command = search("hydra.sweeper.n_trials=1", "scale.matched_epochs=8")
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    run, end = tmp_path / "found" / "trial-000", time.monotonic() + 300
    while not (run / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    output = call(command)
    assert "1 resume" in output
    assert "epoch 1/8" not in output
    (trial,) = trials_of(tmp_path / "found")
    assert trial.state == TrialState.COMPLETE
    assert sorted(trial.intermediate_values) == list(range(8))


@pytest.mark.parametrize("pruner", ["median", "hyperband", "threshold", "none"])
@pytest.mark.parametrize("sampler", ["tpe", "random", "cmaes", "nsgaii"])
def test_samplers_and_pruners_are_instantiated(sampler, pruner):
    chosen = ["hydra/sweeper=search", f"hydra/sweeper/sampler={sampler}", f"hydra/sweeper/pruner={pruner}"]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("train", chosen, return_hydra_config=True).hydra.sweeper
    assert isinstance(hydra.utils.instantiate(cfg.sampler, seed=1), optuna.samplers.BaseSampler)
    assert isinstance(hydra.utils.instantiate(cfg.pruner), optuna.pruners.BasePruner)


def test_search_without_optuna_names_the_package(monkeypatch):
    monkeypatch.setattr(search_module, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'drgrade\[search\]'"):
        SearchSweeper({})


@pytest.fixture
def refused(overrides, tmp_path):
    """``refused("hydra.sweeper.metric=test/qwk", task=("test=true",))``: the error of such a search."""

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
        ("hydra.sweeper.metric=test/qwk", "use a validation metric"),
        ("hydra.sweeper.n_trials=0", "n_trials=0"),
    ],
)
def test_invalid_sweeper_settings_are_refused(argument, words, refused):
    assert words in refused(argument)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["optimizer.lr=interval(0.1,1)", "test=true"], "never uses the test photographs"),
        (["optimizer.lr=interval(0.1,1)", "test=true,false"], "never uses the test photographs"),
        (["optimizer.lr=0.1"], "nothing to search"),
        (["optimizer.lr=interval(0.1,1)", "resume=auto"], "resumes by itself"),
        (["optimizer.lr=interval(0.1,1)", "data.root=???"], "data.root is not given"),
    ],
)
def test_invalid_search_is_refused_before_a_trial_runs(arguments, words, refused, tmp_path):
    assert words in refused(task=arguments)
    assert not (tmp_path / "searches").exists()


def test_folder_of_another_search_is_refused(refused, tmp_path):
    storage = f"sqlite:///{tmp_path}/study.db"
    study = optuna.create_study(study_name="search", storage=storage, direction="maximize")
    study.set_user_attr("settings", {"space of optimizer.lr": "other"})
    message = "holds another search (space of optimizer.lr was other and is FloatDistribution(high=1.0,"
    assert message in refused(f"hydra.sweep.dir={tmp_path}")


def test_run_without_test_loads_no_test_photographs(compose, tmp_path, monkeypatch):
    def refuse(self):
        raise AssertionError("the test photographs were asked for")

    monkeypatch.setattr(GradingDataModule, "test_dataloader", refuse)
    record = train(compose("test=false"))
    assert record["status"] == "finished"
    assert "val/qwk" in record
    assert not [name for name in record if name.startswith("test/")]
    assert not (tmp_path / "run" / "predictions.csv").exists()
    with pytest.raises(ConfigError, match="test=perhaps is not allowed: true or false"):
        train(compose("test=perhaps"))


@pytest.mark.parametrize(("warm_up", "status"), [(0, "pruned"), (1, "finished")])
def test_trial_is_not_pruned_after_its_last_epoch(warm_up, status, compose, tmp_path):
    storage = f"sqlite:///{tmp_path}/study.db"
    study = optuna.create_study(study_name="search", storage=storage, direction="maximize")
    trial = study.ask()
    callback = {
        "_target_": "drgrade.sweeps.trials.Pruning",
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


def test_unreachable_study_is_reported_without_its_url(compose, tmp_path):
    callback = {
        "_target_": "drgrade.sweeps.trials.Pruning",
        "metric": "val/qwk",
        "trial": 3,
        "study": "search",
        "storage": f"sqlite:///{tmp_path}/secret/study.db",
    }
    with pytest.raises(ConfigError, match="database of the search cannot be used") as caught:
        train(compose("test=false", f"+callbacks.search={as_override(callback)}"))
    assert "secret" not in str(caught.value)


def test_read_space():
    lines = [
        "a=range(0,5)",
        "b=range(1,2,0.25)",
        "c=tag(log,interval(1e-5,1e-2))",
        "d=x,y",
        "e=7",
        "f=int(interval(1,4))",
    ]
    space = read_space(OverridesParser.create().parse_overrides(lines))
    assert space == {
        "a": IntDistribution(0, 4),
        "b": FloatDistribution(1, 1.75, step=0.25),
        "c": FloatDistribution(1e-5, 1e-2, log=True),
        "d": CategoricalDistribution(["x", "y"]),
        "f": IntDistribution(1, 4),
    }


texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1)
plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts


@given(st.dictionaries(st.sampled_from(["a", "b_c", "_target_"]), plain | st.lists(plain)))
def test_as_override_of_nested_values_round_trip(value):
    (parsed,) = OverridesParser.create().parse_overrides([f"x={as_override(value)}"])
    assert unquoted(parsed.value()) == value


def unquoted(value):
    if isinstance(value, dict):
        return {str(key): unquoted(item) for key, item in value.items()}
    if isinstance(value, list):
        return [unquoted(item) for item in value]
    return value
