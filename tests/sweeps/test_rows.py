"""Rows of a sweep: crossed with the swept values, with precedence over them."""

import json
import subprocess
from pathlib import Path

import pytest
import timm
from safetensors.torch import save_file
from tiny_run import TINY

from drgrade.config import CONF, choices
from drgrade.errors import ConfigError
from drgrade.sweeps.cells import read_sweep
from drgrade.sweeps.sweeper import plan_sweep

MATCHED = "+hydra.sweeper.rows.matched={init: ssl, protocol: matched}"
PLAIN = "+hydra.sweeper.rows.plain={init: random}"
LARGER = "+hydra.sweeper.rows.larger={encoder: msssl, encoder.channels: 24, +trainer.detect_anomaly: true}"
FEW = ("fold=0", "label_fraction=1.0", "~hydra.sweeper.params.init")


@pytest.fixture
def plan(overrides):
    """``plan("a=b")``: the folder of a tiny sweep of rows of one fold, and its cells: name: config."""

    def make(*more, experiment="rotation_table", few=FEW):
        found = plan_sweep(experiment, [*overrides, *few, *more]).plan
        return found.folder, {cell.name: cfg for cell, cfg in found.configs.items()}

    return make


@pytest.fixture
def table(overrides, tmp_path, monkeypatch):
    """``table(rows)``: an experiment with these rows in a folder on Hydra's search path."""

    def write(rows, **more):
        folder = tmp_path / "mine" / "experiment"
        folder.mkdir(parents=True)
        content = {"name": "mine", "hydra": {"mode": "MULTIRUN", "sweeper": {"rows": rows, **more}}}
        text = f"# @package _global_\n{json.dumps(content)}"
        (folder / "mine.yaml").write_text(text, encoding="utf-8")
        return f"hydra.searchpath=[file://{folder.parent}]"

    return write


def test_rows_are_crossed_with_swept_values(plan):
    _, cells = plan(MATCHED, PLAIN, "fold=0,1")
    assert list(cells) == [
        "matched_label_fraction-1.0_fold-0_seed-0",
        "matched_label_fraction-1.0_fold-1_seed-0",
        "plain_protocol-published_label_fraction-1.0_fold-0_seed-0",
        "plain_protocol-published_label_fraction-1.0_fold-1_seed-0",
    ]
    found = {(cfg.init, cfg.protocol.name, cfg.fold) for cfg in cells.values()}
    assert found == {(*row, fold) for row in (("ssl", "matched"), ("random", "published")) for fold in (0, 1)}


def test_table_has_a_row_of_imagenet_if_a_weights_file_fits(plan, tmp_path, caplog):
    def inits(*more, few=FEW[:2], experiment="rotation_table"):
        return [cfg.init for cfg in plan(*more, few=few, experiment=experiment)[1].values()]

    assert inits() == ["ssl", "random"]
    (tmp_path / "weights").mkdir()
    given = ("encoder=timm", "encoder.name=test_resnet", f"paths.weights={tmp_path / 'weights'}")
    caplog.set_level("INFO", logger="drgrade")
    assert inits(*given) == ["ssl", "random"]
    assert "the cells with ImageNet's weights are left out: no file with them" in caplog.text
    state = timm.create_model("test_resnet").state_dict()
    save_file(state, tmp_path / "weights" / "test_resnet.safetensors")
    assert inits(*given) == ["ssl", "imagenet", "random"]
    _, cells = plan(*given, few=FEW[:2])
    read = {cfg.init: cfg.encoder.weights for cfg in cells.values()}
    file = str(tmp_path / "weights" / "test_resnet.safetensors")
    assert read == {"ssl": None, "random": None, "imagenet": file}
    other_shape = (*given, "+encoder.options={stem_width: 8}")
    assert inits(*other_shape) == ["ssl", "random"]
    # Whoever asks for ImageNet's weights gets the row, and the error of its cells.
    assert inits("init=imagenet,random") == ["imagenet", "random"]
    rows = plan(*given, few=("fold=0", "label_fraction=1.0"), experiment="pretext_table")[1]
    assert any(name.startswith("imagenet_") for name in rows)


def test_row_chooses_groups_and_changes_their_settings(plan):
    _, cells = plan(LARGER, "init=random")
    cfg = cells["larger_protocol-published_init-random_label_fraction-1.0_fold-0_seed-0"]
    assert cfg.encoder._target_.endswith("MsSSL")
    assert cfg.encoder.channels == 24
    assert cfg.trainer.detect_anomaly is True


