"""Arguments of commands without a config: paths, typed settings, and what is refused."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drgrade.cli.arguments import help_text, parse, run
from drgrade.errors import ConfigError, DataError


@dataclass(frozen=True)
class Example:
    """Settings of every kind that can be read."""

    out: Path | None = None
    resamples: int = field(default=1000, metadata={"help": "draws of the bootstrap"})
    level: float = 0.95
    strict: bool = False
    names: tuple[str, ...] = ()
    format: Literal["html", "latex"] = "html"


def test_paths_and_typed_settings_are_told_apart() -> None:
    paths, settings = parse(
        ["a/b", "level=0.9", "out=x=y", "names=one, two", "strict=true", "c", "format=latex", "resamples=7"],
        Example(),
    )

    assert paths == [Path("a/b"), Path("c")]
    assert settings == Example(Path("x=y"), 7, 0.9, True, ("one", "two"), "latex")


def test_null_is_none_and_the_last_one_wins() -> None:
    assert parse(["out=x", "out=null"], Example())[1].out is None


def test_a_path_with_an_equals_sign_can_be_named() -> None:
    assert parse(["./fold=0"], Example())[0] == [Path("./fold=0")]


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("levle=0.9", "did you mean level"),
        ("resamples=many", "resamples=many is not a whole number"),
        ("level=x", "level=x is not a number"),
        ("strict=maybe", "neither true nor false"),
        ("format=htlm", "did you mean html"),
        ("--fast", "there is no option --fast"),
        ("out=", "names no file or folder"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(argument: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse([argument], Example())


@given(st.integers(), st.floats(allow_nan=False), st.booleans())
def test_written_values_come_back(resamples: int, level: float, strict: bool) -> None:
    arguments = [f"resamples={resamples}", f"level={level}", f"strict={strict}"]

    assert parse(arguments, Example())[1] == Example(resamples=resamples, level=level, strict=strict)


def test_help_lists_every_setting_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    run(lambda paths, settings: pytest.fail("worked"), Example(), "usage: it", ["x", "--help"])

    shown = capsys.readouterr().out
    assert shown.strip() == help_text("usage: it", Example())
    for line in (
        "usage: it",
        "out=null",
        "resamples=1000",
        "draws of the bootstrap",
        "strict=false",
        "format=html",
    ):
        assert line in shown


def test_an_error_is_one_line_and_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    def work(paths: list[Path], settings: Example) -> None:
        raise DataError(f"{paths[0]} is empty")

    with pytest.raises(SystemExit) as ended:
        run(work, Example(), "usage: it", ["x"])

    assert ended.value.code == 1
    assert capsys.readouterr().err == "error: x is empty\n"
