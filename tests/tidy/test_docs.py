"""What the documents name is there: tests, files, headings, commands and their options."""

import re
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer

from aimfuse.cli.main import FAMILIES
from aimfuse.cli.plain import App

REPO = Path(__file__).resolve().parents[2]
TESTS = REPO / "tests"
DOCS = sorted([*REPO.glob("*.md"), *(REPO / "docs").rglob("*.md")])

CODE = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)
NAMED_TEST = re.compile(r"(?:([\w/]+\.py|…): )?((?:test_|…[a-z_])[\w…]+)")
SOURCE_FILE = re.compile(r"(?<![\w.])[\w/]+\.(?:py|c)\b")
TEST_FILE = re.compile(r"[\w/]*test_\w+\.py")
COMMAND = re.compile(r"(?<![\w/.=-])aimfuse ((?!aimfuse)[a-z][^`\n|#;]*)")


def relative(path: Path) -> str:
    return path.relative_to(REPO).as_posix()


@cache
def named_in(path: Path) -> list[str]:
    return re.findall(r"^\s*(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE)


def missing_tests(text: str) -> Iterator[str]:
    """Yield the tests and test files that *text* names and that are not there.

    A name ends with … where it is cut short, and belongs to a file of its own row or, like *the
    same file*, to the one that was named last.
    """
    last: list[Path] = []
    for row in text.splitlines():
        code = " ".join(CODE.findall(row))
        files = [TESTS / name.removeprefix("tests/") for name in TEST_FILE.findall(code)]
        yield from (relative(path) for path in files if not path.is_file())
        known = [name for path in last + files if path.is_file() for name in named_in(path)]
        for _, name in NAMED_TEST.findall(TEST_FILE.sub("", code)):
            pattern = re.escape(name).replace("…", r"\w*")
            if not any(re.fullmatch(pattern, one) for one in known):
                yield name
        last = files[-1:] or last


def missing_sources(text: str) -> Iterator[str]:
    """Yield the source files that *text* names, whole or by their end, and that are not there."""
    for name in SOURCE_FILE.findall(" ".join(CODE.findall(text))):
        if not any(path.endswith(f"/{name.removeprefix('/')}") for path in sources()):
            yield name


@cache
def sources() -> list[str]:
    folders = ("src", "tests", "demo", "bench")
    found = (path for folder in folders for path in (REPO / folder).rglob("*"))
    return [f"/{relative(path)}" for path in found if path.suffix in {".py", ".c"}]


def anchors(path: Path) -> set[str]:
    headings = HEADING.findall(re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL))
    plain = (re.sub(r"[^\w\s-]", "", heading.lower()).strip() for heading in headings)
    return {one.replace(" ", "-") for one in plain}


def broken_links(path: Path) -> Iterator[str]:
    for target in LINK.findall(CODE.sub("", path.read_text())):
        name, _, anchor = target.partition("#")
        if re.match(r"\w+:", name):
            continue
        to = (path.parent / name).resolve() if name else path
        if not to.exists() or (anchor and anchor not in anchors(to)):
            yield f"{relative(path)}: {target}"


@cache
def root() -> Any:  # noqa: ANN401 - typer's own click
    everything = App(name="aimfuse")
    for module in FAMILIES:
        import_module(f"aimfuse.cli.{module}").register(everything)
    return typer.main.get_command(everything)


def command_of(words: list[str]) -> Any:  # noqa: ANN401 - typer's own click
    """Return the command that *words* begin with, None if there is no such one."""
    command = root()
    for word in words:
        if not hasattr(command, "commands"):
            return command
        command = command.commands.get(word)
    return command


def unknown_commands(text: str) -> Iterator[str]:
    """Yield what of the command lines in *text* is no command, or no option of it."""
    for code in CODE.findall(text):
        for line in COMMAND.findall(code):
            words = re.sub(r"[\[\]]", " ", line).split()
            command = command_of([word for word in words if re.fullmatch(r"[a-z][a-z-]*", word)])
            if command is None:
                yield line
                continue
            known = {one for each in command.params for one in (*each.opts, *each.secondary_opts)}
            given = {word.partition("=")[0] for word in words if re.match(r"--[a-z]", word)}
            yield from (f"{words[0]} {one}" for one in given - known - {"--help"})


@pytest.mark.parametrize(
    ("row", "missing"),
    [
        ("| `tidy/test_docs.py: test_no_link…`, `test_each_check…` |", []),
        ("| `tidy/test_docs.py: …_leads_nowhere` |", []),
        ("| `tidy/test_docs.py: test_nothing…` |", ["test_nothing…"]),
        ("| `tidy/test_nothing.py` |", ["tests/tidy/test_nothing.py"]),
    ],
)
def test_each_check_of_tests_finds_what_it_is_for(row: str, missing: list[str]) -> None:
    assert list(missing_tests(row)) == missing


@pytest.mark.parametrize(
    ("text", "unknown"),
    [
        ("`aimfuse status IMAGE --json`", []),
        ("`aimfuse destination add IMAGE URL`", []),
        ("`aimfuse statsu IMAGE`", ["statsu IMAGE"]),
        ("`aimfuse status [--jason]`", ["status --jason"]),
    ],
)
def test_each_check_of_commands_finds_what_it_is_for(text: str, unknown: list[str]) -> None:
    assert list(unknown_commands(text)) == unknown


def test_the_check_of_source_files_finds_what_it_is_for() -> None:
    text = "`tidy/test_docs.py`, `cli/main.py: main`, `_scatter.c`, `nowhere.py`"
    assert list(missing_sources(text)) == ["nowhere.py"]


def in_all(check: Callable[[str], Iterator[str]]) -> list[str]:
    return [f"{relative(path)}: {hit}" for path in DOCS for hit in check(path.read_text())]


def test_every_test_that_is_named_exists() -> None:
    assert in_all(missing_tests) == []


def test_every_source_file_that_is_named_exists() -> None:
    assert in_all(missing_sources) == []


def test_no_link_leads_nowhere() -> None:
    assert [hit for path in DOCS for hit in broken_links(path)] == []


def test_every_command_that_is_named_exists_with_its_options() -> None:
    assert in_all(unknown_commands) == []
