"""Real power cuts: journal, image and store on file systems of their own, cut under load.

Models a machine whose page cache and unflushed metadata are gone; the block device below
keeps what the file system sent to it. Drives that lie about flushes are not modelled.
"""

import contextlib
import random

import pytest

from tests.dice import LONG
from tests.e2e.crash.machine import Far, Machine, Source, eventually, kill
from tests.e2e.crash.power import Disk
from tests.e2e.crash.writes import BLOCK, History, Load

pytestmark = [pytest.mark.fuse, pytest.mark.slow, pytest.mark.timeout(1800)]

BLOCKS = 256
EACH_AND_ALL = [("journal",), ("image",), ("store",), ("journal", "image", "store")]


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_a_power_cut_loses_nothing_that_was_synced_and_leaves_the_mirror_behind(
    machine: Machine, require_root_loop: None, seed: int, kind: str
) -> None:
    del require_root_loop
    dice = random.Random(seed)
    cuts = list(EACH_AND_ALL) * (6 if LONG else 1)
    if kind != "ext4" and not LONG:
        cuts = [dice.choice(cuts)]
    dice.shuffle(cuts)
    with contextlib.ExitStack() as stack:
        disks = {
            name: stack.enter_context(Disk(machine.root, name, kind))
            for name in ("journal", "image", "store")
        }
        stack.callback(machine.clean_up)
        source = Source(machine, disks["image"].path, disks["journal"].path / "state")
        far = Far(machine, disks["store"].path)
        history = History(BLOCKS, seed)
        source.initialise(BLOCKS * BLOCK, far.url)
        for disk in disks.values():
            disk.sync()  # What the operator has made is there; from here on it is our matter.
        far.start()
        source.must_mount()
        with Load(source.volume, history) as load:
            load.wait_for_trouble(0.2)
        source.flush()  # The first copy is complete: from now on there is a mirror to check.
        source.unmount()
        for names in cuts:
            print("cutting", names)
            live_until_cut(source, far, history, [disks[name] for name in names], dice)
        source.must_mount()
        history.recovered(source.volume.read_bytes())
        far.start()
        source.flush()
        source.unmount()
        assert far.mirror.read_bytes() == source.image.read_bytes()
        far.kill()


def live_until_cut(
    source: Source, far: Far, history: History, disks: list[Disk], dice: random.Random
) -> None:
    """Recover, check, write, cut; what is left afterwards is mounted, and nothing runs."""
    source.must_mount()
    image = source.volume.read_bytes()
    assert source.image.read_bytes() == image
    history.recovered(image)
    if far.replayer is None or far.replayer.poll() is not None:
        far.start()
    with Load(source.volume, history) as load:
        load.wait_for_trouble(dice.uniform(0.3, 2.0))
        for disk in disks:
            disk.cut()
        load.wait_for_trouble(dice.choice((0.0, 0.2)))
        assert source.driver is not None
        kill(source.driver)
    far.kill()
    eventually(lambda: not source.coordinator_pid(), "the coordinator has gone with its driver")
    for disk in disks:
        disk.revive()
    # After a cut the store may be in the middle of a file: only its replayer finishes that.
    mirrored = history.least_prefix(after_redo(far))
    mirrored_seq = history.writes[mirrored - 1].seq if mirrored else 0
    source.must_mount()
    history.recovered(source.volume.read_bytes())
    newest = history.writes[-1].seq if history.writes else 0
    print(f"the mirror holds writes to {mirrored_seq}, the recovered source to {newest}")
    assert mirrored_seq <= newest, "the mirror is ahead of its recovered source"
    source.kill()


def after_redo(far: Far) -> bytes:
    """Let a replayer finish what it had begun, without a source, and return the mirror."""
    far.finish()
    return far.mirror.read_bytes()
