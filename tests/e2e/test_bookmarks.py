"""Bookmarks: unique labels, and the hook that freezes what writes to the volume."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from aimfuse.journal.records import RecordType
from aimfuse.units import MIB
from tests.e2e.host import AIMFUSE, QUICK, FarHost, Source, aimfuse, until

pytestmark = [pytest.mark.fuse, pytest.mark.usefixtures("require_fuse")]

KEEP_RECORDS = replace(QUICK, checkpoint_interval_s=3600.0, file_age_s=3600.0)

HOOK = """\
#!/bin/sh
echo "$1 $AIMFUSE_LABEL $AIMFUSE_VOLUME [$AIMFUSE_POSITION]" >> "${0%.sh}.log"
if [ "$1" = "$WRITES" ]; then printf x | dd of="$AIMFUSE_VOLUME" conv=notrunc 2>/dev/null; fi
if [ "$1" = "$FAILS" ]; then exit 7; fi
if [ "$1" = "$HANGS" ]; then sleep 1000; fi
if [ "$1" = "$KILLS" ] && mkdir "${0%.sh}.killed" 2>/dev/null; then kill -9 $PPID; sleep 600; fi
exit 0
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Source]:
    with Source(tmp_path_factory.mktemp("near") / "near", MIB) as made:
        made.init(to=[], journal=KEEP_RECORDS)
        made.mount()
        yield made


@pytest.fixture
def hook(tmp_path: Path) -> Path:
    path = tmp_path / "hook.sh"
    path.write_text(HOOK)
    path.chmod(0o755)
    return path


def runs(hook: Path) -> list[str]:
    return hook.with_name("hook.log").read_text().splitlines()


def labels(source: Source) -> list[str]:
    source.call("roll")
    return [
        bytes(file.payload(record)).decode()
        for file in source.files()
        for record in file.records()
        if record.type is RecordType.BOOKMARK
    ]


def bookmark(source: Source, label: str, *options: object, **env: str) -> int:
    with pytest.MonkeyPatch.context() as patched:
        for name, value in env.items():
            patched.setenv(name, value)
        return aimfuse("bookmark", source.image, label, *options).returncode


def test_a_label_is_given_once_by_whichever_way_and_after_a_crash(source: Source) -> None:
    path = source.mountpoint / ".aimfuse" / "bookmark"
    assert bookmark(source, "once") == 0
    second = aimfuse("bookmark", source.image, "once")
    assert second.returncode == 2
    assert "there is a bookmark 'once' already, at 1:" in second.stderr
    with pytest.raises(FileExistsError):
        path.write_text("once\n")
    source.kill()
    source.mount()
    with pytest.raises(FileExistsError):
        path.write_text("once\n")


