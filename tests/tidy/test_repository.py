"""What must not be in any file of the repository."""

import re
import subprocess
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
FILE_BYTES_MAX = 1 << 20

# Written so that they do not find themselves.
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:home|root|work|Users|builds)/\w")
REGISTRY = re.compile(
    r"(?:pypi|pythonhosted|npmjs|crates|rubygems)\.(?:org|com|io)|index[-]url[ =]|find[-]links[ =]"
)
UNPINNED_HOST_KEY = re.compile(r"known_hosts\s*=\s*None|StrictHostKeyChecking[ =](?:no|off)\b")


def tracked() -> list[Path]:
    """Return the files that belong to the repository, also where it came without git."""
    listing = subprocess.run(
        ["git", "-C", str(REPO), "ls-files", "-z"], check=False, capture_output=True, text=True
    )
    if listing.returncode != 0:
        return sorted(path for path in REPO.rglob("*") if path.is_file())
    names = (REPO / name for name in listing.stdout.split("\0") if name)
    return sorted(path for path in names if path.is_file())


def lines_with(pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{path.relative_to(REPO)}:{number}: {line.strip()[:120]}"
        for path in tracked()
        for number, line in enumerate(text_of(path).splitlines(), 1)
        if pattern.search(line)
    ]


def text_of(path: Path) -> str:
    return path.read_bytes().decode("utf-8", errors="replace")


@pytest.mark.parametrize(
    ("pattern", "sample"),
    [
        (MACHINE_PATH, "cd /" + "home/somebody/project"),
        (REGISTRY, "https://" + "pypi" + ".org/simple"),
        (UNPINNED_HOST_KEY, "connect(known_hosts" + "=None)"),
    ],
    ids=["machine path", "registry", "host key"],
)
def test_each_search_finds_what_it_is_for(pattern: re.Pattern[str], sample: str) -> None:
    assert pattern.search(sample)


def test_no_file_names_a_path_of_one_machine() -> None:
    assert lines_with(MACHINE_PATH) == []


def test_no_file_names_a_package_registry() -> None:
    assert lines_with(REGISTRY) == []


def test_host_keys_are_pinned_always() -> None:
    # A test may hand us such a setting, to see that it is not obeyed.
    hits = [hit for hit in lines_with(UNPINNED_HOST_KEY) if not hit.startswith("tests/contract/")]
    assert hits == []


def test_no_file_is_a_surprise_in_the_clone() -> None:
    large = [
        str(path.relative_to(REPO)) for path in tracked() if path.stat().st_size > FILE_BYTES_MAX
    ]
    assert large == []
