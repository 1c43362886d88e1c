"""What the screens say, and that they fit."""

# ruff: noqa: ANN401 - status dictionaries hold anything

import io
import json
from datetime import UTC
from typing import Any

import pytest
from rich.console import Console

from aimfuse.manager import render
from aimfuse.manager.layout import Look
from aimfuse.manager.model import Level
from aimfuse.manager.snapshot import Snapshot, snapshot

WIDTHS = [20, 28, 40, 60, 80, 100, 120, 200]
HOSTILE = "a\x1b[31mb\x9b2J\u202edcba\r\n[bold red]x[/] \udcff 犬\u0301 " + "w" * 300


def look(width: int = 80, *, unicode: bool = True) -> Look:
    return Look(width, unicode, UTC)


def text(snap: Snapshot, width: int = 80) -> str:
    return "\n".join(line.plain for line in render.dashboard(snap, render.NO_RATES, look(width)))


def words(snap: Snapshot, width: int = 80) -> str:
    return " ".join(text(snap, width).split())


def everything(made: Any) -> Snapshot:
    destinations = [
        made.destination(),
        made.destination(name="offsite", state="retrying", error="no route", retry_in_s=12.4),
        made.destination(name="paris", state="refused", error="wrong host key " * 20),
        made.destination(name="berlin", state="syncing", sync={"done_bytes": 3, "total_bytes": 10}),
    ]
    halted = made.store(store="/srv/w", phase="halted", error="fork: another history")
    return snapshot([made.source(*destinations)], [made.store(), halted], made.now_ns)


@pytest.mark.parametrize("width", WIDTHS)
def test_no_line_is_wider_than_the_terminal(made: Any, width: int) -> None:
    snap = everything(made)
    rates = {("/srv/vm/v.img",): [1.0] * 60, ("/srv/vm/v.img", "backup"): [5.0] * 60}
    for line in render.dashboard(snap, rates, look(width)):
        assert line.cell_len <= width, line.plain


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("key", ["name", "url", "state", "error", "hint"])
def test_hostile_text_neither_steers_the_terminal_nor_breaks_a_line(
    made: Any, width: int, key: str
) -> None:
    bad = made.destination(**{key: HOSTILE}, in_flight=[{"name": HOSTILE, "bytes": 1, "sent": 0}])
    evil = made.store(
        store=HOSTILE, error=HOSTILE, damaged=[HOSTILE], phase=HOSTILE,
        quarantine={"files": 1, "shown": [{"name": HOSTILE, "reason": HOSTILE}]},
    )  # fmt: skip
    snap = snapshot([made.source(bad, image=HOSTILE, reason=HOSTILE)], [evil], made.now_ns)
    lines = render.dashboard(snap, {}, look(width))
    assert all(line.cell_len <= width for line in lines)
    shown = "".join(line.plain for line in lines)
    assert not any(char in shown for char in "\x1b\x9b\u202e\r\n\udcff")


def test_markup_in_a_name_is_shown_as_it_is(made: Any) -> None:
    snap = snapshot([made.source(made.destination(name="[red]x[/]"))], [], made.now_ns)
    assert "[red]x[/]" in text(snap)


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_a_destination_shows_every_stage_of_the_way(made: Any, width: int) -> None:
    shown = words(snapshot([made.source()], [], made.now_ns), width)
    for part in (
        "backup shipping", "1.4 s behind", "queued 2 files · 32.0 MiB",
        "in flight 2 files · 32.0 MiB", "00000001-000000000412", "69%", "12%",
        "received 1 file · 16.0 MiB", "through file 410", "record 183,100",
        "mirror as of 14:13:18", "12.3 MiB/s", "lag 1.4 s 80.0 MiB 5 files",
    ):  # fmt: skip
        assert part in shown


def test_a_source_shows_its_journal_and_its_spool(made: Any) -> None:
    shown = words(snapshot([made.source(durable_seq=184_210)], [], made.now_ns))
    for part in (
        "/srv/vm/v.img active", "mounted on /mnt/v", "184,220 records", "10 not durable",
        "40% 3.2 GiB of 8.0 GiB 5 files 12.0 GiB free on disk",
    ):  # fmt: skip
        assert part in shown


def test_a_store_shows_what_is_missing_damaged_and_set_aside(made: Any) -> None:
    calm = words(snapshot([], [made.store()], made.now_ns))
    assert "nothing missing, damaged or set aside" in calm
    trouble = made.store(
        missing=[412, 1413],
        damaged=["00000001-000000000414.aim"],
        quarantine={"files": 2, "shown": [{"name": "junk", "reason": "not an AIM file"}]},
    )
    shown = words(snapshot([], [trouble], made.now_ns))
    for part in (
        "file 412 file 1,413", "00000001-000000000414.aim", "set aside 2 files",
        "junk: not an AIM file", "through file 411", "through file 410", "100.0 GiB free",
    ):  # fmt: skip
        assert part in shown