def test_the_mark_lies_behind_what_freezing_wrote(
    source: Source, hook: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WRITES", "freeze")
    done = aimfuse("bookmark", source.image, "frozen", "--json", "--hook", hook)
    told = json.loads(done.stdout)
    volume = source.volume
    assert runs(hook) == [
        f"freeze frozen {volume} []",
        f"thaw frozen {volume} [{told['epoch']}:{told['seq']}]",
    ]
    source.call("roll")
    kinds = {record.seq: record.type for record in source.records()}
    before = [kinds[seq] for seq in sorted(kinds) if seq < told["seq"]]
    assert RecordType.WRITE in before[-3:]


def test_a_failed_freeze_sets_nothing_and_is_thawed(source: Source, hook: Path) -> None:
    assert bookmark(source, "failed", "--hook", hook, FAILS="freeze") == 4
    assert [line.split()[0] for line in runs(hook)] == ["freeze", "thaw"]
    assert "failed" not in labels(source)


def test_a_freeze_that_hangs_is_ended_and_thawed(source: Source, hook: Path) -> None:
    log = hook.with_name("hook.log")
    for timeout in ("300ms", "3s", "30s"):  # Thaw has no more time: a slow machine may need it.
        log.write_text("")
        assert bookmark(source, "hung", "--hook", hook, "--timeout", timeout, HANGS="freeze") == 4
        assert "hung" not in labels(source)
        if [line.split()[0] for line in runs(hook)] == ["freeze", "thaw"]:
            return
    pytest.fail(f"not thawed: {runs(hook)}")


def test_a_failed_thaw_leaves_the_mark_and_says_so(source: Source, hook: Path) -> None:
    assert bookmark(source, "stuck", "--hook", hook, FAILS="thaw") == 4
    assert labels(source)[-1] == "stuck"


def test_nothing_is_frozen_for_a_label_that_is_taken(source: Source, hook: Path) -> None:
    assert bookmark(source, "taken") == 0
    assert bookmark(source, "taken", "--hook", hook) == 2
    assert not hook.with_name("hook.log").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_frozen_thaws(source: Source, hook: Path, number: signal.Signals) -> None:
    command = [*AIMFUSE, "bookmark", str(source.image), "late", "--hook", str(hook)]
    env = {**os.environ, "HANGS": "freeze"}
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as child:
        log = hook.with_name("hook.log")
        until(lambda: log.exists() and "freeze" in log.read_text())
        child.send_signal(number)
        _out, said = child.communicate(timeout=60)
    assert child.returncode == 128 + number
    told = f"ended by {number.name}; no bookmark was set; the application was thawed"
    assert said == f"aimfuse: {told}\n"
    assert [line.split()[0] for line in runs(hook)] == ["freeze", "thaw"]


@pytest.mark.parametrize("phase", ["freeze", "thaw"])
def test_killed_while_frozen_its_guard_ends_what_runs_and_thaws(
    source: Source, hook: Path, phase: str
) -> None:
    label = f"killed in {phase}"
    command = [*AIMFUSE, "bookmark", str(source.image), label, "--hook", str(hook)]
    env = {**os.environ, "KILLS": phase}
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as child:
        _out, said = child.communicate(timeout=60)  # Until nobody has it open: guard and hook.
    assert child.returncode == -signal.SIGKILL
    assert said.startswith("aimfuse: `aimfuse bookmark` was killed: the application was thawed")
    expected = {"freeze": ["freeze", "thaw"], "thaw": ["freeze", "thaw", "thaw"]}[phase]
    assert [line.split()[0] for line in runs(hook)] == expected
    assert (label in labels(source)) == (phase == "thaw")
    assert runs(hook)[-1].endswith("[]") == (phase == "freeze")


def test_a_hook_that_is_no_program_is_refused_before_anything(source: Source) -> None:
    done = aimfuse("bookmark", source.image, "none", "--hook", "/nowhere/hook --now")
    assert done.returncode == 2
    assert "there is no such program" in done.stderr
    assert "none" not in labels(source)


def look(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


PATIENT = ("--timeout", "60s")
FREEZE = """\
#!/bin/sh
case $1 in
freeze) exec fsfreeze --freeze {place} ;;
thaw)   exec fsfreeze --unfreeze {place} ;;
esac
"""


@pytest.mark.usefixtures("require_root_loop")
def test_a_file_system_that_its_hook_froze_is_clean_at_the_bookmark(tmp_path: Path) -> None:
    with FarHost(tmp_path / "far") as far, Source(tmp_path / "near", 16 * MIB) as source:
        far.start()
        source.init(to=[far.url()])
        source.mount()
        source.wait_mirrored(far)  # The past begins where the first copy ends.
        device = source.attach()
        subprocess.run(["mkfs.ext4", "-q", device], check=True)
        hook = tmp_path / "freeze.sh"
        with source.file_system(device) as place:
            hook.write_text(FREEZE.format(place=place))
            hook.chmod(0o755)
            for number in range(20):
                (place / f"before-{number}").write_bytes(b"%d" % number * 3000)
            done = aimfuse("bookmark", source.image, "at rest", "--hook", hook, *PATIENT)
            assert done.returncode == 0, done.stderr
            (place / "behind").write_bytes(b"not in it")
        source.detach(device)
        assert aimfuse("flush", source.image, "--wait", "applied").returncode == 0
        output = tmp_path / "restored.img"
        assert aimfuse("restore", far.store(), "-o", output, "--at", "at rest").returncode == 0
    assert "recovering journal" not in look("e2fsck", "-fn", output)
    assert "needs_recovery" not in look("dumpe2fs", "-h", output)
    names = look("debugfs", "-R", "ls", output)
    assert "before-19" in names
    assert "behind" not in names
