"""A store holds back on purpose: by a delay, or because its operator has paused it."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from aimfuse.config.pauses import Pause, load_pauses, save_pauses
from aimfuse.disk import Disk
from aimfuse.replay.session import Session
from aimfuse.replay.state import Phase
from aimfuse.units import SECOND_NS
from tests.replay.source import Source, deliver, inbox_of, mirror_of
from tests.replay.stores import catch_up, exhaust, made_source, report

START_NS = 1_790_000_000 * SECOND_NS
DELAY_S = 3600


class Far:
    """A store with a delay, on a host whose clocks the test sets, and its source."""

    def __init__(self, scratch: Path, settings: str = f"delay = {DELAY_S}\n") -> None:
        self.source = made_source(scratch / "spool")
        self.store = scratch / "store"
        deliver(self.store, *self.source.sync())
        catch_up(self.store)
        (self.store / "store.toml").write_text(settings)
        self.wall_ns = START_NS
        self.source_ns = START_NS
        self.up_s = 1000.0
        self.session = self._open()

    def _open(self) -> Session:
        return Session(Disk(), self.store, clock=lambda: self.wall_ns, monotonic=lambda: self.up_s)

    def restart(self) -> None:
        self.session.close()
        self.session = self._open()

    def sleep(self, seconds: float, *, beat: bool = True) -> None:
        """Let time pass at both ends, in small steps, while the source says that it lives."""
        end_s = self.up_s + seconds
        while self.up_s < end_s:
            step_s = min(60.0, end_s - self.up_s)
            self.up_s += step_s
            self.wall_ns += int(step_s * SECOND_NS)
            self.source_ns += int(step_s * SECOND_NS)
            if beat:
                self.beat()
            exhaust(self.session)

    def beat(self) -> None:
        path = inbox_of(self.store) / "source.json"
        path.write_text(json.dumps({"time_ns": self.source_ns}))

    def write(self, data: bytes, age_s: float = 0.0) -> int:
        """Write, seal and deliver a file whose records are *age_s* old at the source."""
        self.source.clock_ns = self.source_ns - int(age_s * SECOND_NS)
        self.source.write(1, 0, data)
        deliver(self.store, self.source.roll())
        exhaust(self.session)
        return self.source.number

    @property
    def applied(self) -> int:
        head = self.session.store.state.head
        assert head is not None
        return head.number

    def said(self) -> dict[str, object]:
        self.wall_ns += SECOND_NS
        self.up_s += 1
        exhaust(self.session)
        return report(self.session)


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Far]:
    made = Far(tmp_path)
    made.sleep(10)
    yield made
    made.session.close()


def test_a_file_is_received_at_once_and_applied_when_it_is_as_old_as_wanted(far: Far) -> None:
    number = far.write(b"late")
    assert far.said()["received"] == {"number": number}
    assert not list(inbox_of(far.store).glob("*.aim"))
    far.sleep(DELAY_S - 60)
    assert far.applied == number - 1
    far.sleep(120)
    assert far.applied == number
    assert mirror_of(far.store)["v.img"].startswith(b"late")


def test_the_report_says_what_waits_until_when_and_that_it_is_on_purpose(far: Far) -> None:
    far.write(b"1")
    far.write(b"2")
    said = far.said()
    held = said["held"]
    assert isinstance(held, dict)
    assert said["delay_s"] == DELAY_S
    assert held["files"] == 2
    assert abs(held["next_ns"] - START_NS - (DELAY_S + 10) * SECOND_NS) < 5 * SECOND_NS
    far.sleep(DELAY_S + 60)
    assert far.said()["held"] is None


def test_a_file_that_was_long_on_its_way_does_not_wait_again(far: Far) -> None:
    old = far.write(b"old", age_s=2 * DELAY_S)
    assert far.applied == old
    half = far.write(b"half", age_s=DELAY_S / 2)
    far.sleep(DELAY_S / 2 - 60)
    assert far.applied == half - 1
    far.sleep(120)
    assert far.applied == half


@pytest.mark.parametrize("step_s", [-86400, -300, 300, 86400, 10 * 366 * 86400])
@pytest.mark.parametrize("whose", ["wall_ns", "source_ns"])
def test_a_clock_that_is_set_lets_nothing_in_early_and_keeps_nothing_out(
    far: Far, whose: str, step_s: int
) -> None:
    before = far.write(b"before the step")
    far.sleep(DELAY_S / 2)
    setattr(far, whose, getattr(far, whose) + step_s * SECOND_NS)
    after = far.write(b"after the step")
    far.sleep(DELAY_S / 2 - 60)
    assert far.applied == before - 1
    far.sleep(120)
    assert far.applied == before
    far.sleep(DELAY_S / 2 + 60)
    assert far.applied == after


def test_hosts_whose_clocks_differ_by_years_wait_as_long_as_others(far: Far) -> None:
    far.source_ns -= 5 * 366 * 86400 * SECOND_NS
    far.sleep(60)
    number = far.write(b"from another time")
    far.sleep(DELAY_S - 120)
    assert far.applied == number - 1
    far.sleep(240)
    assert far.applied == number


def test_a_restart_goes_on_waiting(far: Far) -> None:
    number = far.write(b"patient")
    far.sleep(DELAY_S / 2)
    far.restart()
    far.sleep(DELAY_S / 2 - 120)
    assert far.applied == number - 1
    far.sleep(180)
    assert far.applied == number


def test_without_a_word_from_the_source_this_host_s_clock_counts(tmp_path: Path) -> None:
    far = Far(tmp_path)
    number = far.write(b"silent")
    far.sleep(DELAY_S - 60, beat=False)
    assert far.applied == number - 1
    far.sleep(120, beat=False)
    assert far.applied == number
    far.session.close()


def test_a_shorter_delay_counts_within_moments(far: Far) -> None:
    number = far.write(b"soon")
    (far.store / "store.toml").write_text("delay = 0\n")
    far.sleep(5)
    assert far.applied == number
    assert far.said()["delay_s"] == 0


def test_whoever_takes_over_has_all_that_was_received_at_once(far: Far) -> None:
    number = far.write(b"newest")
    save_pauses(far.store, {"apply": Pause(1), "receive": Pause(1)}, Disk())
    deliver(far.store, far.source.roll())
    far.session.close()
    far.session = Session(Disk(), far.store, clock=lambda: far.wall_ns, monotonic=lambda: far.up_s)
    far.session.hold_nothing_back()
    exhaust(far.session)
    assert far.applied == number + 1
    said = far.said()
    assert (said["paused"], said["delay_s"], said["held"]) == (None, 0.0, None)


def test_what_is_held_back_has_no_limit_but_the_disk(
    far: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aimfuse.replay.work.FILES_MAX", 2)
    number = max(far.write(b"more") for _ in range(6))
    assert far.said()["received"] == {"number": number}
    monkeypatch.setattr(Disk, "free_bytes", lambda _self, _path: 0)
    far.write(b"no room")
    assert far.said()["received"] == {"number": number}


def test_a_staged_copy_is_switched_in_when_what_it_leads_to_is_old_enough(far: Far) -> None:
    lost = far.source
    lost.clock_ns = far.source_ns
    lost.write(1, 0, b"overtaken")
    gone = lost.roll()
    deliver(far.store, *lost.resync([gone], to=lost.number + 1))
    number = far.write(b"behind")
    exhaust(far.session)
    assert far.session.store.state.staging is not None
    far.sleep(DELAY_S - 60)
    assert not mirror_of(far.store)["v.img"].startswith(b"behind")
    far.sleep(120)
    assert far.applied == number
    assert mirror_of(far.store)["v.img"].startswith(b"behind")


# Pauses.


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Far]:
    made = Far(tmp_path, settings="")
    made.sleep(1)
    yield made
    made.session.close()


def pause(far: Far, *kinds: str) -> None:
    save_pauses(far.store, {kind: Pause(7, "a reason") for kind in kinds}, Disk())
    far.sleep(1)


def test_with_apply_paused_files_are_received_and_the_mirror_stays(plain: Far) -> None:
    before = mirror_of(plain.store)
    pause(plain, "apply")
    number = plain.write(b"waits")
    plain.restart()
    plain.sleep(3600)
    said = plain.said()
    assert said["received"] == {"number": number}
    assert said["paused"] == {"apply": {"since_ns": 7, "reason": "a reason"}}
    assert said["held"] is not None
    assert mirror_of(plain.store) == before
    pause(plain)
    assert plain.applied == number
    assert plain.said()["paused"] is None


def test_with_receive_paused_the_inbox_is_left_alone_and_what_is_here_is_applied(
    plain: Far,
) -> None:
    pause(plain, "apply")
    here = plain.write(b"here")
    pause(plain, "receive")
    plain.write(b"stays outside")
    assert plain.applied == here
    assert len(list(inbox_of(plain.store).glob("*.aim"))) == 1
    pause(plain)
    assert plain.applied == here + 1


def test_a_first_copy_can_be_paused(tmp_path: Path) -> None:
    source: Source = made_source(tmp_path / "spool")
    store = tmp_path / "store"
    inbox_of(store)
    save_pauses(store, {"apply": Pause(1)}, Disk())
    deliver(store, *source.sync())
    assert catch_up(store).store.state.phase is Phase.EMPTY
    save_pauses(store, {}, Disk())
    assert catch_up(store).store.state.phase is Phase.CONSISTENT


def test_a_pause_that_cannot_be_read_counts_as_one_of_everything(plain: Far) -> None:
    (plain.store / "paused.json").write_text("{")
    plain.sleep(1)
    plain.write(b"outside")
    paused = plain.said()["paused"]
    assert isinstance(paused, dict)
    assert set(paused) == {"receive", "apply"}
    assert "cannot be read" in paused["apply"]["reason"]
    assert len(list(inbox_of(plain.store).glob("*.aim"))) == 1


@pytest.mark.expects_warnings
def test_a_pipe_in_the_place_of_a_store_s_files_holds_nobody_up(plain: Far) -> None:
    before = plain.applied
    for name in ("paused.json", "store.toml", "wanted"):
        (plain.store / name).unlink(missing_ok=True)
        os.mkfifo(plain.store / name)
    plain.sleep(1)
    plain.write(b"outside")
    said = plain.said()
    assert isinstance(said["paused"], dict)
    assert "is no plain file" in said["paused"]["receive"]["reason"]
    assert "store.toml: file: is no plain file" in str(said["error"])
    (plain.store / "paused.json").unlink()
    plain.sleep(1)
    assert plain.applied == before + 1


def test_pauses_are_kept_as_they_were_written(tmp_path: Path) -> None:
    pauses = {"receive": Pause(1, "so"), "apply": Pause(2)}
    save_pauses(tmp_path, pauses, Disk())
    assert load_pauses(tmp_path, Disk()) == pauses
