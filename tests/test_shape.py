"""The shape of the code: what reviews should not have to look for."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (
    *("core", "core/utils", "p2p", "dht", "compression", "averaging", "optim", "proto", "scripts"),
    *("moe", "moe/client", "moe/server", "moe/server/layers"),
)
MAX_LINES = 450
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
    "signal.signal": (("scripts/running.py", "moe/server/background.py"), "signal handlers are the user's"),
    "pickle.loads": (("dht/dht.py",), "bytes of peers must not run code"),
    "torch.load": (("moe/server/checkpoints.py",), "bytes of peers must not run code"),
    "time.sleep": (("moe/server/layers/common.py",), "waits have a condition and a deadline"),
}


def modules() -> list[Path]:
    """The package's own modules, without generated ones."""
    found = [path for folder in PACKAGES for path in sorted((ROOT / folder).glob("*.py"))]
    return [path for path in found if not path.name.endswith("_pb2.py")]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


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


def test_modules_say_what_they_are_for() -> None:
    assert [name_of(path) for path in modules() if len(ast.get_docstring(parse(path)) or "") <= 10] == []


def test_files_are_one_concept() -> None:
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in modules()}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_LINES} == {}


def installed_name(path: Path) -> str:
    """`p2p/auth.py` is imported as `hivemind.p2p.auth`."""
    folder, *rest = path.relative_to(ROOT).with_suffix("").parts
    parts = ["hivemind", *{"core": [], "scripts": ["cli"]}.get(folder, [folder]), *rest]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports for type checkers count: two files in a circle have to be understood together."""
    imported = {}
    paths = {installed_name(path): path for path in modules()}
    for name, path in paths.items():
        found = (node for node in ast.walk(parse(path)) if isinstance(node, ast.ImportFrom) and node.module)
        named = {(node.module, f"{node.module}.{alias.name}") for node in found for alias in node.names}
        imported[name] = {inner if inner in paths else outer for outer, inner in named} & paths.keys()
    try:
        tuple(graphlib.TopologicalSorter(imported).static_order())
    except graphlib.CycleError as error:
        raise AssertionError(f"a circle of imports: {' → '.join(error.args[1])}") from None


def test_functions_are_small() -> None:
    functions = [
        (f"{name_of(path)}: {node.name}", (node.end_lineno or node.lineno) - node.lineno + 1)
        for path in modules()
        for node in ast.walk(parse(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert [(name, lines) for name, lines in functions if lines > MAX_FUNCTION_LINES] == []


def test_no_forbidden_calls() -> None:
    breaches = []
    for path in modules():
        tree = parse(path)
        groups = owners_of_tasks(tree)
        breaches += [
            f"{name_of(path)}:{line}: {call}: {why}"
            for call, line in calls(tree)
            for rule, (allowed_in, why) in FORBIDDEN.items()
            if is_breach(call, rule, groups) and name_of(path) not in allowed_in
        ]
    assert breaches == []


def test_no_finalizers() -> None:
    """What a `__del__` would free has an owner that closes it."""
    assert [
        name_of(path)
        for path in modules()
        for node in ast.walk(parse(path))
        if isinstance(node, ast.FunctionDef) and node.name == "__del__"
    ] == []


def test_all_is_the_public_part() -> None:
    """``__all__`` names every public function and class of a module, and nothing that is not there."""
    for path in modules():
        tree = parse(path)
        listed = declared_names(tree)
        if listed is None:
            continue
        defined = {
            node.name
            for node in tree.body
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_")
        }
        assert set(listed) - bound_names(tree) == set(), f"{name_of(path)}: in __all__, but not there"
        assert defined - set(listed) == set(), f"{name_of(path)}: public by its name, but not in __all__"
        assert len(listed) == len(set(listed)), f"{name_of(path)}: named twice"


def test_tests_import_by_the_installed_name() -> None:
    """``import p2p`` would work from the checkout, and load a second copy of the package."""
    folders = {folder.partition("/")[0] for folder in PACKAGES}
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                assert (node.module or "").partition(".")[0] not in folders, name_of(path)
            elif isinstance(node, ast.Import):
                assert not {alias.name.partition(".")[0] for alias in node.names} & folders, name_of(path)
