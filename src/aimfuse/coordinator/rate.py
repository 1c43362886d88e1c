"""Bytes per second over the last few seconds."""

from collections import deque

WINDOW_S = 10.0
_BUCKET_S = 0.5


class RateMeter:
    """Counts bytes in buckets of half a second; what is older than the window is forgotten."""

    def __init__(self) -> None:
        self.total_bytes = 0
        self._buckets: deque[tuple[float, int]] = deque()

    def add(self, now: float, count_bytes: int) -> None:
        """Count bytes at the monotonic time *now*."""
        self.total_bytes += count_bytes
        at = now - now % _BUCKET_S
        if self._buckets and self._buckets[-1][0] == at:
            count_bytes += self._buckets.pop()[1]
        self._buckets.append((at, count_bytes))

    def bytes_per_s(self, now: float) -> float:
        """Return the mean over the window, over what there is of it at the start."""
        while self._buckets and self._buckets[0][0] < now - WINDOW_S:
            self._buckets.popleft()
        if not self._buckets:
            return 0.0
        span_s = max(1.0, min(WINDOW_S, now - self._buckets[0][0]))
        return sum(count for _, count in self._buckets) / span_s
