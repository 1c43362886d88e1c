"""What a screen shows of comparing: how far the scrub is, and where mirrors differ."""

from dataclasses import dataclass

from aimfuse.manager.fields import Fields

PLACES_SHOWN_MAX = 3


@dataclass(frozen=True, slots=True)
class Scrub:
    """How much of a round is done, from 0 to 1, and when the last one ended in Unix ns, or 0."""

    done_ratio: float
    finished_ns: int


def scrub_of(status: Fields) -> Scrub | None:
    """Return how the scrub of a source fares, None without one."""
    scrub = status.part("scrub")
    if not scrub.seconds("period_s"):
        return None
    all_bytes = scrub.count("allocated_bytes")
    done = min(1.0, scrub.count("done_bytes") / all_bytes) if all_bytes else 0.0
    return Scrub(done, scrub.count("finished_ns"))


def unreadable(status: Fields) -> str:
    """Return what is wrong with an image that cannot be read everywhere, or ""."""
    found = status.part("scrub").parts("unreadable")
    return f"the image cannot be read at {_places(found, 'volume')}" if found else ""


def differing(status: Fields) -> str:
    """Return what is to be said of a mirror that differs, by its store's ack or status, or ""."""
    found = status.part("verified").parts("mismatches")
    return f"the mirror differs from the image at {_places(found, 'name')}" if found else ""


def compared_ns(status: Fields) -> int:
    """Return the time of the newest record that a mirror was compared with, 0 for none."""
    return status.part("verified").count("time_ns")


def _places(found: list[Fields], name: str) -> str:
    """Return places as `aimfuse sync --range` takes them."""
    shown = [
        f"{one.text(name)[:64]}:{one.count('offset')}+{one.count('length')}"
        for one in found[:PLACES_SHOWN_MAX]
    ]
    more = len(found) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")