def test_a_sync_shows_progress_rate_and_time_left(made: Any) -> None:
    syncing = made.destination(
        state="syncing", sync={"done_bytes": 256, "total_bytes": 1024, "eta_s": 184.0}
    )
    shown = words(snapshot([made.source(syncing)], [], made.now_ns))
    assert "25% 256 B of 1.0 KiB 3 min 4 s left" in shown
    assert "12.3 MiB/s" in shown
    assert "25% copied" in shown


def test_a_store_on_a_full_disk_says_so_even_if_its_report_could_not_be_written(made: Any) -> None:
    shown = words(snapshot([], [made.store(free_bytes=4096)], made.now_ns))
    assert "▲ the store's disk is full → Make room there" in shown


def test_what_is_on_its_way_counts_as_copied_and_a_line_has_the_time_left(made: Any) -> None:
    """A file of a copy can take minutes on a slow link."""
    sync = {"done_bytes": 0, "sent_bytes": 768, "total_bytes": 1024, "eta_s": 184.0}
    snap = snapshot([made.source(made.destination(state="syncing", sync=sync))], [], made.now_ns)
    assert "75% 768 B of 1.0 KiB 3 min 4 s left" in words(snap)
    lines = render.dashboard(snap, {}, look(60), 8)
    assert any("75% copied, 3 min 4 s left" in line.plain for line in lines)
    sync["sent_bytes"] = 1100  # Its files have headers, too.
    assert "100% 1.0 KiB of 1.0 KiB" in words(snapshot(
        [made.source(made.destination(state="syncing", sync=sync))], [], made.now_ns
    ))  # fmt: skip


def test_what_the_url_says_is_not_said_again_by_its_problem(made: Any) -> None:
    away = made.destination(state="retrying", url="dir:///x", error="dir:///x: no such place")
    shown = text(snapshot([made.source(away)], [], made.now_ns))
    assert "▲ no such place" in shown


def test_a_spool_that_is_nearly_full_is_not_full_in_no_time(made: Any) -> None:
    filling = made.destination(forecast={"full_in_s": 0.0, "drained_in_s": None})
    assert "full at any moment" in words(snapshot([made.source(filling)], [], made.now_ns))


def test_behind_a_copy_what_is_left_of_its_journal_is_shown(made: Any) -> None:
    copied = {"done_bytes": 1024, "total_bytes": 1024, "step": "journal", "eta_s": 184.0}
    copied["journal"] = {"done_bytes": 512, "total_bytes": 1536}
    syncing = made.destination(state="syncing", sync=copied)
    shown = words(snapshot([made.source(syncing)], [], made.now_ns))
    assert "copied, the journal follows 1.0 KiB, 3 min 4 s left" in shown


def test_trouble_is_loud_without_colour_and_says_what_to_do(made: Any) -> None:
    refused = made.destination(state="refused", error="wrong host key", hint="Run aimfuse pair.")
    snap = snapshot([made.source(refused, state="halted", reason="EIO")], [], made.now_ns)
    shown = text(snap)
    assert "✖ wrong host key" in shown
    assert "→ Run aimfuse pair." in shown
    assert "✖ EIO" in shown
    assert snap.level is Level.BAD


def test_trouble_is_red(made: Any) -> None:
    snap = snapshot([made.source(state="halted", reason="EIO")], [], made.now_ns)
    line = next(line for line in render.dashboard(snap, {}, look()) if "EIO" in line.plain)
    styles = {str(line.style), *(str(span.style) for span in line.spans)}
    assert any("red" in style for style in styles)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"stuck": True}, "work is pending and nothing moves"),
        ({"updated_ns": 1_790_000_000_000_000_000 - 60 * 10**9}, "no news from the shipper"),
        ({"ack": {"error": "disk full"}}, "the store says: disk full"),
        ({"ack": {"missing": [7, 8, 9, 10, 11]}}, "missing files: 7, 8, 9 and 2 more"),
        ({"ack": {"quarantined": 3}}, "files that the store set aside: 3"),
        ({"state": "retrying", "error": "x", "retry_in_s": 12.4}, "Next try in 12 s"),
    ],
)
def test_what_is_wrong_at_a_destination_is_said(made: Any, changes: Any, says: str) -> None:
    assert says in words(snapshot([made.source(made.destination(**changes))], [], made.now_ns))


