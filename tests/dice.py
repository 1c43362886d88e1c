"""Seeds of the random tests that are not hypothesis': under CI the same each time."""

import os
import random

SEED_IN_CI = 1
SEED_VARIABLE = "AIMFUSE_SEED"
LONG = os.environ.get("AIMFUSE_SWEEP") == "long"


def draw_seed() -> int:
    """Return the seed of a test's dice and print it.

    AIMFUSE_SEED brings a printed one back. Under CI=true it is a fixed one, so that a red build
    is about the change; a long sweep and whoever runs the tests by hand go looking for new faults.
    """
    if given := os.environ.get(SEED_VARIABLE):
        number = int(given)
    elif os.environ.get("CI") == "true" and not LONG:
        number = SEED_IN_CI
    else:
        number = random.SystemRandom().randrange(1, 2**32)
    print(f"{SEED_VARIABLE}={number}")
    return number
