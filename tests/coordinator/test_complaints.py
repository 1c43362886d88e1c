"""A coordinator whose own disk is full goes on shipping, and says so once."""

# ruff: noqa: ARG001 - a test asks for the simulated clock by naming it

import errno
import logging
import os
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from aimfuse.config import DestinationConfig
from aimfuse.coordinator.complaint import Complaint
from aimfuse.coordinator.run import run_ship
from aimfuse.disk import Disk
from tests.coordinator.fakes import Link, tools_for
from tests.coordinator.samples import SampleSource, make_dice
from tests.coordinator.shipping import shipping, until

A = DestinationConfig("a", "sftp://a/s")


class FullDisk(Disk):
    """Has no space for the steps whose labels are like one of *labels*."""

    def __init__(self, *labels: str) -> None:
        self.labels = labels

    def step(self, label: str) -> None:
        if any(fnmatchcase(label, one) for one in self.labels):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def said(caplog: pytest.LogCaptureFixture, text: str) -> list[str]:
    return [one for one in caplog.messages if text in one]


@pytest.mark.expects_warnings
async def test_status_and_cursor_that_cannot_be_written_are_named_once(
    autojump_clock: MockClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    source, link = SampleSource(tmp_path, A), Link()
    disk = FullDisk()
    async with shipping(source, tools_for(source, make_dice(1), disk=disk, a=link)):
        await until(lambda: link.store.phase == "consistent")
        disk.labels = ("status:write", "cursor:write")
        source.write(1, 1)
        await until(lambda: bytes(link.store.mirror) == source.contents())
        await trio.sleep(60)
        assert len(said(caplog, "a: its state cannot be written: [Errno 28]")) == 1
        assert source.cursor("a")["number"] == 0
        disk.labels = ()
        await until(lambda: source.cursor("a")["number"] == 1)
    assert len(said(caplog, "a: its state cannot be written: over")) == 1


async def test_a_full_disk_does_not_keep_a_coordinator_from_starting(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    source, link = SampleSource(tmp_path, A), Link()
    tools = tools_for(source, make_dice(1), disk=FullDisk("ship:lock_*"), a=link)
    await run_ship(source.state_dir, until_empty=True, tools=tools)
    assert link.store.group is not None


@pytest.mark.expects_warnings
def test_a_complaint_is_repeated_only_when_it_changes(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    complaint = Complaint(logging.getLogger("aimfuse.test"), "tea")
    for problem in (None, OSError("cold"), OSError("cold"), OSError("gone"), None, None):
        complaint.note(problem)
    assert caplog.messages == ["tea: cold", "tea: gone", "tea: over"]
