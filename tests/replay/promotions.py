"""Promote a store, and look at it as the source that it then is."""

from pathlib import Path

from aimfuse import config
from aimfuse.disk import Disk
from aimfuse.driver.group import GroupLimits, GroupPaths, close_group, open_group
from aimfuse.replay.look import Look
from aimfuse.replay.point import Wanted
from aimfuse.replay.promote import Request, promote_open
from aimfuse.replay.state import Json, Phase, Promoted
from aimfuse.units import MIB
from tests.replay.recorder import Position, Recorder, Snapshot, recorded, silent
from tests.replay.source import deliver
from tests.replay.stores import catch_up, opened

NEWEST = Wanted("now")


def promoted(
    store: Path,
    wanted: Wanted = NEWEST,
    disk: Disk | None = None,
    look: Look | None = None,
    *,
    force: bool = False,
) -> Json:
    with opened(store, disk, look) as session:
        return promote_open(session, Request(wanted, force=force), silent)


def state_of(store: Path) -> Promoted:
    with opened(store) as session:
        session.round()
        assert session.store.state.phase is Phase.PROMOTED
        assert session.store.state.promoted is not None
        return session.store.state.promoted


def served(store: Path) -> tuple[int, int, int]:
    """Serve the group as a mount does; return epoch, file and record that come next."""
    settings_ = config.load(store / "source")
    paths = GroupPaths(settings_.image, settings_.state_dir, settings_.spool)
    engine = open_group(Disk(), paths, GroupLimits(MIB, 16 * MIB))
    active = engine.journal.active
    assert active is not None
    found = active.name.epoch, active.name.number, engine.journal.last_seq + 1
    close_group(Disk(), engine)
    return found


def applied(scratch: Path) -> tuple[Recorder, Path]:
    """Return a source of seven files, and its store with all of them applied."""
    source, store, rest = recorded(scratch)
    deliver(store, *rest)
    catch_up(store)
    return source, store


def reachable(source: Recorder) -> dict[Position, Snapshot]:
    """Return the states of `recorded` behind the copy, by position."""
    return {where: state for where, state in source.states.items() if where[1] >= 3}
