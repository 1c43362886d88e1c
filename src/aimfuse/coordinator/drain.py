"""The end of `ship --until-empty`: when a destination is done, and what to say if it is not."""

from pathlib import Path

import trio

from aimfuse.coordinator.place import Place
from aimfuse.errors import AimfuseError, Refused, StoreError, Unavailable, explain

HOPELESS = {"refused", "halted", "superseded"}
"""States of a destination that no waiting ends."""


def is_finished(place: Place) -> bool:
    """Tell whether waiting longer for *place* makes no sense."""
    if place.is_drained or place.state in HOPELESS:
        return True
    if place.is_open and not place.gate.is_open():
        return True
    since = place.failing_since
    return since is not None and trio.current_time() - since >= place.config.give_up_s


def excuse(place: Place) -> AimfuseError:
    """Return why *place* has not got everything."""
    error = place.error
    if place.state not in HOPELESS and not place.gate.is_open():
        hint = "Run this again then, or change its windows."
        return Unavailable(f"outside its windows until {place.gate.opens()}", hint=hint)
    if isinstance(error, AimfuseError):
        return error
    return Unavailable(explain(error)) if error else StoreError("a destination did not finish")


def gravity(error: AimfuseError) -> int:
    """Return how much an excuse matters: what needs somebody before what ends by itself."""
    if isinstance(error, Unavailable):
        return 0
    if isinstance(error, Refused):
        return 1
    return 2


def interrupted(signal_name: str) -> AimfuseError:
    """Return the error of a wait that a signal ended."""
    return AimfuseError(
        f"ended by {signal_name} before every destination had everything",
        hint="Run it again: it goes on where it was.",
    )


def unclean_end(image: Path) -> AimfuseError:
    """Return the error of a journal whose end lies in files that were never sealed."""
    return AimfuseError(
        f"everything sealed has arrived, but {image} was not unmounted cleanly: its newest "
        "records are not among it",
        hint="Mount it once: recovery seals what is left, and it is shipped.",
    )