def test_a_mounted_source_that_ships_nothing_says_so(made: Any) -> None:
    status = made.source(coordinator={"pid": None, "restarts": 0})
    assert "coordinator is not running" in words(snapshot([status], [], made.now_ns))


@pytest.mark.parametrize("state", ["new", "stopped"])
def test_a_destination_that_nobody_ships_to_says_what_to_run(made: Any, state: str) -> None:
    old = made.destination(state=state, updated_ns=made.now_ns - 51 * made.second)
    status = made.source(old, mounted=False, state="unmounted", coordinator=None)
    shown = words(snapshot([status], [], made.now_ns))
    assert "not shipping (unmounted): run `aimfuse ship /srv/vm/v.img`" in shown
    assert "no news" not in shown
    shipped = made.source(old, mounted=False, state="unmounted")
    assert "not shipping" not in words(snapshot([shipped], [], made.now_ns))


@pytest.mark.parametrize("state", ["stopped", "superseded"])
def test_nobody_is_told_to_ship_a_history_that_has_ended(made: Any, state: str) -> None:
    one = made.destination(state=state, updated_ns=1)
    ended = made.source(one, state="superseded", mounted=False, coordinator=None)
    said = words(snapshot([ended], [], made.now_ns))
    assert "aimfuse ship" not in said
    assert "no news" not in said


def test_a_promoted_source_and_those_who_read_a_store_are_shown(made: Any) -> None:
    promoted = made.source(promoted={"epoch": 2, "at_ns": made.now_ns})
    far = {"who": "aim@berlin", "owner": 1001, "since_ns": made.now_ns, "first": 12, "last": 410}
    store = made.store(readers=[{"pid": 17}, {"pid": 4711}], far_readers=[{**far, "bytes": 4096}])
    said = words(snapshot([promoted], [store], made.now_ns))
    assert "a mirror before" in said
    assert "by process 17, 4711" in said
    assert "from afar by aim@berlin, user id 1001 here" in said
    assert "files 12 to 410 are kept for that, 4.0 KiB" in said


def test_no_hint_names_a_command_that_is_not_there(made: Any) -> None:
    states = [made.destination(state=one, error="x") for one in ("paused", "halted", "stopped")]
    shown = words(snapshot([made.source(*states, state="damaged")], [made.store()], made.now_ns))
    assert "aimfuse destination resume" in shown
    assert not any(f"aimfuse {gone}" in shown for gone in ("doctor", "resume", "resync"))


@pytest.mark.parametrize("height", [5, 10, 16, 24, 40, 80])
def test_the_dashboard_never_exceeds_the_screen(made: Any, height: int) -> None:
    assert len(render.dashboard(everything(made), {}, look(80), height)) <= height


def test_on_a_small_screen_trouble_comes_first(made: Any) -> None:
    many = [made.destination(name=f"fine{number}") for number in range(20)]
    bad = made.destination(name="broken", state="halted", error="gap")
    snap = snapshot([made.source(*many, bad)], [], made.now_ns)
    shown = "\n".join(line.plain for line in render.dashboard(snap, {}, look(80), 10))
    assert "✖ broken" in shown
    assert "more lines" in shown


def test_an_output_without_unicode_gets_ascii_only(made: Any) -> None:
    snap = everything(made)
    for line in render.dashboard(snap, {("/srv/mirror/v",): [1, 2]}, look(80, unicode=False)):
        assert line.plain.isascii()


def test_nonsense_in_a_status_is_shown_as_absence_not_as_a_crash(made: Any) -> None:
    del made
    nonsense: list[Any] = [
        None, 7, "x", [], {"destinations": 5}, {"destinations": [None, 1, {"lag": 3, "sync": []}]},
        {"spool": {"bytes": float("nan"), "bytes_max": float("inf"), "files": -3}},
        {"accepted_seq": "many", "volumes": [{"size": 10**400}], "destinations": [{"ack": "x"}]},
        {"phase": 3, "missing": ["x", None], "damaged": [None], "sync": {"next_index": "x"}},
        {"mirror_time_ns": 10**30, "source": {"time_ns": 10**30}, "replayer": {"pid": "x"}},
    ]  # fmt: skip
    snap = snapshot(nonsense, nonsense, 1)
    for line in render.dashboard(snap, {}, look(60)):
        assert line.cell_len <= 60


def test_status_printed_to_a_file_has_no_control_codes(made: Any) -> None:
    console = Console(width=80, record=True, force_terminal=False, file=io.StringIO())
    with console.capture() as capture:
        console.print(render.status(everything(made), look()))
    assert "\x1b" not in capture.get()


