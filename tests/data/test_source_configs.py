"""Tests of the YAML file and the documentation page of every data set."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from drgrade.data.sources.base import Source
from drgrade.errors import DataError

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.stem for path in (ROOT / "conf/data").glob("*.yaml") if path.stem != "base")
PUBLIC = [name for name in NAMES if name not in ("demo", "folder")]


def source(name, root, *overrides) -> Source:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("prepare", [f"data={name}", f"data.root={root}", *overrides])
    return instantiate(cfg.data.source)


@pytest.mark.parametrize("name", PUBLIC)
def test_missing_data_set_explains_origin_terms_layout_and_citation(name, tmp_path):
    made = source(name, tmp_path / "nowhere")
    assert made.name == name
    with pytest.raises(DataError, match=r"nowhere does not exist.*data\.root=DIR") as error:
        made.read()
    message = str(error.value)
    assert made.how_to_get in message
    assert "Cite: " in message
    assert any(word in message for word in ("CC BY 4.0", "terms: "))
    assert all(len(line) <= 110 for line in made.how_to_get.splitlines())


@pytest.mark.parametrize("name", PUBLIC)
def test_only_free_data_sets_can_be_downloaded(name, tmp_path):
    can = type(source(name, tmp_path)).download is not Source.download
    assert can == (name in ("idrid", "retinamnist"))


@pytest.mark.parametrize("name", NAMES)
def test_every_data_set_has_a_documentation_page(name):
    page = (ROOT / f"docs/datasets/{name}.md").read_text(encoding="utf-8")
    assert f"data={name}" in page
    assert f"({name}.md)" in (ROOT / "docs/datasets/README.md").read_text(encoding="utf-8")


def test_settings_reach_the_source(tmp_path):
    assert source("retinamnist", tmp_path, "data.size=64").file == "retinamnist_64.npz"
    assert source("messidor2", tmp_path, "data.pairs=null").pairs is None
