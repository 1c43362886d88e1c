"""One mount from its first to its last moment: pyfuse3's session around an open group."""

import contextlib
import logging
import math
import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from aimfuse import fallocate
from aimfuse.driver import control
from aimfuse.driver.control_files import ControlFiles, check_label
from aimfuse.driver.engine import Engine
from aimfuse.driver.group import close_group
from aimfuse.driver.pump import Pump
from aimfuse.driver.status import SourceStatus
from aimfuse.errors import BusyError, HaltedError, UsageError, explain
from aimfuse.mountpoint import FSTYPE, source_name
from aimfuse.units import Seq

fallocate.load()  # Before pyfuse3 is imported: it wins libfuse's symbol for the session.

import pyfuse3  # noqa: E402

from aimfuse.disk import Disk  # noqa: E402
from aimfuse.driver.operations import Operations  # noqa: E402

log = logging.getLogger(__name__)

LINGER_S = 5.0
"""How long a clean end waits for the destinations to confirm the last file."""

FULL_S_MAX = 2.0
SETTLE_S_MAX = 60.0
"""How long an end waits for what was written to be durable: on a full disk, and on a slow one."""

Companion = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class MountOptions:
    """How to mount. `writeback` lets the kernel hold and reorder writes before we see them."""

    mountpoint: Path
    allow_other: bool = False
    writeback: bool = False


