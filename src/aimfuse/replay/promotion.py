"""The store's way from a mirror to a source, step by step; see rewind.py and as_source.py.

Once `begin` has returned it is finished whatever happens: each step can be repeated, and the
next start goes on. Nothing that comes is applied from then on.
"""

from dataclasses import replace

from aimfuse.errors import JournalError, StoreError
from aimfuse.journal.names import EPOCH_MAX, NUMBER_MAX, SyncName
from aimfuse.replay import rewind
from aimfuse.replay.applier import Applier
from aimfuse.replay.apply import apply_journal
from aimfuse.replay.as_source import (
    make_source,
    prepare_spool,
    set_aside_left,
    write_settings,
)
from aimfuse.replay.findings import Findings
from aimfuse.replay.forward import end_forwarding
from aimfuse.replay.kept import is_whole
from aimfuse.replay.rewind import WayBack
from aimfuse.replay.rewound import note_rewound
from aimfuse.replay.state import Head, Phase, Promoted
from aimfuse.replay.store import REQUEST, Store
from aimfuse.units import Epoch

EPOCHS_AHEAD_MAX = 1_000_000
"""So far ahead an epoch is believed that a source says it is in."""

EPOCHS_LEFT_MIN = 1_000_000
FILES_LEFT_MIN = 1_000_000_000
"""What a promoted store needs of both before names have no digits left: more than it can use."""


def next_epoch(head: Head, told: int = 0) -> Epoch:
    """Return with which epoch a store at *head* goes on, whose source says that it is in *told*.

    Raises:
        StoreError: the source has used up what the names of files can say. Nobody does in earnest.
    """
    most = EPOCH_MAX - EPOCHS_LEFT_MIN
    if head.epoch >= most or head.number > NUMBER_MAX - FILES_LEFT_MIN:
        raise StoreError(
            f"its source has got to epoch {head.epoch}, file {head.number}: no names are left for "
            "the files of a new source",
            hint="No source comes there by itself. Take the disk with `aimfuse restore`, and begin "
            "a new group with it: `aimfuse init`.",
        )
    known = told if told - head.epoch <= EPOCHS_AHEAD_MAX and told < most else head.epoch
    return Epoch(max(head.epoch, known) + 1)


def begin(store: Store, promoted: Promoted) -> None:
    """Decide durably that the store will be a source, as *promoted* says.

    A staged copy that is not complete is given up.

    Raises:
        OSError: the disk failed; nothing was decided.
    """
    set_aside_left(store, promoted)
    state = store.state
    if not is_whole(state):  # Forced: the data is taken as it is.
        store.derive_links(state.shown, state.volumes)
    store.save(
        replace(
            state, phase=Phase.REWINDING, promoted=promoted, staging=None, doubt="", shown=(),
            verified=state.verified.interrupted(),
        )
    )  # fmt: skip


_HINT = "Put that file back from a copy of the store, and start the replayer again."


class Promotion:
    """What is left to do on one open store whose state says that it is promoted."""

    def __init__(
        self, store: Store, applier: Applier, findings: Findings, *, read_ahead: bool = False
    ) -> None:
        """Name the parts of the store's session; *read_ahead* as there."""
        self._read_ahead = read_ahead
        self._store = store
        self._applier = applier
        self._findings = findings
        self._is_noted = False
        self._is_settled = False
        self._way_back: WayBack | None = None

    def go_on(self) -> bool:
        """Take one step; return whether there was one to take.

        Raises:
            StoreError: a file of the history was damaged meanwhile. What was undone stays undone.
            OSError: the disk failed; calling again goes on.
        """
        try:
            return self._step()
        except JournalError as exc:
            raise StoreError(f"the promotion cannot go on: {exc}", hint=_HINT) from exc

    def close(self) -> None:
        """Wait for what is being read, and let go of its memory; it can go on all the same."""
        if self._way_back is not None:
            self._way_back.close()
            self._way_back = None

    def _step(self) -> bool:
        store, promoted = self._store, self._store.state.promoted
        assert promoted is not None
        if store.state.phase is Phase.REWINDING:
            self._rewind(promoted)
        elif store.state.phase is Phase.PROMOTING:
            rewind.forget_brought_back(store)
            make_source(store, promoted)
        elif not self._is_settled:
            self._settle()
        else:
            return False
        return True

    def _rewind(self, promoted: Promoted) -> None:
        store = self._store
        assert store.state.head is not None
        is_forward = store.state.head.epoch == promoted.epoch
        if not is_forward and not self._is_noted:
            note_rewound(store, promoted)
            self._is_noted = True
        if not is_forward and not self._step_back(promoted):
            return
        self.close()
        end_forwarding(store)
        if promoted.seq and not is_forward:
            spool = prepare_spool(store)
            aim = rewind.write_anew(store, promoted, spool)
            apply_journal(store, aim, self._applier.history, self._applier.marks)
        store.save(replace(store.state, phase=Phase.PROMOTING))

    def _step_back(self, promoted: Promoted) -> bool:
        ahead = self._read_ahead
        self._way_back = self._way_back or WayBack(self._store, promoted.fork, read_ahead=ahead)
        return self._way_back.step()

    def _settle(self) -> None:
        """Let the source be served, and set aside what came and was not applied."""
        store = self._store
        write_settings(store)
        if store.disk.exists(store.inbox / REQUEST):
            store.disk.unlink("promote:unlink_request", store.inbox / REQUEST)
        self._applier.staged.tidy()  # Of a copy that was given up.
        for copy in list(self._applier.work.copies()):
            path = store.work / copy.name.sealed
            is_copy = isinstance(copy.name, SyncName)  # Of no use to anybody any more.
            self._findings.set_aside(path, why_refused(store), expendable=is_copy)
            self._applier.work.forget(copy)
        self._is_settled = True


def why_refused(store: Store) -> str:
    """Return why a promoted store takes no file of its old source."""
    promoted = store.state.promoted
    assert promoted is not None
    fork = promoted.fork
    return (
        f"promoted: the store goes on as epoch {promoted.epoch} behind file {fork.number} "
        f"({fork.epoch}:{fork.seq}); what its old source wrote after that is not part of it"
    )
