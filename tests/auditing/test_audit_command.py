"""Tests of the command ``drgrade audit``."""

from pathlib import Path

import hydra
import pytest
from omegaconf import OmegaConf

from drgrade.auditing.findings import FINDINGS
from drgrade.cli import COMMANDS
from drgrade.cli.audit import FOUND, main, work
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


def test_command_exits_with_status_3_and_lists_the_findings(overrides, call_main, tmp_path):
    status, out, err = call_main(main, "drgrade", *overrides)
    assert status == FOUND == 3, err
    assert "failed: 1 conflicting_grades, 1 across_splits, 1 patient_across_splits, 2 unreadable" in out
    assert out.rstrip().endswith(f"{tmp_path}/audit/index.html")
    assert (tmp_path / "audit" / "index.html").is_file()
    assert "Traceback" not in err


def test_empty_fail_on_passes(overrides, tmp_path):
    run(*overrides, "fail_on=[]")
    assert (tmp_path / "audit" / "audit.json").is_file()


def test_audit_fails_only_on_the_kinds_in_fail_on(overrides):
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
def test_invalid_settings_are_refused_before_any_work(overrides, override, message, tmp_path):
    with pytest.raises(Exception, match=message) as stopped:
        run(*overrides, override)
    causes = [stopped.value, stopped.value.__cause__, stopped.value.__context__]
    assert any(isinstance(cause, ConfigError) for cause in causes)
    assert list(tmp_path.iterdir()) == []


def test_folder_with_other_content_is_refused_before_any_work(overrides, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").touch()
    with pytest.raises(ConfigError, match="other files than an audit"):
        run(*overrides, f"paths.audit={tmp_path}/thesis")
    assert not (tmp_path / "stores").exists()


def test_default_fail_on_is_every_kind_of_severity_error():
    default = OmegaConf.load(CONF / "audit.yaml").fail_on
    assert set(default) == {name for name, kind in FINDINGS.items() if kind.severity == "error"}


def test_config_and_code_have_the_same_defaults():

    from drgrade.settings import AuditThresholds

    config = OmegaConf.to_container(OmegaConf.load(CONF / "audit.yaml").audit)
    settings = AuditThresholds().model_dump()
    assert {name: config[name] for name in settings if name != "fail_on"} == {
        name: value for name, value in settings.items() if name != "fail_on"
    }


def test_documentation_lists_every_setting_with_its_default():

    from drgrade.settings import AuditThresholds

    text = (REPOSITORY / "docs" / "audit.md").read_text()
    rows = [
        f"| `audit.{name}` | {value:g} |"
        for name, value in AuditThresholds().model_dump().items()
        if name != "fail_on"
    ]
    assert [row for row in rows if row not in text] == []


def test_documentation_names_every_kind_of_finding():
    text = (REPOSITORY / "docs" / "audit.md").read_text()
    assert [name for name in FINDINGS if f"`{name}`" not in text] == []
    assert "audit" in COMMANDS