def test_rows_are_mappings_or_lists(plan, table):
    place = table(
        {
            "corn": {"head": "corn", "init": "random"},
            "listed": ["head=softmax", "init=random", "~callbacks.progress"],
            "bare": None,
        },
        params={"fold": "0"},
    )
    _, cells = plan(place, "init=random,imagenet", experiment="mine", few=())
    assert [name.split("_")[0] for name in cells] == ["corn", "listed", "bare", "bare"]
    corn, listed, bare, _ = cells.values()
    assert corn.head._target_.endswith("CornHead")
    assert "progress" not in listed.callbacks
    assert "progress" in bare.callbacks
    assert [cfg.method for cfg in (corn, listed, bare)] == ["corn", "listed", "bare"]


def test_row_name_is_the_method_unless_one_is_set(plan):
    _, cells = plan(PLAIN, "+hydra.sweeper.rows.named={method: Mine, init: random}")
    assert {cfg.method for cfg in cells.values()} == {"rotation"}.union({"Mine"})  # the experiment's own


def test_cell_overrides_contain_the_row(overrides, table):
    place = table({"first": {"init": "random"}})
    (cell,) = plan_sweep("mine", [*overrides, place, "fold=0"]).plan.configs
    assert "method='first'" in cell.overrides
    assert "init='random'" in cell.overrides
    assert cell.overrides[0] == "+experiment=mine"


def test_rows_are_chosen_on_the_command_line(plan, table):
    place = table({name: {"init": "random", "seed": n} for n, name in enumerate("abc")})
    rows = lambda *more: [name[0] for name in plan(place, *more, experiment="mine", few=("fold=0",))[1]]  # noqa: E731
    assert rows() == ["a", "b", "c"]
    assert rows("~hydra.sweeper.rows.b") == ["a", "c"]
    assert rows("hydra.sweeper.only=[c,a]") == ["a", "c"]
    assert rows("+hydra.sweeper.rows.d={init: imagenet}") == ["a", "b", "c", "d"]
    assert rows("+hydra.sweeper.rows.d={init: imagenet}", "hydra.sweeper.only=[d]") == ["d"]


def test_rows_and_protocols_extend_the_same_sweep(plan):
    place, cells = plan(MATCHED, PLAIN)
    more, others = plan(MATCHED, PLAIN, LARGER, "init=random", "protocol=matched,published")
    one, last = plan(PLAIN, "protocol=matched")
    assert place == more == one
    assert set(cells) < set(others)
    assert set(last) < set(others)
    assert not set(last) & set(cells)  # matched and published are two runs
    assert plan(PLAIN, "optimizer.lr=0.5")[0] != place


def test_label_seeds_extend_the_same_sweep_and_draw_nothing_from_all_labels(plan):
    place, cells = plan(PLAIN, "label_fraction=0.1,1.0")
    more, others = plan(PLAIN, "label_fraction=0.1,1.0", "split.label_seed=0,1,2")
    assert place == more
    assert set(others) - set(cells) == {
        f"plain_protocol-published_label_fraction-0.1_fold-0_seed-0_label_seed-{seed}" for seed in (1, 2)
    }
    assert [cfg.split.label_seed for cfg in others.values()] == [0, 1, 2, 0]
    follows = plan(PLAIN, "label_fraction=0.1,1.0", "seed=0,1", "split.label_seed=${seed}")[1]
    assert [(cfg.label_fraction, cfg.seed, cfg.split.label_seed) for cfg in follows.values()] == [
        (0.1, 0, 0),
        (0.1, 1, 1),
        (1.0, 0, 0),
        (1.0, 1, 0),
    ]


def test_row_that_sets_a_swept_setting_is_not_crossed_with_it(plan):
    _, cells = plan(MATCHED, PLAIN, "protocol=matched,published")
    assert [name for name in cells if name.endswith("fold-0_seed-0")] == [
        "matched_label_fraction-1.0_fold-0_seed-0",
        "plain_protocol-matched_label_fraction-1.0_fold-0_seed-0",
        "plain_protocol-published_label_fraction-1.0_fold-0_seed-0",
    ]


