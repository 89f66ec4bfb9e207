"""The arrows between the rooms, read from the imports, and the sizes of modules and functions."""

import ast
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
PACKAGE = REPO / "dpo_tutorial"
MODULES = {".".join(path.relative_to(REPO).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))}
# What each room may import of the others. The rooms of evaluation's exception are named module by module.
ARROWS = {
    "theory": set(),
    "data": {"theory"},
    "display": {"theory", "data"},
    "training": {"theory", "data", "display"},
    "evaluation": {"theory", "data", "display", "training.models", "training.encode", "training.logps"},
    "__main__": {"theory", "data", "display", "training", "evaluation"},
    "__init__": set(),
}
LINES, FUNCTION_LINES = 330, 40  # "about 300" lines that are not blank; docstrings of functions not counted


def imports(path, name, text=None):
    """Full names of everything a module imports, at its top or inside a function."""
    found = set()
    package = name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text() if text is None else text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*base, *filter(None, [node.module])])
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


def within_package(path, name, text=None):
    """The modules of this package that a module imports."""
    return {target for target in imports(path, name, text) if target in MODULES and target != name}


def wrong_arrows(name, targets):
    room = name.split(".")[1]
    allowed = ARROWS[room]
    wrong = set()
    for target in targets:
        parts = target.split(".")[1:]
        if parts and parts[0] != room and parts[0] not in allowed and ".".join(parts[:2]) not in allowed:
            wrong.add(target)
    return wrong


def uses_trl(names):
    return any(name == "trl" or name.startswith("trl.") for name in names)


def cycle(graph):
    """A list of names that import each other in a ring, or an empty list."""
    done, trail = set(), []

    def visit(name):
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name in done:
            return []
        trail.append(name)
        ring = next(filter(None, map(visit, sorted(graph.get(name, ())))), [])
        trail.pop()
        done.add(name)
        return ring

    return next(filter(None, map(visit, sorted(graph))), [])


@pytest.mark.parametrize("name", MODULES)
def test_imports_follow_the_arrows(name):
    targets = within_package(MODULES[name], name)
    assert wrong_arrows(name, targets) == set() if name != "dpo_tutorial.__init__" else targets == set()


@pytest.mark.parametrize("name", MODULES)
def test_only_the_trl_modules_import_trl(name):
    if not name.startswith("dpo_tutorial.training.trl_"):
        assert not uses_trl(imports(MODULES[name], name))


def test_no_module_imports_itself_by_a_detour():
    assert cycle({name: within_package(path, name) for name, path in MODULES.items()}) == []


@pytest.mark.parametrize("name", [name for name in MODULES if name.endswith("__init__")])
def test_init_files_hold_no_logic(name):
    body = ast.parse(MODULES[name].read_text()).body
    allowed = [node for node in body if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)]
    allowed += [node for node in body if ast.unparse(node).startswith("__version__ = ")]
    assert len(body) == len(allowed) and ast.get_docstring(ast.Module(body, [])), "a docstring, and a version, only"


@pytest.mark.parametrize("name", MODULES)
def test_modules_and_functions_stay_short(name):
    text = MODULES[name].read_text()
    assert sum(bool(line.strip()) for line in text.splitlines()) <= LINES
    long = [
        f"{node.name}: {length} lines"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and (length := code_lines(node)) > FUNCTION_LINES
    ]
    assert long == []


def code_lines(function):
    """Lines of a function without its docstring."""
    first = function.body[0]
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    docstring = first.end_lineno - first.lineno + 1 if documented else 0
    return function.end_lineno - function.lineno + 1 - docstring


@pytest.mark.parametrize(
    ("name", "text", "wrong"),
    [
        ("dpo_tutorial.data.pairs", "from dpo_tutorial.training import models", True),
        ("dpo_tutorial.data.pairs", "def f():\n    import dpo_tutorial.training.models as m", True),
        ("dpo_tutorial.data.pairs", "from ..training import models", True),
        ("dpo_tutorial.display.report", "from dpo_tutorial.training.models import load", True),
        ("dpo_tutorial.evaluation.stats", "from dpo_tutorial.training import models", False),
        ("dpo_tutorial.evaluation.stats", "from dpo_tutorial.training import sampling", True),
        ("dpo_tutorial.training.models", "from ..data import scoring", False),
    ],
)
def test_a_turned_arrow_is_seen(name, text, wrong):
    targets = within_package(PACKAGE, name, text)
    assert targets and bool(wrong_arrows(name, targets)) is wrong


def test_a_ring_and_a_hidden_trl_are_seen():
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert cycle({"a": {"b", "c"}, "b": {"c"}}) == []
    assert uses_trl(imports(PACKAGE, "dpo_tutorial.data.pairs", "def f():\n    from trl.data_utils import x"))
    assert not uses_trl(imports(PACKAGE, "dpo_tutorial.data.pairs", "from dpo_tutorial.training import trl_bridge"))
