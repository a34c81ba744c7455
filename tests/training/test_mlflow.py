"""Runs in a local MLflow, read back with its own client."""

import subprocess
import sys

import pytest
from omegaconf import OmegaConf
from test_loggers import nobody  # noqa: F401 - a fixture

from drgrade.errors import DrgradeError
from drgrade.tasks import GradingTask
from drgrade.training.run import train

mlflow = pytest.importorskip("mlflow")


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """An empty database; creating its tables takes seconds."""
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}")
    return path.read_bytes()


@pytest.fixture
def runs(database, tmp_path, monkeypatch):
    """``runs()``: the client, and all runs of the default database, the oldest first."""
    from mlflow.tracking import MlflowClient

    path = tmp_path / "mlflow" / "mlflow.db"
    path.parent.mkdir()
    path.write_bytes(database)

    def read():
        client = MlflowClient(f"sqlite:///{path}")
        experiment = client.get_experiment_by_name("drgrade")
        return client, client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"])

    return read


def test_mlflow_run_has_curves_figures_and_config(compose, tmp_path, runs):
    metrics = train(compose("logger=mlflow", "sweep=table", "init=ssl", run="init-ssl_fold-0"))

    client, (pretext, grading) = runs()
    assert (pretext.data.tags["job_type"], grading.data.tags["job_type"]) == ("pretext", "grading")
    assert grading.info.status == pretext.info.status == "FINISHED"
    assert grading.info.run_name == "init-ssl_fold-0"
    assert pretext.data.tags["group"] == grading.data.tags["group"] == "table"
    named = {"label_fraction": "100%", "init": "ssl", "protocol": "published", "data": "demo", "fold": "0"}
    assert named.items() <= grading.data.tags.items()
    for name in ("data_hash", "split_hash", "encoder_hash"):
        assert grading.data.params[name] == metrics[name]
    cfg = OmegaConf.load(tmp_path / "init-ssl_fold-0" / "config.yaml")
    assert grading.data.params["optimizer/lr"] == str(cfg.optimizer.lr)
    assert len(client.get_metric_history(grading.info.run_id, "val/recall_0")) >= 2
    assert grading.data.metrics["test/qwk"] == pytest.approx(metrics["test/qwk"])
    assert grading.data.metrics["final/val/qwk"] == metrics["val/qwk"]
    pictures = {artifact.path for artifact in client.list_artifacts(grading.info.run_id, "test")}
    assert pictures == {f"test/{name}.png" for name in ("confusion", "roc", "precision_recall")}


def test_resumed_run_is_the_same_run(compose, tmp_path, runs):
    train(compose("logger=mlflow", "trainer.max_epochs=1"))
    train(compose("logger=mlflow", f"resume={tmp_path / 'run'}"))

    client, (run,) = runs()
    assert len({point.step for point in client.get_metric_history(run.info.run_id, "train/loss")}) == 2
    assert (run.data.params["trainer/max_epochs"], run.data.tags["resumed/trainer/max_epochs"]) == ("1", "2")
    assert run.info.status == "FINISHED"


def test_resumed_mlflow_run_drops_the_error_and_old_metrics(compose, monkeypatch, runs):
    def fail(self):
        raise DrgradeError("no more disk")

    with monkeypatch.context() as patch:
        patch.setattr(GradingTask, "on_test_epoch_end", fail)
        with pytest.raises(DrgradeError):
            train(compose("logger=mlflow", "trainer.max_epochs=1", "resume=auto"))
    assert "no more disk" in runs()[1][0].data.tags["error"]
    record = train(compose("logger=mlflow", "resume=auto"))
    _, (run,) = runs()
    assert "error" not in run.data.tags
    assert run.data.metrics["final/val/loss"] == pytest.approx(record["val/loss"])


@pytest.mark.parametrize(
    ("error", "status"), [(DrgradeError("no more disk"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_mlflow_run_has_its_final_status(compose, monkeypatch, runs, error, status):
    def fail(*_):
        raise error

    monkeypatch.setattr(GradingTask, "on_validation_epoch_end", fail)
    with pytest.raises(type(error)):
        train(compose("logger=mlflow"))

    _, (run,) = runs()
    assert run.info.status == status
    assert run.data.tags["status"] == {"FAILED": "failed", "KILLED": "interrupted"}[status]


@pytest.mark.slow
def test_concurrent_runs_share_one_new_database(tmp_path):
    code = (
        "import sys\n"
        "from drgrade.training.tracking.figure_loggers import mlflow_logger\n"
        "names = ('method', 'model', 'encoder', 'data', 'protocol', 'init', 'scale', 'fold')\n"
        "about = {**dict.fromkeys(names, 'x'), 'label_fraction': 1.0, 'pretrain_on': 'all'}\n"
        "logger = mlflow_logger('drgrade', sys.argv[1], save_dir=sys.argv[2], name='n', group=None,"
        " job_type='grading', about=about)\n"
        "logger.log_hyperparams({'a': {'b': 1}})\n"
        "logger.log_metrics({'val/qwk': 0.5}, step=1)\n"
        "logger.finish_run('finished', {'status': 'finished'})\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "mlflow"), str(tmp_path / cell)])
        for cell in ("a", "b")
    ]
    assert [process.wait() for process in processes] == [0, 0]

    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}")
    (experiment,) = [each for each in client.search_experiments() if each.name == "drgrade"]
    assert [run.info.status for run in client.search_runs([experiment.experiment_id])] == ["FINISHED"] * 2
