"""Detection of the main process from the environment of torchrun, SLURM and Lightning."""

import threading

import pytest
from lightning_fabric.plugins.environments import (
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from omegaconf import OmegaConf

from drgrade.errors import ConfigError
from drgrade.training import distributed
from drgrade.training.distributed import announce_pretraining, announced_pretraining, is_main_process

SLURM_TASK = {
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_NTASKS": "2",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_JOB_NAME": "drgrade",
    "SLURM_JOB_ID": "7",
}
NAMES = ("TORCHELASTIC_RUN_ID", "RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID", "WORLD_SIZE", *SLURM_TASK)


@pytest.fixture
def environment(monkeypatch):
    """``environment(A="b")``: set these variables, and unset all others of torchrun and SLURM."""

    def change(**values):
        for name in NAMES:
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return change


@pytest.mark.parametrize(
    ("values", "main", "kind"),
    [
        ({}, True, LightningEnvironment),
        ({"LOCAL_RANK": "1"}, False, LightningEnvironment),
        ({"LOCAL_RANK": "0", "NODE_RANK": "1"}, False, LightningEnvironment),
        ({"TORCHELASTIC_RUN_ID": "a", "RANK": "0", "LOCAL_RANK": "0"}, True, TorchElasticEnvironment),
        ({"TORCHELASTIC_RUN_ID": "a", "RANK": "2", "LOCAL_RANK": "0"}, False, TorchElasticEnvironment),
        # torchrun on each node, started by srun
        (
            {**SLURM_TASK, "TORCHELASTIC_RUN_ID": "a", "RANK": "0", "SLURM_PROCID": "0"},
            True,
            TorchElasticEnvironment,
        ),
        ({**SLURM_TASK, "SLURM_PROCID": "0"}, True, SLURMEnvironment),
        ({**SLURM_TASK, "SLURM_PROCID": "1"}, False, SLURMEnvironment),
        # a job of one task, or a shell in an allocation: Lightning starts the processes
        ({**SLURM_TASK, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, True, LightningEnvironment),
        ({"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "drgrade", "SLURM_PROCID": "0"}, True, LightningEnvironment),
    ],
)
def test_main_process_is_detected(environment, values, main, kind):
    environment(**values)
    assert is_main_process() is main
    assert type(distributed.cluster_environment()) is kind


def test_lightning_does_not_requeue_jobs(environment):
    environment(**SLURM_TASK, SLURM_PROCID="0")
    assert distributed.cluster_environment().auto_requeue is False


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"devices": 1}, "configured for one"),
        (
            {"devices": 1, "strategy": "ddp"},
            "started 2 processes, but trainer.devices=1 on trainer.num_nodes=1 makes 1",
        ),
        ({"devices": 2, "num_nodes": 2, "strategy": "ddp"}, "makes 4"),
    ],
)
def test_wrong_process_count_is_refused(environment, trainer, message):
    environment(**SLURM_TASK, SLURM_PROCID="0")
    with pytest.raises(ConfigError, match=message):
        distributed.check_process_count(OmegaConf.create(trainer))


@pytest.mark.parametrize("devices", [2, "auto"])
def test_matching_process_count_is_accepted(environment, devices):
    environment(**SLURM_TASK, SLURM_PROCID="0")
    distributed.check_process_count(OmegaConf.create({"devices": devices, "strategy": "ddp"}))
    environment()
    distributed.check_process_count(OmegaConf.create({"devices": 1}))


def test_sweep_in_several_processes_is_refused(environment):
    environment()
    distributed.require_single_process()
    environment(TORCHELASTIC_RUN_ID="a", RANK="0")
    with pytest.raises(ConfigError, match="started once"):
        distributed.require_single_process()


def test_message_of_the_first_process_reaches_all(environment, monkeypatch):
    from torch.distributed import HashStore

    store = HashStore()
    monkeypatch.setattr(distributed, "_store", lambda: store)
    monkeypatch.setattr(distributed, "_message_number", iter([0, 0, 1, 1]))
    environment(**SLURM_TASK, SLURM_PROCID="0")
    assert distributed.broadcast("here") == "here"
    with monkeypatch.context() as other:
        other.setenv("SLURM_PROCID", "1")
        assert distributed.broadcast() == "here"
    with announce_pretraining("key"):
        pass
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert announced_pretraining() == "key"


def test_broadcast_waits_for_the_first_process(environment, monkeypatch):
    from torch.distributed import HashStore

    store = HashStore()
    monkeypatch.setattr(distributed, "_store", lambda: store)
    monkeypatch.setattr(distributed, "_message_number", iter([0]))
    environment(**SLURM_TASK, SLURM_PROCID="1")
    later = threading.Timer(0.3, lambda: store.set("0", "late"))
    later.start()
    assert distributed.broadcast() == "late"
    later.join()
