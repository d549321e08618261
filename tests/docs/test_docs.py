"""The documents say what the code says: commands, options, exit codes, dependencies, and links that lead somewhere."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from wsfs import errors
from wsfs.cli.main import cli
from wsfs.cli.process import INTERRUPTED
from wsfs.config import IGNORED_OPTIONS, KERNEL_OPTIONS, OPTIONS, parse_mount_options

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "systemd" / "README.md",
    ROOT / "images" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]


def section(text: str, heading: str) -> str:
    """What stands below `## heading`, up to the next heading of that level."""
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found is not None, f"there is no section {heading!r}"
    return found[1]


def table(text: str) -> list[list[str]]:
    """The rows of the tables in a text, without headings."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    rules = [number for number, row in enumerate(rows) if all(set(cell) <= set("-:") for cell in row)]
    return [row for number, row in enumerate(rows) if number not in rules and number + 1 not in rules]


def fenced(text: str) -> list[str]:
    """The lines of all fenced blocks."""
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub makes of a document's headings."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def exit_codes() -> dict[int, str]:
    classes: list[type[errors.WsfsError]] = [errors.WsfsError]
    for cls in classes:
        classes.extend(cls.__subclasses__())
    return {cls.exit_code: cls.__name__ for cls in classes if cls.__module__ == errors.__name__}


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_is_in_the_readme_and_has_help_with_an_example(name: str) -> None:
    assert re.search(rf"\bwsfs {name}\b", README), f"the README does not mention 'wsfs {name}'"
    result = CliRunner().invoke(cli, [name, "--help"])
    assert result.exit_code == 0
    assert "Example" in result.output
    assert re.search(rf"wsfs {name}\b", result.output), f"'wsfs {name} --help' shows no example"


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_every_option_is_in_the_table_with_its_environment_variable(name: str) -> None:
    rows = [row for row in table(section(README, "Options")) if re.match(rf"`{name}[`=]", row[0])]
    assert len(rows) == 1, f"the table of options has {len(rows)} rows for {name}"
    variable = f"WSFS_{name.upper()}"
    assert (f"`{variable}`" in rows[0][2]) == OPTIONS[name].in_environment


def test_the_table_of_options_has_the_flags_of_mount() -> None:
    mount = cli.commands["mount"]
    flags = {opt for param in mount.params if isinstance(param, click.Option) for opt in param.opts}
    shown = {flag for row in table(section(README, "Options")) for flag in re.findall(r"`(--[a-z-]+)`", row[1])}
    assert shown <= flags
    assert flags - shown <= {"-o", "--foreground", "-f", "--ready-fd", "--json", "--help", "-h"}


def test_the_table_of_options_names_nothing_that_is_not_one() -> None:
    for row in table(section(README, "Options")):
        for option in re.findall(r"`([a-z_]+)[`=]", row[0]):
            assert option in {*OPTIONS, "ro", "rw"}


@pytest.mark.parametrize("name", sorted(KERNEL_OPTIONS))
def test_options_for_the_kernel_are_named(name: str) -> None:
    assert f"`{name}`" in section(README, "Options")


def test_what_is_said_to_be_accepted_is() -> None:
    for name in ("noauto", "nofail", "_netdev", "user"):
        assert name in IGNORED_OPTIONS
        assert f"`{name}`" in section(README, "Options")
    with pytest.raises(errors.UsageError):
        parse_mount_options("remount")


@pytest.mark.parametrize(("code", "name"), sorted(exit_codes().items()))
def test_every_exit_code_is_in_the_table(code: int, name: str) -> None:
    rows = [row for row in table(section(README, "Exit codes")) if row[0] == str(code)]
    assert len(rows) == 1, f"the table of exit codes has {len(rows)} rows for {code} ({name})"


def test_the_table_of_exit_codes_names_no_other() -> None:
    shown = {int(row[0]) for row in table(section(README, "Exit codes"))}
    assert shown == {0, INTERRUPTED, *exit_codes()}


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    wanted = {re.split(r"[\[<>=!~ ;]", one)[0] for one in listed}
    shown = {row[0] for row in table((ROOT / "docs" / "DEPENDENCIES.md").read_text())}
    assert shown == wanted


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        place, _, anchor = target.partition("#")
        found = (path.parent / place).resolve() if place else path
        if found.is_dir():
            found /= "README.md"
        assert found.exists(), f"{path.name} links to {target}, which does not exist"
        assert not anchor or anchor in anchors(found), f"{path.name} links to {target}: there is no such heading"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_paths_in_documents_exist(path: Path) -> None:
    """`scripts/demo`, `wsfs/index/journal.py`: what is named as a file of this repository is one."""
    for name in re.findall(r"`((?:wsfs|scripts|systemd|docs|tests)/[\w./-]+)", path.read_text()):
        assert (ROOT / name).exists(), f"{path.name} names {name}, which does not exist"


COMMANDS = sorted({line.strip() for line in fenced(README) if line.strip().startswith("wsfs ")})


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_in_the_readme_parse(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    command = cli.commands.get(words[0])
    assert command is not None, f"there is no 'wsfs {words[0]}'"
    context = command.make_context(words[0], words[1:])  # parses, and runs nothing
    options = context.params.get("options")
    if options:
        parse_mount_options(",".join(options))
    assert CliRunner().invoke(cli, [words[0], "--help"]).exit_code == 0


def test_scripts_in_the_readme_can_be_run() -> None:
    scripts = [line.strip() for line in fenced(README) if line.startswith("./")]
    assert scripts
    for script in scripts:
        assert (ROOT / script).stat().st_mode & 0o111, f"{script} is not executable"


def test_every_module_is_in_the_architecture() -> None:
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text()
    for path in sorted((ROOT / "wsfs").rglob("*.py")):
        if path.name != "__init__.py":
            assert re.search(rf"\b{path.stem}\b", text), f"ARCHITECTURE.md does not name {path.relative_to(ROOT)}"
