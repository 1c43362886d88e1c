"""Only disk.py changes what survives a crash; each exception is named here with its reason."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "aimfuse"

# File, call, and why it need not go through disk.py.
ALLOWED = {
    ("cli/background.py", "Path.open"): "the log of a background mount: for people",
    ("cli/background.py", "os.write"): "a pipe to the waiting parent process",
    ("driver/control.py", "Path.unlink"): "the socket of a process that is gone",
    ("manager/guard.py", "os.write"): "a pipe from the process that it guards, and standard error",
}

OS_CALLS = {
    "fallocate", "fdatasync", "fsync", "ftruncate", "link", "makedirs", "mkdir", "posix_fallocate",
    "pwrite", "pwritev", "remove", "removedirs", "rename", "renames", "replace", "rmdir",
    "sendfile", "copy_file_range", "symlink", "sync", "truncate", "unlink", "write", "writev",
}  # fmt: skip
SHUTIL_CALLS = {"copy", "copy2", "copyfile", "copyfileobj", "copytree", "move", "rmtree"}
PATH_CALLS_ANY = {"hardlink_to", "symlink_to", "touch", "write_bytes", "write_text"}
# Path methods whose names others bear too: how many positional arguments they take on a Path.
PATH_CALLS_WITH = {"rename": 1, "replace": 1, "mkdir": 0, "rmdir": 0, "unlink": 0}
WRITING = set("wax+")


def durable_calls(source: str) -> list[tuple[int, str]]:
    """Return line and name of each call in *source* that may change what is on disk."""
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return [(call.lineno, name) for call in calls if (name := durable_name(call))]


def durable_name(call: ast.Call) -> str | None:
    name = None
    match call.func:
        case ast.Attribute(ast.Name("os"), attribute) if attribute in OS_CALLS:
            name = f"os.{attribute}"
        case ast.Attribute(ast.Name("shutil"), attribute) if attribute in SHUTIL_CALLS:
            name = f"shutil.{attribute}"
        case ast.Attribute(_, attribute) if attribute in PATH_CALLS_ANY:
            name = f"Path.{attribute}"
        case ast.Attribute(_, attribute) if PATH_CALLS_WITH.get(attribute) == len(call.args):
            name = f"Path.{attribute}"
        case ast.Name("open") if opens_for_writing(call, mode_at=1):
            name = "open"
        case ast.Attribute(_, "open") if opens_for_writing(call, mode_at=0):
            name = "Path.open"
        case _:
            pass
    return name


def opens_for_writing(call: ast.Call, mode_at: int) -> bool:
    modes = [
        *call.args[mode_at : mode_at + 1],
        *(k.value for k in call.keywords if k.arg == "mode"),
    ]
    return any(
        isinstance(mode, ast.Constant)
        and isinstance(mode.value, str)
        and len(mode.value) <= len("r+b")
        and not WRITING.isdisjoint(mode.value)
        for mode in modes
    )


def calls_of_package() -> list[tuple[str, int, str]]:
    return [
        (path.relative_to(PACKAGE).as_posix(), line, call)
        for path in sorted(PACKAGE.rglob("*.py"))
        if path != PACKAGE / "disk.py"
        for line, call in durable_calls(path.read_text())
    ]


def test_the_search_finds_what_it_is_for() -> None:
    source = """
os.fsync(fd)
path.replace(other)
open(name, "wb")
path.open("r+b")
path.unlink(missing_ok=True)
text.replace("a", "b")
disk.unlink("label", path)
disk.open("spool:open", path, 0)
open(name)
"""
    found = [name for _, name in durable_calls(source)]
    assert found == ["os.fsync", "Path.replace", "open", "Path.open", "Path.unlink"]


def test_only_disk_py_changes_what_survives_a_crash() -> None:
    found = [
        f"{name}:{line}: {call}"
        for name, line, call in calls_of_package()
        if (name, call) not in ALLOWED
    ]
    assert found == []


def test_no_exception_outlives_its_use() -> None:
    assert set(ALLOWED) <= {(name, call) for name, _, call in calls_of_package()}