def test_row_replaces_overrides_of_the_command_line(plan, caplog):
    caplog.set_level("INFO")
    _, cells = plan(MATCHED, PLAIN, "protocol=published")
    assert [cfg.protocol.name for cfg in cells.values()] == ["matched", "published"]
    assert "protocol=published: not applied to the rows that set it themselves: matched" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["init=ssl"], "init=ssl has no effect: every row sets init itself"),
        (["init=ssl,random"], "init=ssl,random has no effect"),
        (["hydra.sweeper.only=[plian]"], "no row 'plian'; did you mean plain"),
        (["hydra.sweeper.only=plain"], "is not a list of rows"),
        (["+hydra.sweeper.rows.x=3"], "rows.x=3 is neither a mapping of settings nor a list"),
        (["+hydra.sweeper.rows.x=['seed=0,1']"], "a row has one value of each setting"),
        (["+hydra.sweeper.rows.x={resume: auto}"], "the sweep sets this itself"),
        (["+hydra.sweeper.rows.x={headd: corn}"], "headd"),
        (["+hydra.sweeper.rows={x y: {}}"], "may contain letters, digits"),
    ],
)
def test_invalid_rows_are_refused(arguments, words, plan):
    with pytest.raises(Exception, match=words) as caught:
        plan(MATCHED, PLAIN, *arguments)
    assert isinstance(caught.value, ConfigError) or "headd" in words


def test_sweep_without_rows_refuses_only(plan):
    with pytest.raises(ConfigError, match="this sweep has no rows"):
        plan("hydra.sweeper.only=[a]")


@pytest.mark.slow
def test_sweep_with_rows_runs_and_is_extended(command, tmp_path):
    def call(*more):
        given = command("+experiment=rotation_table", "fold=0", "label_fraction=1.0", FEW[-1], *more, "-m")
        done = subprocess.run(given, capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    rows = (PLAIN, "+hydra.sweeper.rows.narrow={init: random, protocol: matched, protocol.epochs: 1}")
    assert "2 cells, 0 finished" in call(*rows)
    (folder,) = Path(tmp_path / "sweeps").iterdir()
    narrow = json.loads((folder / "narrow_label_fraction-1.0_fold-0_seed-0" / "metrics.json").read_text())
    assert narrow["protocol"] == "matched"
    assert (folder / "report" / "report.html").is_file()
    again = call(*rows, MATCHED, "hydra.sweeper.report=false")
    assert "3 cells, 2 finished" in again
    assert len(read_sweep(folder)) == 3


@pytest.fixture(scope="module")
def pretexts():
    """The rows of pretext_table at one fold and fraction, by both protocols: name of the cell: config."""
    given = (*TINY, "fold=0", "label_fraction=1.0", "protocol=matched,published")
    return {cell.name: cfg for cell, cfg in plan_sweep("pretext_table", given).plan.configs.items()}


def test_pretext_table_has_every_pretext_and_its_baselines(pretexts):
    rows = {cfg.method: cfg for cfg in pretexts.values() if cfg.init == "ssl"}
    single = [
        name
        for name in choices("pretext")
        if "combination" not in (CONF / f"pretext/{name}.yaml").read_text()
    ]
    assert sorted(rows) == sorted(single)
    assert {name: cfg.pretext.name for name, cfg in rows.items()} == {name: name for name in single}
    random = [cfg for cfg in pretexts.values() if cfg.init == "random"]
    assert {(cfg.protocol.name, cfg.encoder == rows["mae"].encoder) for cfg in random} == {
        ("matched", False),
        ("published", False),
        ("matched", True),
        ("published", True),
        ("linear", False),
        ("majority", False),
    }


def test_rows_of_pretext_table_have_equal_budgets(pretexts):
    trained = [cfg for cfg in pretexts.values() if cfg.init == "ssl"]
    assert {(c.pretext.max_steps, c.pretext.epochs, c.pretext.batch_size) for c in trained} == {(2, -1, 8)}
    assert {(c.pretrain_on, c.pretext.val_fraction, c.pretext.seed) for c in trained} == {("train", 0.05, 0)}
    for protocol in ("matched", "published"):
        same = [c for c in pretexts.values() if c.protocol.name == protocol]
        assert len(same) == len(choices("pretext")) - 2 + 2  # without combinations; two random ones
        settings = [(c.optimizer, c.schedule, c.augment, c.head, c.protocol, c.data, c.split) for c in same]
        assert all(each == settings[0] for each in settings)