def test_the_snapshot_of_a_json_round_trip_is_the_same(made: Any) -> None:
    status = made.source()
    again = json.loads(json.dumps(status))
    assert snapshot([status], [], made.now_ns) == snapshot([again], [], made.now_ns)


def test_the_spool_says_when_it_is_full_and_each_destination_when_it_is_drained(made: Any) -> None:
    snap = snapshot(
        [
            made.source(
                made.destination(
                    pinned={"files": 12, "bytes": 3 * made.mib},
                    forecast={"full_in_s": 3 * 3600 + 12 * 60, "drained_in_s": None},
                ),
                made.destination(name="b", forecast={"full_in_s": None, "drained_in_s": 14 * 60}),
                made.destination(name="c", forecast=None),
            )
        ],
        [],
        made.now_ns,
    )
    shown = words(snap, 110)
    assert "full in 3 h 12 min at this rate" in shown
    assert "12 files · 3.0 MiB in the spool" in shown
    assert "drained in 14 min 0 s" in shown


@pytest.mark.parametrize("level", ["warn", "full"])
def test_a_spool_beyond_a_mark_says_so_and_a_folded_destination_what_will_be_copied(
    made: Any, level: str
) -> None:
    gone = made.destination(
        folded={"through": 9, "dirty_bytes": 5 * made.mib}, forecast={"full_in_s": 0.0}
    )
    source = made.source(gone)
    source["spool"]["level"] = level
    shown = words(snapshot([source], [], made.now_ns), 110)
    assert f"5 files {level}" in shown
    assert "5.0 MiB to be copied" in shown
    assert ("full at any moment" in shown) is (level == "warn"), "what is full will not be"


def test_a_destination_at_rest_is_no_alarm_but_what_waits_for_it_shows(made: Any) -> None:
    kept = {"pinned": {"files": 1, "bytes": 5}, "queued": {"files": 1, "bytes": 5}}
    paused = made.destination(name="a", state="paused", **kept)
    waiting = made.destination(name="b", state="waiting", opens="Mon 22:00", **kept)
    snap = snapshot([made.source(paused, waiting)], [], made.now_ns)
    assert snap.level < Level.WARN
    assert words(snap, 110).count("1 file · 5 B in the spool") == 2
    assert "sends again Mon 22:00" in words(snap, 110)


def test_each_end_shows_what_the_other_says(made: Any) -> None:
    ack = {"phase": "consistent", "free_bytes": 7 * made.mib, "missing": [9], "damaged": ["x.aim"]}
    near = words(snapshot([made.source(made.destination(ack=ack))], [], made.now_ns), 110)
    assert "through file 411" in near
    assert "7.0 MiB free there" in near
    assert "waits for missing files: 9" in near
    assert "got damaged files: x.aim" in near
    said = {
        "time_ns": made.now_ns, "newest": {"epoch": 1, "number": 413}, "accepted_seq": 184_220,
        "state": "active", "spool": {"files": 4, "bytes": 9 * made.mib},
    }  # fmt: skip
    far = words(snapshot([], [made.store(source=said)], made.now_ns), 110)
    assert "active newest file 413 record 184,220 spool 4 files · 9.0 MiB" in far


@pytest.mark.parametrize("step_s", [-7200, -90, 90, 7200])
def test_a_clock_that_was_set_makes_no_negative_time(made: Any, step_s: int) -> None:
    now_ns = made.now_ns + step_s * made.second
    snap = snapshot([made.source()], [made.store(heard_ns=now_ns - made.second)], now_ns)
    shown = words(snap, 110)
    assert not any(word.startswith("-") and word[1:2].isdigit() for word in shown.split())
    assert not snap.stores[0].problems  # It was heard a second ago by the clock of its host.


def test_what_a_store_holds_back_on_purpose_is_said_at_both_ends(made: Any) -> None:
    said = {
        "paused": {"apply": {"since_ns": made.now_ns, "reason": "backup\x1b[31m"}},
        "delay_s": 3600.0,
        "held": {"files": 12, "bytes": 5, "next_ns": made.now_ns + 60 * made.second},
    }
    source = made.source(made.destination(ack={"phase": "consistent", **said}))
    for sources, stores in (([source], []), ([], [made.store(**said)])):
        shown = words(snapshot(sources, stores, made.now_ns))
        for part in (
            "held back apply paused since", "(backup\\x1b[31m)", "by a delay of 1 h 0 min",
            "12 files next at", " s behind, on purpose",
        ):  # fmt: skip
            assert part in shown
