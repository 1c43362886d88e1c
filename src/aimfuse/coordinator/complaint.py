"""Say what is wrong when it begins and when it ends: what is tried every second fails as often."""

import logging


class Complaint:
    """One thing that may go wrong for a while, and what was said about it last."""

    def __init__(self, log: logging.Logger, what: str) -> None:
        """Begin with all well; *what* opens every line in *log*."""
        self._log = log
        self._what = what
        self._said: str | None = None

    def note(self, problem: Exception | None) -> None:
        """Log *problem* unless it was said already, or that it is over."""
        text = None if problem is None else str(problem)
        if text == self._said:
            return
        self._said = text
        if text is None:
            self._log.info("%s: over", self._what)
        else:
            self._log.warning("%s: %s", self._what, text)
