"""The lock files by which the processes of a group and of a store keep out of each other's way.

Each is held by flock for as long as its holder lives, and has the holder's process id in it.
"""

GROUP_LOCK = "lock"
"""In a state directory: held by the group's one driver."""

SHIP_LOCK = "ship.lock"
"""In a state directory: held by its one coordinator."""

RETENTION_LOCK = "retention.lock"
"""In a state directory, for moments: who releases files, or says which ones must stay."""

STORE_LOCK = "lock"
"""In a store: held by its one replayer."""
