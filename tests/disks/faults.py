"""What a test can do to a simulated disk: kill the program at a step, or fail one call."""

from dataclasses import dataclass
from fnmatch import fnmatchcase


class Crash(BaseException):
    """The program is gone. Not an Exception: production code must not catch it."""


@dataclass(slots=True)
class Fault:
    """Makes calls fail with *number*, an errno, before they have any effect.

    A call is chosen by its place among all labelled steps (`at`, from 0), or by its label
    (a glob pattern), of which the first `skip` matches pass. After `times` hits the fault is
    spent. A failing `pwrite` first writes `short_bytes`, as a full disk does; a failing
    `fdatasync` forgets what it should have written, as Linux does. The label of an
    unlabelled read is ``pread``.
    """

    number: int
    label: str = "*"
    at: int | None = None
    skip: int = 0
    times: int = 1
    short_bytes: int = 0

    def hits(self, label: str, step: int | None) -> bool:
        """Tell whether the call fails; counts it if so."""
        if self.times <= 0 or not fnmatchcase(label, self.label):
            return False
        if self.at is not None:
            if step != self.at:
                return False
        elif step is None and self.label == "*":  # A read fails only by its name.
            return False
        elif self.skip > 0:
            self.skip -= 1
            return False
        self.times -= 1
        return True
