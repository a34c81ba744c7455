"""Wrong input on the command line: a one-line message and a non-zero exit status."""

import sys

import pytest

from drgrade.cli import command
from drgrade.cli import main as drgrade
from drgrade.cli.prepare import main as prepare
from drgrade.cli.train import headline, work
from drgrade.settings import TrainSettings


@pytest.fixture
def run(monkeypatch, capfd, overrides, tmp_path):
    """Run the command in this process; return status and stderr."""

    def call(*arguments, tiny=True):
        monkeypatch.setattr(sys, "argv", ["train.py", *(overrides if tiny else []), *arguments])
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        with pytest.raises(SystemExit) as caught:
            command.run(work, TrainSettings)
        return caught.value.code, capfd.readouterr().err

    return call


@pytest.mark.parametrize(
    ("argument", "hint"),
    [
        ("trainer.max_epoch=3", "did you mean trainer.max_epochs"),
        ("label_fracton=0.1", "did you mean label_fraction"),
        ("+experiment=msssl_10pc", "did you mean msssl_10pct"),
        ("experiment=msssl_10pct", "+experiment=NAME"),
        ("+experimnt=msssl_10pct", "did you mean experiment"),
        ("encoder=resnet5", "did you mean resnet50"),
        ("head=softmx", "did you mean softmax"),
        ("protocol=matchd", "did you mean matched"),
        ("data=aptos", "there is no data=aptos"),
        ("data=folder", "data.root is not given"),
        ("data=idrid data.unlabelled=[ddrr]", "did you mean ddr"),
        ("data=folder data.root=/nowhere", "/nowhere"),
        ("data=ddr data.count=60", "did you mean data.root"),
        ("logger.x=/x/(copy)", "two pairs of quotes"),
        ("seed=-1", "seed=-1 is not allowed: whole number ≥ 0"),
        ("protocol.checkpoint=first", "protocol.checkpoint=first is not allowed: last, best"),
        ("encoder=timm", "encoder.name is not given"),
        ("seed=", "seed"),
    ],
)
def test_wrong_override_is_a_one_line_error(argument, hint, run):
    status, errors = run(*argument.split(), "logger=none", tiny=False)
    lines = [line for line in errors.splitlines() if line.strip()]
    assert status == 1
    assert hint in lines[-1]
    assert lines[-1].startswith("error: ")
    assert "Traceback" not in errors
    assert len(lines) == 1


def test_missing_data_set_error_contains_the_source(run, tmp_path):
    status, errors = run("data=eyepacs", f"paths.data={tmp_path}", "logger=none", tiny=False)
    first, *rest = [line for line in errors.splitlines() if line.strip()]
    assert status == 1
    assert first.startswith("error: ")
    assert str(tmp_path / "eyepacs") in first
    assert any("kaggle competitions download" in line for line in rest)
    assert "Traceback" not in errors


def test_unfitting_encoder_is_a_one_line_error(run, tmp_path):
    (tmp_path / "encoder.safetensors").write_bytes(b"")
    status, errors = run(f"init={tmp_path / 'encoder.safetensors'}")
    assert status == 1
    assert "not a readable safetensors file" in errors
    assert "Traceback" not in errors


def test_program_errors_keep_their_stack_trace(monkeypatch, tmp_path):
    def broken(cfg):
        raise RuntimeError("a bug")

    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeError, match="a bug"):
        command.run(broken, TrainSettings)


def test_headline_names_scale_and_command_for_real_data(compose):
    text = headline(compose("+experiment=msssl_10pct"))
    assert "demo scale" in text
    assert "python train.py +experiment=msssl_10pct data=idrid data.root=DIR scale=paper" in text


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [([], 2, "usage"), (["--help"], 0, "prepare"), (["prepar"], 2, "no command")],
)
def test_drgrade_lists_its_commands(arguments, status, words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["drgrade", *arguments])
    with pytest.raises(SystemExit) as caught:
        drgrade()
    output = capsys.readouterr()
    assert caught.value.code == status
    assert words in output.out + output.err


def test_prepare_makes_a_store_and_summarises_it(shared, call_main):
    arguments = [*shared, "data.count=60", "data.size=64", "data.image_size=32"]
    status, out, _ = call_main(prepare, "drgrade", *arguments)
    assert status == 0
    assert "60 photographs at 32 px" in out
