"""Hosts on one machine, each with a network of its own, and links between them that fail.

A host is a network namespace that lives as long as a process is in it; a link is a pair of veth
devices. Needs root. None of it has a name outside: tests do not meet, and nothing stays behind.
"""

import random
import subprocess
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from aimfuse.units import KIB

RATES_BYTES_S = (16 * KIB, 64 * KIB, 256 * KIB)
"""What is left of a slow link."""


class Host:
    """A network namespace; a context manager. `launcher` are the words that run a command in it."""

    def __init__(self, name: str) -> None:
        """Make it, with nothing but a loopback device."""
        self.name = name
        # It ends with its input, so that the namespace goes even if the test is killed.
        self._anchor = subprocess.Popen(
            ["unshare", "--net", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        assert self._anchor.stdin is not None
        assert self._anchor.stdout is not None
        self._anchor.stdin.write(b"\n")
        assert self._anchor.stdout.readline() == b"\n", "it is in its namespace once it answers"
        self.pid = self._anchor.pid
        self.launcher = ("nsenter", "--target", str(self.pid), "--net", "--")
        self.run("ip", "link", "set", "lo", "up")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _value: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        with self._anchor:  # Closes its pipes and waits for its end.
            pass

    def run(self, *command: str) -> None:
        """Run a command of the system in it."""
        done = subprocess.run(
            [*self.launcher, *command], check=False, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, (command, done.stderr)


class Link:
    """A line between two hosts, up and fast at first. Goes with either of them."""

    def __init__(self, number: int, near: Host, far: Host) -> None:
        """Connect them, in a network of their own that *number* distinguishes."""
        self.ends = (near, far)
        self.is_up = True
        self.is_slow = False
        self._down = near
        self._addresses = {near.name: f"10.77.{number}.1", far.name: f"10.77.{number}.2"}
        near.run(
            "ip", "link", "add", self._device(near), "type", "veth",
            "peer", "name", self._device(far), "netns", str(far.pid),
        )  # fmt: skip
        for end in self.ends:
            device = self._device(end)
            end.run("ip", "address", "add", f"{self.address(end)}/30", "dev", device)
            end.run("ip", "link", "set", device, "up")

    def address(self, end: Host) -> str:
        """Return the address of one of its hosts on it."""
        return self._addresses[end.name]

    def cut(self, end: Host) -> None:
        """Let nothing through any more; *end* is the side that knows at once."""
        self.join()
        self._down, self.is_up = end, False
        end.run("ip", "link", "set", self._device(end), "down")

    def join(self) -> None:
        """Undo a cut."""
        if not self.is_up:
            self._down.run("ip", "link", "set", self._device(self._down), "up")
        self.is_up = True

    def slow_down(self, rate_bytes_s: int) -> None:
        """Let no more than this through in each direction."""
        shape = f"rate {rate_bytes_s}bps burst 8kb latency 200ms".split()
        for end in self.ends:
            device = self._device(end)
            end.run("tc", "qdisc", "replace", "dev", device, "root", "tbf", *shape)
        self.is_slow = True

    def speed_up(self) -> None:
        """Undo `slow_down`."""
        if self.is_slow:
            for end in self.ends:
                end.run("tc", "qdisc", "del", "dev", self._device(end), "root")
        self.is_slow = False

    def _device(self, end: Host) -> str:
        other = self.ends[end is self.ends[0]]
        return f"to-{other.name}"


class Weather:
    """What befalls links, one at a time, by dice."""

    def __init__(self, links: Sequence[Link], dice: random.Random) -> None:
        self.links = links
        self.cuts = 0
        self.slowdowns = 0
        self._dice = dice

    def change(self) -> None:
        """Cut a link, for long or for a moment, slow it down, or make it good again."""
        dice = self._dice
        link, end = dice.choice(self.links), dice.randrange(2)
        what = dice.choice(("cut", "cut", "cut for a moment", "slow", "slow", "good"))
        if what == "slow":
            link.slow_down(dice.choice(RATES_BYTES_S))
            self.slowdowns += 1
        elif what != "good":
            link.cut(link.ends[end])
            self.cuts += 1
        if what not in {"cut", "slow"}:
            link.join()
        if what == "good":
            link.speed_up()

    def clear_up(self) -> None:
        """Make every link good."""
        for link in self.links:
            link.join()
            link.speed_up()
