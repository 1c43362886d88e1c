"""A store that holds back on purpose: no alarm, and the source's spool goes on being freed."""

# ruff: noqa: ARG001 - a test asks for the simulated clock by naming it

from pathlib import Path

import trio
from trio.testing import MockClock

from tests.coordinator.fakes import Link, tools_for
from tests.coordinator.samples import SampleSource, make_dice
from tests.coordinator.shipping import A, shipping, status, until

HELD = {"held": {"files": 1, "bytes": 1, "next_ns": 1}, "delay_s": 3600.0, "paused": None}
CLOSED = {"held": None, "delay_s": 0.0, "paused": {"receive": {"since_ns": 1, "reason": ""}}}


async def test_what_waits_for_a_delay_leaves_the_spool_when_it_is_received(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    source, link = SampleSource(tmp_path, A), Link()
    async with shipping(source, tools_for(source, make_dice(31), a=link)):
        await until(lambda: status(source).get("state") == "idle")
        link.store.applies, link.store.says = False, dict(HELD)
        for _ in range(3):
            source.write(1, 1)
        await until(lambda: status(source)["received_not_applied"]["files"] == 3)
        await until(lambda: status(source)["pinned"]["files"] == 0)
        await trio.sleep(600)
        told = status(source)
        assert (told["state"], told["stuck"]) == ("delayed", False)
        assert told["forecast"]["full_in_s"] is told["forecast"]["drained_in_s"] is None
        assert told["ack"]["delay_s"] == 3600
        assert told["received"]["number"] == 3
        link.store.applies, link.store.says = True, {}
        await until(lambda: status(source)["state"] == "idle")


async def test_what_its_operator_has_paused_is_told_from_a_delay(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    source, link = SampleSource(tmp_path, A), Link()
    async with shipping(source, tools_for(source, make_dice(33), a=link)):
        await until(lambda: status(source).get("state") == "idle")
        paused = {"apply": {"since_ns": 1, "reason": ""}}
        link.store.applies, link.store.says = False, {**HELD, "paused": paused}
        source.write(1, 1)
        await until(lambda: status(source)["state"] == "held")
        link.store.says = dict(HELD)
        await until(lambda: status(source)["state"] == "delayed")
        link.store.says = {}
        await until(lambda: status(source)["state"] == "shipping")


async def test_a_store_that_takes_nothing_is_not_sent_the_same_again_and_is_no_alarm(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    source, link = SampleSource(tmp_path, A), Link()
    async with shipping(source, tools_for(source, make_dice(32), a=link)):
        await until(lambda: status(source).get("state") == "idle")
        link.store.has_replayer = False
        assert link.store.last_ack is not None
        link.store.last_ack |= CLOSED
        name = source.write(1, 1).sealed
        await until(lambda: name in link.store.inbox)
        await trio.sleep(600)
        assert link.store.deliveries.count(name) == 1
        assert (status(source)["state"], status(source)["stuck"]) == ("held", False)
        link.store.has_replayer = True
        await until(lambda: status(source)["applied"]["number"] == 1)
