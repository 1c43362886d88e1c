"""How long to wait before trying again."""

import random
from dataclasses import dataclass, field


@dataclass(slots=True)
class Backoff:
    """Doubling pauses with a ceiling and jitter, so that many sources do not return as one."""

    wait_s_min: float = 0.5
    wait_s_max: float = 60.0
    dice: random.Random = field(default_factory=random.Random)
    failures: int = 0

    def next_s(self) -> float:
        """Count one more failure and return the seconds to wait after it."""
        full = min(self.wait_s_max, self.wait_s_min * 2.0 ** min(self.failures, 32))
        self.failures += 1
        return full * self.dice.uniform(0.5, 1.0)

    def reset(self) -> None:
        """Start over: it worked."""
        self.failures = 0
