"""Read and check the next files while the one before them is being applied.

Checking is work for the processor, applying for the disk; side by side they take the time of
the slower one. At most one file for each thread is held, so memory stays bounded.
"""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Key = TypeVar("Key")
Result = TypeVar("Result")


class ReadAhead(Generic[Key, Result]):
    """Holds the outcome of one call that runs on a thread of its own. For one caller."""

    def __init__(self) -> None:
        """Hold nothing yet."""
        self._key: Key | None = None
        self._thread: threading.Thread | None = None
        self._results: list[Result] = []
        self._errors: list[BaseException] = []

    def start(self, key: Key, read: Callable[[], Result]) -> None:
        """Begin *read* for *key*, unless something is under way or waits to be taken."""
        if self._thread is not None:
            return
        self._key = key
        self._thread = threading.Thread(target=self._run, args=(read,), name="read-ahead")
        self._thread.start()

    def take(self, key: Key, read: Callable[[], Result]) -> Result:
        """Return what was read ahead for *key*, or what *read* returns if that was not.

        Raises:
            BaseException: what the call raised, as if it were made here.
        """
        if self._key != key:
            return read()
        return self._finish()

    def drop(self) -> None:
        """Wait for the call under way and forget its outcome."""
        if self._thread is not None:
            self._thread.join()
        self._key, self._thread = None, None
        self._results, self._errors = [], []

    def _finish(self) -> Result:
        assert self._thread is not None
        self._thread.join()
        results, errors = self._results, self._errors
        self.drop()
        if errors:
            raise errors[0]
        return results[0]

    def _run(self, read: Callable[[], Result]) -> None:
        try:
            self._results.append(read())
        except BaseException as exc:  # noqa: BLE001 - whoever takes the result gets it
            self._errors.append(exc)


def results_of(
    calls: Iterable[Callable[[], Result]], threads: int
) -> Generator[Result, None, None]:
    """Yield what *calls* return, in order, while so many *threads* make the next ones.

    What one raises is raised in its place. Close it, or use it up: that waits for the threads.
    With no threads each call is made when its result is wanted.
    """
    if not threads:
        for call in calls:
            yield call()
        return
    with ThreadPoolExecutor(threads, "read-ahead") as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for call in calls:
                waiting.append(pool.submit(call))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for one in waiting:
                one.cancel()
