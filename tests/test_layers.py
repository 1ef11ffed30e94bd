"""The house's walls: who may import whom, where Ray may be imported, and what rooms may be called."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "cedm_ray"
LAYERS = {
    "errors": 0,
    "allocator": 0,
    "products": 0,
    "compiler": 0,
    "durable": 0,
    "lock": 0,
    "config": 0,
    "data": 1,
    "features": 2,
    "clustering": 2,
    "diffusion": 2,
    "metrics": 2,
    "search": 3,
    "evaluation": 4,
    "watching": 4,
    "distributed": 5,
    "report": 5,
    "terminal": 6,
    "verbs": 6,
    "cli": 6,
}
REFUSED_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "base", "manager", "managers", "types"}
MODULES = sorted(PACKAGE.rglob("*.py"))
parsed = cache(lambda path: ast.parse(path.read_text()))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {module_name(module) for module in MODULES}


@cache
def imported_modules(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it; `from a import b` counts as a.b where that is a module."""
    found: set[str] = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            for alias in node.names:
                deeper = f"{node.module}.{alias.name}"
                found.add(deeper if deeper in NAMES else node.module)
    return found


def room(module: str) -> str:
    return module.split(".")[1]


GRAPH = {
    module_name(path): {name for name in imported_modules(path) if name.startswith("cedm_ray.")}
    for path in MODULES
    if path not in (PACKAGE / "__init__.py", PACKAGE / "__main__.py")
}


@pytest.mark.parametrize("module", sorted(GRAPH))
def test_imports_point_down_or_stay_in_the_room(module):
    own = room(module)
    for imported in GRAPH[module]:
        other = room(imported)
        if other == own:
            continue
        assert LAYERS[own] >= LAYERS[other], f"{module} imports {imported}, which lies above it"
        if LAYERS[own] == LAYERS[other]:
            # The only siblings that meet: the ground floor, and the door with its window.
            assert LAYERS[own] in (0, 6), f"{module} imports its sibling {imported}"


def test_no_import_cycle_even_counting_lazy_imports():
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, f"import cycle: {' -> '.join((*way, module))}"
        if module in done or module not in GRAPH:
            return
        for imported in GRAPH[module]:
            visit(imported, (*way, module))
        done.add(module)

    for module in GRAPH:
        visit(module, ())


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_ray_is_imported_in_one_folder_only(path):
    names = {name.split(".")[0] for name in imported_modules(path)}
    assert "ray" not in names or path.parent.name == "distributed"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_tensorboard_is_imported_in_one_folder_only(path):
    names = {name.split(".")[0] for name in imported_modules(path)}
    assert "tensorboard" not in names or path.parent.name == "watching"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_rooms_are_small_and_named_after_what_they_hold(path):
    assert len(path.read_text().splitlines()) <= 400, "a file past 400 lines is two rooms"
    assert not REFUSED_NAMES & set(module_name(path).split("."))


def test_every_room_has_its_tests():
    """tests/ mirrors cedm_ray/ file for file."""
    for path in MODULES:
        if path.name in ("__init__.py", "__main__.py"):
            continue
        folder = ROOT / "tests" / path.parent.relative_to(PACKAGE)
        assert (folder / f"test_{path.name}").exists(), f"{path.relative_to(ROOT)} has no test file"


def test_every_module_says_what_it_is_for():
    for path in MODULES:
        if path.read_text().strip():
            assert ast.get_docstring(parsed(path)), f"{path} has no docstring"
