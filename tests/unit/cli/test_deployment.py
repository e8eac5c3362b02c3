"""Command lines that documentation and deployment files show are ones that the commands take."""

from __future__ import annotations

import argparse
import configparser
import importlib
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hivemind.cli.main import _COMMANDS

ROOT = Path(__file__).resolve().parents[3]
DEPLOY = ROOT / "docs" / "deploy"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

#: What these units may set; a slip in a name would be ignored by systemd with a line in the journal.
DIRECTIVES = {
    "Unit": {"Description", "After", "Wants"},
    "Service": {
        *("ExecStart", "StateDirectory", "DynamicUser", "Restart", "RestartSec", "LimitNOFILE", "NoNewPrivileges"),
        *("ProtectHome", "ProtectSystem", "PrivateTmp"),
    },
    "Install": {"WantedBy"},
}
INSTRUCTIONS = {"FROM", "RUN", "USER", "WORKDIR", "VOLUME", "EXPOSE", "STOPSIGNAL", "ENTRYPOINT"}


class Parser(argparse.ArgumentParser):
    """Raises what it would print."""

    def error(self, message: str) -> Any:
        raise ValueError(f"{self.prog}: {message}")


def parser_of(command: str) -> Parser:
    parser = Parser(prog=command, allow_abbrev=False)
    importlib.import_module(f"hivemind.cli.{_COMMANDS[command][0]}").add_options(parser)
    return parser


def check(line: list[str]) -> None:
    """
    :raises ValueError: if a command does not take these arguments
    """
    name, *arguments = line
    program = Path(name).name
    if program == "hivemind":
        command, *arguments = arguments
        if command in ("version", "--version"):
            assert arguments == []
            return
    else:
        command = program.removeprefix("hivemind-")
    parser_of(command).parse_args(arguments)


def commands_of_pages() -> Iterator[tuple[str, str]]:
    """Page and command line, of all blocks for a shell."""
    for page in PAGES:
        for kind, code in re.findall(r"^```(console|bash|sh)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
            for line in code.replace("\\\n", " ").splitlines():
                command = line.removeprefix("$ ") if kind == "console" else line
                if (kind != "console" or line.startswith("$ ")) and re.match(r"hivemind[- ]", command):
                    yield page.name, command


@pytest.mark.parametrize(("page", "line"), list(commands_of_pages()), ids=lambda value: str(value)[:60])
def test_command_lines_of_the_documentation(page: str, line: str) -> None:
    check(shlex.split(line, comments=True))


def test_command_lines_are_found() -> None:
    assert {page for page, _ in commands_of_pages()} >= {"command-line.md", "security.md"}
    with pytest.raises(ValueError, match="unrecognized"):
        check(["hivemind-relay", "--no_such_option"])


@pytest.mark.parametrize("unit", sorted(DEPLOY.glob("*.service")), ids=lambda path: path.name)
def test_units(unit: Path) -> None:
    reader = configparser.ConfigParser(interpolation=None, delimiters=["="])
    reader.optionxform = str  # type: ignore[assignment, method-assign]
    reader.read_string(unit.read_text().replace("\\\n", " "))
    assert {section: set(reader[section]) for section in reader.sections()} == DIRECTIVES
    service = reader["Service"]
    line = shlex.split(service["ExecStart"])
    assert Path(line[0]).is_absolute()
    assert Path(line[0]).name == unit.stem
    check(line)
    identity = line[line.index("--identity_path") + 1]
    assert identity.startswith(f"%S/{service['StateDirectory']}/"), "systemd makes that folder"


def test_container() -> None:
    instructions = [
        line.split(" ", 1)
        for line in (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
        if line and not line.startswith("#")
    ]
    assert {name for name, _ in instructions} == INSTRUCTIONS
    content = dict(instructions)
    line = json.loads(content["ENTRYPOINT"])
    check(line)
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert line[0] in scripts
    # the key is in the folder that outlives the container, and its owner runs the relay
    identity = Path(content["WORKDIR"], line[line.index("--identity_path") + 1])
    assert str(identity.parent) == content["VOLUME"]
    assert f"install -d -o {content['USER']} {identity.parent}" in content["RUN"]
    ports = re.findall(r"/(tcp|udp)/([0-9]+)", " ".join(line))
    assert content["EXPOSE"].split() == [f"{port}/{kind}" for kind, port in ports]


SECTIONS = {"hivemind-dht": ["dht"], "hivemind-relay": ["relay"], "hivemind doctor": ["doctor"]}


@pytest.mark.parametrize("title", SECTIONS)
def test_tables_list_all_options(title: str) -> None:
    """Each option is in the table of its command, or, where that says so, in that of hivemind-dht; and none else."""
    page = (ROOT / "docs" / "command-line.md").read_text()
    sections = {part.partition("\n")[0]: part for part in re.split(r"^## ", page, flags=re.MULTILINE)}
    listed = {
        option
        for row in re.findall(r"^\| (`--.*?) \|", sections[title], re.MULTILINE)
        for option in re.findall(r"--[a-z_]+", row)
    }
    command = title.removeprefix("hivemind").strip("- ")
    options = {option for action in parser_of(command)._actions for option in action.option_strings} - {"-h", "--help"}
    if command == "relay":
        shared = {option for action in parser_of("dht")._actions for option in action.option_strings}
        options -= shared
    assert listed == options
