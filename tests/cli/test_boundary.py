"""What a person at the terminal gets: versions, one-line errors, hints, exit codes."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import typer

from aimfuse import __version__
from aimfuse.cli.boundary import exit_on_error
from aimfuse.errors import AimfuseError, BusyError, HaltedError, Refused, Unavailable, UsageError


def aimfuse(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "aimfuse", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


def test_version_is_one_line() -> None:
    done = aimfuse("--version")
    assert (done.returncode, done.stdout) == (0, f"aimfuse {__version__}\n")


def test_an_unknown_command_is_a_usage_error() -> None:
    assert aimfuse("no-such-command").returncode == UsageError.exit_code


@pytest.mark.parametrize(
    ("failure", "exit_code"),
    [
        (UsageError("no"), 2),
        (BusyError("no"), 3),
        (HaltedError("no"), 13),
        (Unavailable("no"), 20),
        (Refused("no"), 21),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_each_expected_error_has_its_exit_code(failure: Exception, exit_code: int) -> None:
    assert exit_of(lambda: fail(failure)) == exit_code


def test_an_expected_error_is_one_line_and_its_hint(capsys: pytest.CaptureFixture[str]) -> None:
    exit_of(lambda: fail(BusyError("v.img is mounted", hint="Run `aimfuse umount v.img`.")))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "aimfuse: v.img is mounted\nRun `aimfuse umount v.img`.\n"


def test_an_error_out_of_nested_nurseries_is_shown_as_itself(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def run() -> None:
        async with trio.open_nursery() as outer, trio.open_nursery() as inner:
            outer.start_soon(trio.sleep_forever)
            inner.start_soon(fail_later, Refused("wrong host key"))

    assert exit_of(lambda: trio.run(run)) == Refused.exit_code
    assert capsys.readouterr().err == "aimfuse: wrong host key\n"


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), exit_on_error():
        raise ZeroDivisionError


def exit_of(work: Callable[[], object]) -> int:
    """Run *work* behind the boundary and return the exit code that it ended with."""
    with pytest.raises(typer.Exit) as caught, exit_on_error():
        work()
    return caught.value.exit_code


def fail(failure: Exception) -> None:
    raise failure


async def fail_later(failure: Exception) -> None:
    await trio.lowlevel.checkpoint()
    raise failure


def test_a_size_that_is_none_is_answered_with_an_example(tmp_path: Path) -> None:
    done = aimfuse("init", str(tmp_path / "v.img"), "--size", "10Gb")
    assert done.returncode == 2
    assert "10GiB" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_second_init_says_how_to_mount_also_with_a_size(tmp_path: Path) -> None:
    image = tmp_path / "v.img"
    assert aimfuse("init", str(image), "--size", "1MiB").returncode == 0
    for options in ([], ["--size", "1MiB"]):
        done = aimfuse("init", str(image), *options)
        assert done.returncode == 2
        assert "initialised already" in done.stderr
        assert f"Mount it: aimfuse mount {image} MOUNTPOINT" in done.stderr


def test_a_size_that_the_file_system_cannot_have_leaves_nothing_behind(tmp_path: Path) -> None:
    image = tmp_path / "v.img"
    done = aimfuse("init", str(image), "--size", "4000000TiB")
    assert done.returncode == 2
    assert f"{image}: File too large" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_empty_file_is_no_image(tmp_path: Path) -> None:
    image = tmp_path / "v.img"
    image.touch()
    done = aimfuse("init", str(image))
    assert done.returncode == 2
    assert f"aimfuse init {image} --size 10GiB" in done.stderr
    assert list(tmp_path.iterdir()) == [image]


def test_a_place_is_mirrored_to_once(tmp_path: Path) -> None:
    (tmp_path / "v.img").write_bytes(b"x")
    url = f"dir://{tmp_path}/store"
    assert aimfuse("init", str(tmp_path / "v.img"), "--to", url).returncode == 0
    done = aimfuse("destination", "add", str(tmp_path / "v.img"), f"{url}/", "--name", "other")
    assert done.returncode == 2
    assert "is a destination already: store" in done.stderr
    assert "other" not in aimfuse("destination", "list", str(tmp_path / "v.img")).stdout


def test_a_seed_for_a_place_that_is_taken_is_refused_before_it_is_made(tmp_path: Path) -> None:
    image, seed, url = tmp_path / "v.img", tmp_path / "seed", f"dir://{tmp_path}/store"
    image.write_bytes(b"x")
    assert aimfuse("init", str(image), "--to", url).returncode == 0
    done = aimfuse("seed", "export", str(image), str(seed), "--to", f"{url}/", "--name", "other")
    assert done.returncode == 2
    assert "is a destination already: store" in done.stderr
    assert not seed.exists()


def test_a_directory_that_is_missing_cannot_be_served(tmp_path: Path) -> None:
    done = aimfuse("serve", str(tmp_path / "none"), "--listen", "127.0.0.1:0")
    assert done.returncode == 2
    assert "a directory that this user may write to" in done.stderr


def test_an_image_that_is_there_is_not_made_anew(tmp_path: Path) -> None:
    (tmp_path / "v.img").write_bytes(b"x")
    done = aimfuse("init", str(tmp_path / "v.img"), "--size", "1MiB")
    assert done.returncode == 2
    assert "Leave --size out" in done.stderr
    assert (tmp_path / "v.img").read_bytes() == b"x"


def test_the_exit_codes_in_the_manual_are_those_of_the_errors(repo_root: Path) -> None:
    manual = (repo_root / "docs" / "operations.md").read_text()
    (listed,) = re.findall(r"## Exit codes\n\n(0 done.*?)\. Errors are", manual, re.DOTALL)
    codes = {int(one) for one in re.findall(r"(?:^|, )(\d+)\s", listed)}
    kinds = [AimfuseError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    assert codes == {0, *(one.exit_code for one in kinds if one.__module__ == "aimfuse.errors")}


def test_help_names_what_to_give() -> None:
    shown = aimfuse("init", "--help").stdout
    assert all(word in shown for word in ("IMAGE", "URL", "SIZE", "default: the", "image's size"))
    assert "Usage: python -m aimfuse init [OPTIONS] IMAGE\n" in shown
    assert not any(noise in shown for noise in ("list[", "<path>", "<bool>", "{"))
    said = aimfuse("serve", "--help").stdout
    assert all(word in said for word in ("listening", "fingerprint", "known_hosts"))
