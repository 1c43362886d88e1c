"""What processes hold in memory over a run, and whether that stays as it is."""

from collections.abc import Mapping

import psutil

from aimfuse.units import MIB

GROWTH_RATIO_MAX = 1.1
GROWTH_BYTES_MAX = 16 * MIB


class Memory:
    """Samples of the resident bytes of some processes, each by a name and its id."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._processes = {name: psutil.Process(pid) for name, pid in pids.items()}
        self._samples: dict[str, list[int]] = {name: [] for name in pids}

    def look(self) -> None:
        """Take a sample of each; one that has ended is a failure."""
        for name, process in self._processes.items():
            self._samples[name].append(process.memory_info().rss)

    def tell(self) -> None:
        """Print how it was."""
        for name, seen in self._samples.items():
            quarter, half = len(seen) // 4, len(seen) // 2
            points = (seen[0], seen[half], seen[-1], max(seen[quarter:half]), max(seen[half:]))
            print(name, "at first, half, end; most before and after half:", *map(_shown, points))

    def check(self) -> None:
        """Hold the second half of the run against the quarter before it: the first is warm-up."""
        for name, seen in self._samples.items():
            quarter, half = len(seen) // 4, len(seen) // 2
            warm, later = max(seen[quarter:half]), max(seen[half:])
            assert later <= GROWTH_RATIO_MAX * warm + GROWTH_BYTES_MAX, f"{name} grows"


def _shown(count_bytes: int) -> str:
    return f"{count_bytes / MIB:.1f} MiB"
