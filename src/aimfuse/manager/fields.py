"""Read JSON that somebody else wrote: each value is what it should be, or its absence."""

from typing import Any

ITEMS_MAX = 256
"""No more of a list is looked at."""

NUMBER_MAX = 1 << 64
SECONDS_MAX = 1 << 40


class Fields:
    """A JSON object whose values may be anything: each reader returns its type or a default."""

    def __init__(self, value: Any) -> None:  # noqa: ANN401 - that is the point
        """Read from *value* if it is an object, else from an empty one."""
        self._values: dict[str, Any] = value if isinstance(value, dict) else {}

    def __bool__(self) -> bool:
        """Tell whether there is anything in it."""
        return bool(self._values)

    def text(self, key: str) -> str:
        """Return a text, "" without one."""
        value = self._values.get(key)
        return value if isinstance(value, str) else ""

    def count(self, key: str) -> int:
        """Return a number that is not negative, 0 without one."""
        return self.maybe(key) or 0

    def maybe(self, key: str) -> int | None:
        """Return a number that is not negative, None without one."""
        value = self._values.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value:  # noqa: PLR0124 - NaN
            return None
        return int(min(max(0, value), NUMBER_MAX))

    def seconds(self, key: str) -> float | None:
        """Return a duration that is not negative, None without one."""
        value = self._values.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value:  # noqa: PLR0124 - NaN
            return None
        return float(min(max(0, value), SECONDS_MAX))

    def flag(self, key: str) -> bool:
        """Return a truth, False without one."""
        return self._values.get(key) is True

    def part(self, key: str) -> "Fields":
        """Return an object within, an empty one without it."""
        return Fields(self._values.get(key))

    def parts(self, key: str) -> list["Fields"]:
        """Return the objects of a list within."""
        return [Fields(one) for one in self.items(key)]

    def items(self, key: str) -> list[Any]:
        """Return a list within, at most `ITEMS_MAX` of it."""
        value = self._values.get(key)
        return value[:ITEMS_MAX] if isinstance(value, list) else []
