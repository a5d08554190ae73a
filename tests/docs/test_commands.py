"""Every command that a page shows is taken by the command line: its options, the recipes and fields that it names."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from rwkvctl.cli.app import app
from rwkvctl.config.specs import load
from rwkvctl.config.specs.jobs import JOBS, FinetuneSpec
from rwkvctl.config.specs.study import study_names
from rwkvctl.data.convert import synth

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
SHIPPED = [path for folder in ("recipes", "spaces", "studies") for path in load.job_folder().glob(f"{folder}/*.yaml")]
COMMAND = typer.main.get_command(app)


FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def blocks(text: str) -> list[str]:
    """The commands of indented and fenced blocks, and of YAML comments; a backslash at the end joins lines."""
    text = FENCED.sub(lambda block: block[0].replace("\n", "\n    "), text.replace("\\\n", " "))
    return [without_shell(line) for line in re.findall(r"^(?:[ \t]+|# )(?:\$ )?(rwkvctl .*)$", text, re.MULTILINE)]


def spans(text: str) -> list[str]:
    """The commands in backticks, wherever in a text; they may go on in the next line."""
    return [without_shell(" ".join(span.split())) for span in re.findall(r"`(rwkvctl [^`]*)`", FENCED.sub("", text))]


def without_shell(line: str) -> str:
    """Without a comment, a redirection, and the dots that stand for what does not matter."""
    return re.sub(r"\s+(#|>).*$", "", line).replace(" ... ", " ").removesuffix(" ...").rstrip(" .:")


def parsed(line: str, *, complete: bool = True) -> dict[str, Any] | None:
    """What the command line makes of it: its parameters. An incomplete one may lack arguments, which gives None."""
    command, words = COMMAND, shlex.split(line)[1:]
    name = "rwkvctl"
    while words and (inner := getattr(command, "commands", None)):
        name = words.pop(0)
        if name == "--help":
            return None
        assert name in inner, f"{line}: no command {name!r}"
        command = inner[name]
    if words == ["--help"] or hasattr(command, "commands"):
        return None
    try:
        context = command.make_context(name, words)
    except Exception as error:
        if type(error).__name__ == "MissingParameter" and not complete:
            return None
        pytest.fail(f"{line}: {getattr(error, 'message', error)}")
    return {"job": name, **context.params}


def check_names(line: str, parameters: dict[str, Any]) -> None:
    """Recipes, spaces, studies and fields of a spec that a command names are there."""
    job = parameters["job"]
    recipe = parameters.get("recipe")
    assert recipe is None or recipe in load.recipe_names(), line
    space = parameters.get("space")
    assert space is None or space in load.space_names() or space.endswith(".yaml"), line  # one's own
    spec = FinetuneSpec if job == "tune" else JOBS.get(job)
    for assignment in parameters.get("assignments") or parameters.get("set") or []:
        assert spec is not None, line
        check_field(line, spec, assignment.partition("=")[0])
    if job in ("show", "report") and line.startswith("rwkvctl study") and parameters["name"] not in ("NAME", "STUDY"):
        assert parameters["name"] in study_names(), line


def check_field(line: str, spec: Any, path: str) -> None:
    for part in path.split(".") if path != "FIELD" else []:
        fields = getattr(spec, "model_fields", None)
        if fields is None:
            return  # below model.options everything goes
        names = fields | {str(alias): field for field in fields.values() for alias in spellings(field)}
        assert part in names, f"{line}: no field {path}"
        spec = names[part].annotation


def spellings(field: Any) -> list[Any]:
    return getattr(field.validation_alias, "choices", [])


@pytest.mark.parametrize("page", [*PAGES, *sorted(SHIPPED)], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_command_is_taken(page: Path):
    text = page.read_text()
    found = [(line, parsed(line)) for line in blocks(text)]
    found += [(line, parsed(line, complete=page.name == "README.md")) for line in spans(text)]
    for line, parameters in found:
        if parameters is not None:
            check_names(line, parameters)
    assert found or page.suffix == ".md"


def test_what_is_not_taken_is_found():
    assert parsed("rwkvctl evaluate", complete=False) is None
    for wrong in ("rwkvctl evaluate RUN --colour", "rwkvctl paint", "rwkvctl data colour", "rwkvctl evaluate"):
        with pytest.raises((AssertionError, pytest.fail.Exception)):
            parsed(wrong)
    with pytest.raises(AssertionError, match=r"no field train\.epoch"):
        check_names("x", parsed("rwkvctl finetune acdc --set train.epoch=3") or {})
    with pytest.raises(AssertionError):
        check_names("x", parsed("rwkvctl finetune clinicdbs") or {})


# README's commands that need no training, in its order, on synthetic downloads ----------------------------------------

README = spans((ROOT / "README.md").read_text())


@pytest.fixture
def readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs the command of README that begins so, in a folder of the test's own, and returns what it prints."""
    monkeypatch.setenv("RWKVCTL_HOME", str(tmp_path / "home"))
    for variable in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "RWKVCTL_DATA_ROOT", "RWKVCTL_STORAGE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)

    def run(begin: str, *more: str, code: int = 0, **instead: str) -> str:
        (line,) = (line for line in README if line.startswith(f"rwkvctl {begin}"))
        words = [instead.get(word, word) for word in shlex.split(line)[1:]]
        result = CliRunner().invoke(app, [*words, *more])
        assert result.exit_code == code, f"{line}: {result.exception or result.output}"
        return result.stdout

    return run


def test_the_commands_of_readme_run(readme: Callable[..., str]):
    readme("data synth busi")
    assert "busi" in readme("data doctor", DIR="raw/busi", code=1)  # images are missing
    synth.write("clinicdb", "CVC-ClinicDB", size=64)
    assert "clinicdb" in readme("data prepare", "--allow-partial")  # 12 of its 612 images
    assert "sound" in readme("data verify")
    planned = readme("finetune clinicdb --data", "--set", "train.batch_size=2", "--dry-run")
    assert "# parameters: 7,76" in planned  # U-Net's 7.77 M
    assert "skips" in readme("study list")
    assert "decoder_kernel_size: 9" in readme("recipe show")
    assert "FinetuneSpec" in readme("recipe schema")
    assert "address: ray-head:6379" in readme("config set")
