"""Note which extents a promotion goes back over, for the old source to rejoin by.

Made of the journal files that the history keeps, before the first of them is undone. An old
source copies everything where the note is missing, so whatever stands against making it costs
time later on, and never holds a promotion up.
"""

import logging

from aimfuse.disk import publish, read_file
from aimfuse.errors import OUT_OF_SPACE, CorruptRecord, JournalError
from aimfuse.journal.contents import fold_into, read_contents
from aimfuse.journal.dirty import DirtyMap
from aimfuse.journal.journal import Head as JournalHead
from aimfuse.journal.names import PART
from aimfuse.journal.rewound import REWOUND, REWOUND_BYTES_MAX, Rewound
from aimfuse.replay.kept import list_names
from aimfuse.replay.state import Head, Promoted
from aimfuse.replay.store import Store

_MODE = 0o644
"""As the ack: the old source reads it by the account that ships to the store."""

log = logging.getLogger(__name__)


def note_rewound(store: Store, promoted: Promoted) -> None:
    """Write down what lies behind the fork, durably; called again it changes nothing.

    Also where that is nothing: the volumes at the fork are worth knowing, too.

    Raises:
        OSError: the disk failed, other than being full; calling again goes on.
    """
    if _is_noted(store, promoted) or _is_written(store, promoted):
        return
    path = store.home / REWOUND
    for one in (path.with_name(path.name + PART), path):  # Cut short, or of an earlier promotion.
        if store.disk.exists(one):
            store.disk.unlink("promote:unlink_rewound", one)


def _is_noted(store: Store, promoted: Promoted) -> bool:
    try:
        found = Rewound.decode(read_file(store.disk, store.home / REWOUND, REWOUND_BYTES_MAX))
    except (OSError, ValueError):  # It is written anew.
        return False
    return (found.fork, found.newest) == (_as_journal(promoted.fork), _as_journal(promoted.newest))


def _is_written(store: Store, promoted: Promoted) -> bool:
    """Write the note; return whether it could be made, and the disk has room for it."""
    try:
        data = _survey(store, promoted).encode()
    except (JournalError, OSError) as exc:
        log.warning("%s: what is gone back over is not known: %s", store.path, exc)
        return False
    try:
        publish(store.disk, "promote:rewound", store.home / REWOUND, data, _MODE)
    except OSError as exc:
        if exc.errno not in OUT_OF_SPACE:
            raise
        log.warning("%s: no room to note what is gone back over", store.path)
        return False
    return True


def _survey(store: Store, promoted: Promoted) -> Rewound:
    """Return what the files behind the fork touch, each of them the one in front of the next.

    Raises:
        JournalError: one is damaged, or another one.
        OSError: one could not be read, or is gone.
    """
    kept = list_names(store.look, store.history)
    touched, digest, volumes = DirtyMap(), promoted.fork.digest, store.state.volumes
    for number in range(promoted.fork.number + 1, promoted.newest.number + 1):
        one = kept.get(number)
        if one is None:
            raise CorruptRecord(store.path, 0, f"file {number} is gone from its history")
        contents = read_contents(store.disk, store.history / one.name.sealed)
        if contents.seal.prev_digest != digest:
            raise CorruptRecord(store.path, 0, f"file {number} is not the one behind the others")
        if number == promoted.fork.number + 1:
            volumes = contents.table
        fold_into(touched, [contents])
        digest = contents.seal.digest
    if digest != promoted.newest.digest:
        raise CorruptRecord(store.path, 0, "its history ends with another file than its mirror")
    return Rewound(_as_journal(promoted.fork), _as_journal(promoted.newest), volumes, touched)


def _as_journal(head: Head) -> JournalHead:
    return JournalHead(head.epoch, head.number, head.seq, head.digest, head.time_ns)
