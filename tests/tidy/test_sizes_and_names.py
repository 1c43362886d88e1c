"""Sizes, names and docstrings of our own sources."""

import ast
from pathlib import Path

FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 500
VAGUE_NAMES = {"helper", "helpers", "util", "utils", "common", "misc"}

REPO = Path(__file__).resolve().parents[2]
PACKAGE = REPO / "src" / "aimfuse"
SOURCES = sorted(
    path
    for folder in ("src/aimfuse", "tests", "demo", "bench")
    for suffix in ("*.py", "*.c")
    for path in (REPO / folder).rglob(suffix)
)


def relative(path: Path) -> str:
    return path.relative_to(REPO).as_posix()


def python_sources() -> list[tuple[str, ast.Module]]:
    return [(relative(p), ast.parse(p.read_text())) for p in SOURCES if p.suffix == ".py"]


def test_no_file_is_too_long_to_be_read_at_once() -> None:
    lengths = {relative(path): len(path.read_text().splitlines()) for path in SOURCES}
    assert {name: lines for name, lines in lengths.items() if lines > FILE_LINES_MAX} == {}


def test_no_function_is_longer_than_a_screen() -> None:
    long = [
        f"{name}: {node.name}: {lines} lines"
        for name, module in python_sources()
        for node in ast.walk(module)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > FUNCTION_LINES_MAX
    ]
    assert long == []


def test_every_module_states_its_job() -> None:
    assert [name for name, module in python_sources() if not ast.get_docstring(module)] == []


def test_no_module_has_a_name_that_says_nothing() -> None:
    names = {relative(path): set(Path(relative(path)).with_suffix("").parts) for path in SOURCES}
    assert {name for name, parts in names.items() if parts & VAGUE_NAMES} == set()


def test_no_test_takes_anything_from_another_test() -> None:
    taken = [
        f"{name}: {node.module}"
        for name, module in python_sources()
        for node in ast.walk(module)
        if isinstance(node, ast.ImportFrom) and node.module
        if node.module.startswith("tests.") and node.module.rpartition(".")[2].startswith("test_")
    ]
    assert taken == [], "what two tests need has a module of its own"


def test_the_package_says_that_it_is_typed() -> None:
    assert (PACKAGE / "py.typed").exists()
