"""The source side as the coordinator sees it: the driver's checkpoint and its control socket."""

import json
import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from aimfuse.coordinator.cursor import SyncVolume
from aimfuse.disk import Disk
from aimfuse.errors import AimfuseError, StateLost, Unavailable
from aimfuse.journal.journal import Head
from aimfuse.journal.records import VolumeEntry
from aimfuse.journal.slots import Slots
from aimfuse.journal.spool import sealed_names
from aimfuse.units import MIB, FileNumber, VolumeId

CHECKPOINT = "checkpoint"
CONTROL = "control.sock"
ANSWER_BYTES_MAX = 16 * MIB
CONNECT_S_MAX = 2.0
STATUS_S_MAX = 2.0
APPLIED_S_MAX = 600.0
CHECKPOINT_S_MAX = 30.0
"""It goes on without us; whoever needs it looks again, and says what he waits for."""


@dataclass(frozen=True, slots=True)
class SourceCheckpoint:
    """What the coordinator needs of the driver's checkpoint."""

    group: bytes
    head: Head
    volumes: tuple[SyncVolume, ...]
    next_volume: int
    clean: bool
    gap: str | None = None
    """Why history is broken right behind this position; None where it goes on."""
    is_passed_on: bool = False
    """Whether this is a store that passes on what it gets, and no driver's group."""


class NotServed(Exception):
    """Nobody answers at the control socket: the group is not mounted."""


class Source:
    """Read-only view of the group's driver, mounted or not."""

    def __init__(self, disk: Disk, state_dir: Path) -> None:
        self._disk = disk
        self._state_dir = state_dir
        self._slots = Slots(disk, state_dir / CHECKPOINT, CHECKPOINT)

    def checkpoint(self) -> SourceCheckpoint | None:
        """Return the newest checkpoint, None before the group's first.

        Raises:
            StateLost: the slots are unreadable, or hold something else.
            OSError: they could not be read.
        """
        state = self._slots.read()
        try:
            return None if state is None else _checkpoint(state)
        except (KeyError, ValueError, TypeError) as exc:
            path = self._state_dir / CHECKPOINT
            raise StateLost(path, f"the checkpoint lacks or spoils {exc}") from exc

    async def ask(self, command: str, answer_s_max: float, **request: str | int) -> dict[str, Any]:
        """Return the driver's answer to *command*, with what else belongs to the *request*.

        Raises:
            NotServed: the group is not mounted.
            Unavailable: the driver did not answer in time, or said no.
        """
        try:
            with self._short_path() as path, trio.fail_after(CONNECT_S_MAX):
                stream = await trio.open_unix_socket(path)
        except (OSError, trio.TooSlowError) as exc:
            raise NotServed from exc
        async with stream:
            try:
                with trio.fail_after(answer_s_max):
                    await stream.send_all(json.dumps({"cmd": command, **request}).encode() + b"\n")
                    answer = json.loads(await _line(stream))
            except (trio.BrokenResourceError, trio.TooSlowError, ValueError) as exc:
                raise Unavailable(f"the driver did not answer `{command}`: {exc!r}") from exc
        if not isinstance(answer, dict) or answer.get("ok") is False:
            raise Unavailable(f"the driver refused `{command}`: {answer}")
        return answer

    @contextmanager
    def _short_path(self) -> Generator[str]:
        """Give a path of the socket that fits: the kernel takes no more than 107 bytes."""
        fd = self._disk.open("control:open", self._state_dir, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield f"/proc/self/fd/{fd}/{CONTROL}"
        finally:
            self._disk.close(fd)

    async def status(self) -> dict[str, Any] | None:
        """Return the driver's status, None while it is not mounted or does not answer."""
        try:
            return await self.ask("status", STATUS_S_MAX)
        except (NotServed, AimfuseError):
            return None

    async def bring_checkpoint(self) -> bool:
        """Have the driver take a checkpoint of all there is; tell whether there is one now."""
        try:
            await self.ask("checkpoint", CHECKPOINT_S_MAX)
        except (NotServed, Unavailable):
            return False
        return True

    async def covering_number(self, newest: FileNumber) -> FileNumber:
        """Return a sealed file number that covers every record the image holds by now.

        *newest* is the newest sealed number that the caller knows of.

        Raises:
            Unavailable: nobody can say: the group is neither mounted nor cleanly unmounted,
                the driver could not, or history is broken behind the checkpoint.
        """
        try:
            answer = await self.ask("applied", APPLIED_S_MAX)
            return FileNumber(int(answer["number"]))
        except NotServed:
            checkpoint = self.checkpoint()
        except (KeyError, TypeError, ValueError) as exc:
            raise Unavailable(f"the driver's answer lacks its number: {exc}") from exc
        if checkpoint is None or not checkpoint.clean:
            raise Unavailable(
                "the image was not cleanly unmounted, so its journal has no known end",
                hint="Mount it: recovery finds the end, and the first copy goes on by itself.",
            )
        if checkpoint.gap is not None:  # It may hold what no file up to here says.
            raise Unavailable(
                f"the copy's end is not known yet: {checkpoint.gap}",
                hint="It goes on by itself once the image is mounted, or the store consistent.",
            )
        # A store that passes its files on names a file here before its mirror has any of it.
        return FileNumber(max(checkpoint.head.number, newest, self._newest_here()))

    def _newest_here(self) -> int:
        spool = self._state_dir / "spool"
        names = sealed_names(self._disk, spool) if self._disk.exists(spool) else []
        return int(names[-1].number) if names else 0


async def _line(stream: trio.SocketStream) -> bytes:
    data = bytearray()
    while not data.endswith(b"\n"):
        more = await stream.receive_some(65536)
        data += more
        if not more or len(data) > ANSWER_BYTES_MAX:
            raise ValueError("answer cut short or too long")
    return bytes(data)


def _checkpoint(state: dict[str, Any]) -> SourceCheckpoint:
    return SourceCheckpoint(
        bytes.fromhex(state["group"]),
        Head.from_json(state),
        tuple(
            SyncVolume(VolumeEntry(VolumeId(one["id"]), one["name"], one["size"]), one["inode"])
            for one in state["volumes"]
        ),
        int(state["next_volume"]),
        bool(state["clean"]),
        state.get("gap"),
        bool(state.get("passed_on")),
    )  # fmt: skip
