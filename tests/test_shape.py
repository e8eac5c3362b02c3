"""The shape of the code: what reviews should not have to look for."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("core", "core/utils", "p2p", "dht", "compression", "averaging", "optim", "proto", "scripts")
MAX_LINES = 400
MAX_FUNCTION_LINES = 90

#: Calls that are forbidden, where they are allowed all the same, and why they are forbidden.
FORBIDDEN = {
    "os.fork": ((), "threads and locks do not survive it"),
    "asyncio.create_task": ((), "nobody owns the task: use asyncio.TaskGroup or hivemind.aio.TaskScope"),
    "asyncio.ensure_future": ((), "nobody owns the task: use asyncio.TaskGroup or hivemind.aio.TaskScope"),
    "*.create_task": (("core/aio.py", "core/runtime.py"), "only a TaskGroup or TaskScope owns tasks"),
    "asyncio.run": (("core/virtual_clock.py",), "coroutines run on the network thread: hivemind.runtime"),
    "asyncio.get_event_loop": ((), "makes loops by accident: use asyncio.get_running_loop"),
    "logging.basicConfig": ((), "the root logger is the user's"),
    "signal.signal": (("scripts/running.py",), "signal handlers are the user's"),
    "pickle.loads": (("dht/dht.py",), "bytes of peers must not run code"),
    "torch.load": ((), "bytes of peers must not run code"),
    "time.sleep": ((), "waits have a condition and a deadline"),
}


def modules() -> list[Path]:
    """The package's own modules, without generated ones."""
    found = [path for folder in PACKAGES for path in sorted((ROOT / folder).glob("*.py"))]
    return [path for path in found if not path.name.endswith("_pb2.py")]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


every_module = pytest.mark.parametrize("path", modules(), ids=name_of)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=name_of(path))


def dotted(node: ast.expr) -> str:
    """``a.b.c`` of an attribute access; ``*.c`` where it hangs on something else than a name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return "*"


def calls(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Name and line of every call."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield dotted(node.func), node.lineno


def owners_of_tasks(tree: ast.Module) -> set[str]:
    """Names bound by ``async with asyncio.TaskGroup() as name``."""
    return {
        item.optional_vars.id
        for node in ast.walk(tree)
        if isinstance(node, ast.AsyncWith)
        for item in node.items
        if isinstance(item.optional_vars, ast.Name)
        and isinstance(item.context_expr, ast.Call)
        and dotted(item.context_expr.func) == "asyncio.TaskGroup"
    }


def is_breach(call: str, rule: str, groups: set[str]) -> bool:
    if rule.startswith("*."):
        owner, _, method = call.rpartition(".")
        return bool(owner) and method == rule[2:] and owner not in groups and owner != "asyncio"
    return call == rule


@every_module
def test_module_says_what_it_is_for(path: Path) -> None:
    docstring = ast.get_docstring(parse(path))
    assert docstring, "no docstring"
    assert len(docstring) > 10, "a docstring that says nothing"


@every_module
def test_file_is_one_concept(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= MAX_LINES, f"{lines} lines: split it by concept"


@every_module
def test_functions_are_small(path: Path) -> None:
    long = {
        node.name: node.end_lineno - node.lineno + 1
        for node in ast.walk(parse(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= MAX_FUNCTION_LINES
    }
    assert not long


@every_module
def test_no_forbidden_call(path: Path) -> None:
    tree = parse(path)
    groups = owners_of_tasks(tree)
    breaches = [
        f"line {line}: {call}: {why}"
        for call, line in calls(tree)
        for rule, (allowed_in, why) in FORBIDDEN.items()
        if is_breach(call, rule, groups) and name_of(path) not in allowed_in
    ]
    assert not breaches


@every_module
def test_no_finalizer(path: Path) -> None:
    """What a `__del__` would free has an owner that closes it."""
    found = [node.name for node in ast.walk(parse(path)) if isinstance(node, ast.FunctionDef)]
    assert "__del__" not in found


@every_module
def test_all_is_the_public_part(path: Path) -> None:
    """``__all__`` names every public function and class of a module, and nothing that is not there."""
    tree = parse(path)
    listed = declared_names(tree)
    if listed is None:
        return
    defined = {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_")
    }
    assert set(listed) <= bound_names(tree)
    assert defined <= set(listed), "public by its name, but not in __all__"
    assert len(listed) == len(set(listed))


def declared_names(tree: ast.Module) -> list[str] | None:
    """The literal value of ``__all__``; None where there is none, or where it is computed."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(dotted(target) == "__all__" for target in node.targets):
            return list(ast.literal_eval(node.value)) if isinstance(node.value, ast.List) else None
    return None


def bound_names(tree: ast.Module) -> set[str]:
    """Names that stand at the top level of a module."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names.update(alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Assign):
            names.update(dotted(target) for target in node.targets)
        elif isinstance(node, ast.AnnAssign):
            names.add(dotted(node.target))
    return names


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("*.py")), ids=name_of)
def test_tests_import_by_the_installed_name(path: Path) -> None:
    """``import p2p`` would work from the checkout, and load a second copy of the package."""
    folders = {folder.partition("/")[0] for folder in PACKAGES}
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            assert (node.module or "").partition(".")[0] not in folders
        elif isinstance(node, ast.Import):
            assert not {alias.name.partition(".")[0] for alias in node.names} & folders