class Mount:
    """Serves an engine at a mountpoint until it is unmounted."""

    def __init__(
        self,
        disk: Disk,
        engine: Engine,
        pump: Pump,
        status: SourceStatus,
        options: MountOptions,
        reload: Callable[[], dict[str, Any]],
        more: Mapping[str, control.Handler],
    ) -> None:
        """Prepare; nothing is mounted before `run`. *reload* takes changed settings over.

        *more* are control requests that somebody else answers.
        """
        self._reload = reload
        self._more = more
        self._disk = disk
        self._engine = engine
        self._pump = pump
        self._status = status
        self._options = options
        self._closed = False

    async def run(
        self, state_dir: Path, companions: list[Companion], mounted: Callable[[], None]
    ) -> None:
        """Mount, call *mounted*, serve until unmounted, then close the group cleanly.

        Raises:
            UsageError: the kernel or fusermount3 refuses the mount; the group is closed.
            HaltedError: the volume had been halted; the next mount recovers.
        """
        operations = Operations(
            self._engine,
            self._pump,
            ControlFiles(self._status, self._bookmark),
            writeback=self._options.writeback,
        )
        try:
            listener = control.listen(state_dir)
            pyfuse3.init(operations, str(self._options.mountpoint), self._fuse_options())
        except (OSError, RuntimeError) as exc:
            await self._close()
            raise UsageError(
                f"{self._options.mountpoint} cannot be mounted: {explain(exc)}",
                hint="fusermount3 may have said more above; for --allow-other /etc/fuse.conf "
                "needs the line user_allow_other.",
            ) from exc
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(control.serve, listener, self._handlers())
                nursery.start_soon(self._stop_on_signal)
                for companion in companions:
                    nursery.start_soon(companion)
                async with trio.open_nursery() as pumping:
                    pumping.start_soon(self._pump.run)
                    async with trio.open_nursery() as requests:
                        fallocate.install(operations.fallocate, requests.start_soon)
                        mounted()
                        await pyfuse3.main()
                        fallocate.uninstall()
                    # Whoever unmounted without asking us has not waited for that.
                    with contextlib.suppress(HaltedError), trio.move_on_after(SETTLE_S_MAX):
                        await self._pump.durable(self._engine.journal.last_seq)
                    self._pump.end()
                    pumping.cancel_scope.cancel()
                await self._close()
                await self._pump.all_confirmed(LINGER_S)
                nursery.cancel_scope.cancel()
        finally:
            pyfuse3.close(unmount=True)
            with trio.CancelScope(shield=True):
                await self._close()
        if self._engine.halted is not None:
            raise HaltedError(self._engine.halted)

    async def _close(self) -> None:
        """Close the group, once, whichever way the mount ends."""
        if self._closed:
            return
        self._closed = True
        try:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(close_group, self._disk, self._engine)
        except OSError as exc:
            self._engine.halt(f"{exc.strerror or exc} (closing)")

    async def unmount(self) -> None:
        """Ask the kernel to unmount; `run` returns when it has.

        Raises:
            BusyError: something still uses the mount, or what was written cannot be made durable
                now and would be lost. Nothing was changed.
        """
        await self._settle()
        command = ["fusermount3", "-u", "--", str(self._options.mountpoint)]
        try:
            done = await trio.run_process(command, check=False, capture_stderr=True, stdin=b"")
        except OSError as exc:
            raise BusyError(
                f"{command[0]}: {exc.strerror}", hint="Unmount it with umount as root."
            ) from exc
        if done.returncode:
            raise BusyError(
                done.stderr.decode(errors="replace").strip(),
                hint="Unmount what lies on the volume and detach its loop devices, then again.",
            )

    async def _settle(self) -> None:
        """Wait until what was written is durable; a halted volume has lost what it has not."""
        for wait_s in (FULL_S_MAX, SETTLE_S_MAX):
            with contextlib.suppress(HaltedError), trio.move_on_after(wait_s) as scope:
                await self._pump.durable(self._engine.journal.last_seq)
            if not scope.cancelled_caught:
                return
            self._pump.commit_soon()
            if self._pump.admission.full is not None:
                break
        raise BusyError(
            "what was written last is not durable yet, and an end now would lose it: "
            f"{self._pump.admission.full or 'the disk of the spool is slow'}",
            hint="Free space on the disk of the spool, or wait for it, then again.",
        )

    def _fuse_options(self) -> set[str]:
        options = set(pyfuse3.default_options)
        options |= {f"fsname={source_name(self._engine.images.root)}", f"subtype={FSTYPE}"}
        if self._options.allow_other:
            options.add("allow_other")
        return options

    def _handlers(self) -> dict[str, control.Handler]:
        async def status(_request: control.Request) -> dict[str, Any]:
            return self._status()

        async def roll(_request: control.Request) -> dict[str, Any]:
            number = await self._pump.rolled()
            return {"ok": True, "number": number, "epoch": self._engine.journal.head.epoch}

        async def applied(_request: control.Request) -> dict[str, Any]:
            number = await self._pump.rolled(applied=True)
            return {"ok": True, "number": number, "epoch": self._engine.journal.head.epoch}

        async def checkpoint(_request: control.Request) -> dict[str, Any]:
            return {"ok": True, "number": await self._pump.checkpointed()}

        async def bookmark(request: control.Request) -> dict[str, Any]:
            label = check_label(str(request.said.get("label", "")))
            if request.said.get("check"):
                self._engine.labels.check(label)
                return {"ok": True}
            wait_s = min(float(request.said.get("timeout_s", math.inf)), control.REQUEST_S_MAX)
            seq = await self._bookmark(label, wait_s, request.has_gone)
            return {"ok": True, "epoch": self._engine.journal.epoch, "seq": seq}

        async def reload(_request: control.Request) -> dict[str, Any]:
            return {"ok": True, **self._reload()}

        async def stop(_request: control.Request) -> dict[str, Any]:
            await self.unmount()
            return {"ok": True}

        return {
            "status": status, "roll": roll, "applied": applied, "checkpoint": checkpoint,
            "bookmark": bookmark, "reload": reload, "stop": stop, **self._more,
        }  # fmt: skip

    async def _bookmark(
        self, label: str, room_s_max: float = math.inf,
        has_gone: Callable[[], bool] = lambda: False,
    ) -> int:  # fmt: skip
        """Set a bookmark, if there is room for it in time, and return its number when durable.

        Not for somebody who *has_gone* meanwhile: what was frozen for it may be thawed by now.

        Raises:
            LabelTaken: there is one of that name.
            BusyError: there was no room, or nobody waits any more. Nothing was set, nor will be.
        """
        engine = self._engine

        def mark() -> Seq:
            if has_gone():
                raise BusyError(f"whoever asked for the bookmark {label!r} has hung up")
            return engine.bookmark(label)

        engine.labels.check(label)  # Nobody waits for room to hear that.
        try:
            with trio.fail_after(room_s_max):
                seq = await self._pump.admission.accept(len(label.encode()), mark)
        except trio.TooSlowError as exc:
            why = self._pump.admission.full or "the disk is slow"
            hint = "See `aimfuse status`, then again."
            raise BusyError(f"there was no room for a bookmark in time: {why}", hint=hint) from exc
        await self._pump.durable(seq)
        await trio.to_thread.run_sync(engine.labels.save, engine.journal.epoch, seq)
        return seq

    async def _stop_on_signal(self) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for number in signals:
                try:
                    await self.unmount()
                except BusyError as exc:
                    log.warning("%s: %s. %s", signal.Signals(number).name, exc, exc.hint)
