"""Runs that torchrun starts, on one node and on two nodes of this machine."""

import socket
import subprocess
import sys

import pytest
from conftest import assert_complete, reaching_tests


@pytest.fixture
def torchrun(command):
    """``torchrun(options, "a=b")``: the command of a tiny run of two processes."""

    def make(options, *more):
        script = command("trainer=ddp_cpu", *more)[1:]
        return [sys.executable, "-m", "torch.distributed.run", *options, *script]

    return make


def test_two_processes_share_folder_and_pretraining(call, torchrun, tmp_path):
    output = call(torchrun(["--standalone", "--nproc-per-node=2"], "init=ssl"), tmp_path)
    (folder,) = (tmp_path / "runs" / "grading").iterdir()
    assert_complete(folder, processes=2)
    assert output.count("encoder: not found for these settings; pre-training") == 1
    assert output.count("finished:") == 1
    assert len(list((tmp_path / "encoders").glob("*/encoder.safetensors"))) == 1


def test_two_nodes_make_one_run(torchrun, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ["--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}"]
    settings = ("init=random", "trainer.devices=1", "trainer.num_nodes=2")
    nodes = [
        subprocess.Popen(
            torchrun([*options, f"--node-rank={rank}"], *settings),
            cwd=tmp_path,
            env=reaching_tests(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        outputs = [node.communicate(timeout=200)[0] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], outputs
    (folder,) = (tmp_path / "runs" / "grading").iterdir()
    assert_complete(folder, processes=2)


def test_mismatched_number_of_processes_is_refused(call, torchrun, tmp_path):
    output = call(torchrun(["--standalone", "--nproc-per-node=2"], "trainer.devices=3"), tmp_path, status=1)
    assert "torchrun has started 2 processes, but trainer.devices=3 on trainer.num_nodes=1 makes 3" in output
