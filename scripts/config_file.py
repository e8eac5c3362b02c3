"""Options of a command from a file: the flat part of YAML that option files need, read without a library.

::

    # experts of this machine
    expert_pattern: "ffn.[0:32].[0:8]"
    num_experts: 4
    increase_file_limit: true
    initial_peers:
      - /ip4/203.0.113.7/tcp/31337/p2p/12D3…
    host_maddrs: [/ip4/0.0.0.0/tcp/31330]
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from hivemind.errors import ConfigError

__all__ = ["arguments_of", "read_options"]

Value = str | bool | list[str] | None

_ENTRY = re.compile(r"([A-Za-z_][\w-]*)\s*:(?:\s+(.*))?")
_ITEM = re.compile(r"\s*-\s+(.*)")
_PLAIN = re.compile(r"[^\s\"'\[\]{}&*!|>%@`#,][^\[\]{}#]*?")
_COMMENT = re.compile(r"(?:^|\s)#.*$")


def read_options(path: Path) -> dict[str, Value]:
    """The options that a file sets: texts, lists of texts, ``true`` and ``false``; None for an empty one.

    :raises ConfigError: if it cannot be read, or has more of YAML than that; names the line
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("--config", str(path), f"a file that can be read ({error})") from error
    options: dict[str, Value] = {}
    last = ""
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#") or line.strip() == "---":
            continue
        try:
            if (item := _ITEM.fullmatch(line)) and last and not isinstance(options[last], str | bool):
                known = options[last]
                options[last] = [*(known if isinstance(known, list) else []), _text(item[1])]
            elif entry := _ENTRY.fullmatch(line):
                last = entry[1].replace("-", "_")
                if last in options:
                    raise ValueError(f"{last} is set twice")
                options[last] = _value(entry[2] or "")
            else:
                raise ValueError("expected `option: value`, or `- item` of a list")
        except ValueError as error:
            raise ConfigError("--config", f"{path}, line {number}", str(error)) from None
    return options


def _value(text: str) -> Value:
    text = text.strip()
    if text.startswith("["):
        inside = re.fullmatch(r"\[(.*)\](?:\s+#.*)?", text)
        if inside is None:
            raise ValueError("expected a list `[first, second]` on one line")
        return [_text(item) for item in inside[1].split(",")] if inside[1].strip() else []
    if not _COMMENT.sub("", text).strip():
        return None
    if text[0] not in "\"'" and (word := _text(text)).lower() in ("true", "false", "null", "~"):
        return {"true": True, "false": False}.get(word.lower())
    return _text(text)


def _text(text: str) -> str:
    text = text.strip()
    quoted = re.fullmatch(r"(\"[^\"\\]*\"|'[^']*')(?:\s+#.*)?", text)
    if quoted:
        return quoted[1][1:-1]
    plain = _COMMENT.sub("", text).strip()
    if not _PLAIN.fullmatch(plain):
        raise ValueError(f"expected a plain or quoted text, got {text!r}")
    return plain


def arguments_of(options: dict[str, Value], parser: argparse.ArgumentParser, path: Path) -> list[str]:
    """Options of a file as arguments of the command line, to stand before those that were typed.

    :raises ConfigError: if the command has no such option, or it takes no such value
    """
    flags = {action.dest: action for action in parser._actions if action.option_strings}
    by_name = {
        name.lstrip("-").replace("-", "_"): action for action in flags.values() for name in action.option_strings
    }
    arguments: list[str] = []
    for name, value in options.items():
        action = by_name.get(name)
        if action is None or action.dest in ("help", "config"):
            raise ConfigError("--config", f"{path}: {name}", f"options of {parser.prog}: {', '.join(sorted(by_name))}")
        flag = action.option_strings[-1]
        if action.nargs == 0:
            if not isinstance(value, bool | None):
                raise ConfigError("--config", f"{path}: {name}: {value}", "true or false")
            arguments += [flag] if value else []
        elif isinstance(value, bool):
            raise ConfigError("--config", f"{path}: {name}: {value}", "a value")
        elif isinstance(value, list):
            if action.nargs not in ("*", "+"):
                raise ConfigError("--config", f"{path}: {name}: {value}", "one value")
            arguments += [flag, *value]
        elif value is not None:
            arguments += [f"{flag}={value}"] if action.nargs is None else [flag, value]
    return arguments
