"""``drgrade audit``."""

import subprocess
import sys
from pathlib import Path

import hydra
import pytest
from omegaconf import OmegaConf

from drgrade.auditing.findings import FINDINGS
from drgrade.cli import COMMANDS
from drgrade.cli.audit import FOUND, work
from drgrade.config import CONF
from drgrade.errors import ConfigError

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def overrides(defective, tmp_path):
    return [
        "data=folder",
        f"data.root={defective.root}",
        "data.name=defective",
        "data.patient_column=patient",
        "data.split_column=split",
        "data.image_size=96",
        "data.workers=1",
        f"paths.outputs={tmp_path}",
        f"paths.audit={tmp_path}/audit",
    ]


def run(*overrides):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        work(hydra.compose("audit", list(overrides)))


def test_the_command_fails_with_a_status_of_its_own_and_says_why(overrides, tmp_path):
    command = [sys.executable, "-m", "drgrade.cli.audit", *overrides]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.returncode == FOUND == 3, done.stderr
    assert (
        "failed: 1 conflicting_grades, 1 across_splits, 1 patient_across_splits, 2 unreadable" in done.stdout
    )
    assert done.stdout.rstrip().endswith(f"{tmp_path}/audit/index.html")
    assert (tmp_path / "audit" / "index.html").is_file()
    assert "Traceback" not in done.stderr


def test_with_nothing_to_fail_on_it_passes(overrides, tmp_path):
    run(*overrides, "fail_on=[]")
    assert (tmp_path / "audit" / "audit.json").is_file()


def test_it_fails_on_what_is_named_and_only_on_that(overrides):
    run(*overrides, "fail_on=[across_datasets]")
    with pytest.raises(SystemExit) as stopped:
        run(*overrides, "fail_on=[tiny]")
    assert stopped.value.code == FOUND


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("fail_on=[nearduplicate]", "did you mean near_duplicate"),
        ("fail_on=tiny", "fail_on=tiny is not allowed"),
        ("fail_on=null", "fail_on=null is not allowed: list of"),
        ("audit.folds=1", "folds=1 is not allowed"),
        ("data.illumination=clahe", "leave it at none"),
        ("data.strict=true", "fail_on"),
        ("data.unlabelled=[nowhere]", "no data set 'nowhere'"),
    ],
)
def test_settings_that_make_no_sense_stop_it_before_it_works(overrides, override, message, tmp_path):
    with pytest.raises(Exception, match=message) as stopped:
        run(*overrides, override)
    causes = [stopped.value, stopped.value.__cause__, stopped.value.__context__]
    assert any(isinstance(cause, ConfigError) for cause in causes)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_else_in_it_is_refused_before_it_works(overrides, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").touch()
    with pytest.raises(ConfigError, match="something else"):
        run(*overrides, f"paths.audit={tmp_path}/thesis")
    assert not (tmp_path / "stores").exists()


def test_by_default_it_fails_on_every_error_and_on_nothing_else():
    default = OmegaConf.load(CONF / "audit.yaml").fail_on
    assert set(default) == {name for name, kind in FINDINGS.items() if kind.severity == "error"}


def test_the_defaults_of_the_config_are_those_of_the_code():

    from drgrade.settings import AuditThresholds

    config = OmegaConf.to_container(OmegaConf.load(CONF / "audit.yaml").audit)
    settings = AuditThresholds().model_dump()
    assert {name: config[name] for name in settings if name != "fail_on"} == {
        name: value for name, value in settings.items() if name != "fail_on"
    }


def test_the_documentation_has_every_setting_with_its_default():

    from drgrade.settings import AuditThresholds

    text = (REPOSITORY / "docs" / "audit.md").read_text()
    rows = [
        f"| `audit.{name}` | {value:g} |"
        for name, value in AuditThresholds().model_dump().items()
        if name != "fail_on"
    ]
    assert [row for row in rows if row not in text] == []


def test_the_documentation_names_every_finding():
    text = (REPOSITORY / "docs" / "audit.md").read_text()
    assert [name for name in FINDINGS if f"`{name}`" not in text] == []
    assert "audit" in COMMANDS
