"""Many lives of one process: when one is killed the next begins at once, with all imported.

The process that was started stays as the keeper, so that whoever supervises it sees one child
that lives on: it hands signals to the life of the moment, and ends as that one ends.
"""

import ctypes
import importlib
import os
import signal

_HANDED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_BEFORE = {number: signal.getsignal(number) for number in _HANDED_ON}
_PR_SET_PDEATHSIG = 1


def live_again_and_again() -> None:
    """Return once for each life, in a process of its own; the keeper never returns."""
    importlib.import_module("aimfuse.cli.main")
    for module in ("aimfuse.coordinator.run", "aimfuse.transport.sftp", "asyncssh"):
        importlib.import_module(module)
    while life := _begin():
        _, status = os.waitpid(life, 0)
        code = os.waitstatus_to_exitcode(status)
        if code != -signal.SIGKILL:
            os._exit(abs(code))


def _begin() -> int:
    """Fork; the keeper gets the id of the new life, which gets 0."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _HANDED_ON)
    life = os.fork()
    for number in _HANDED_ON:
        if life:
            signal.signal(number, lambda got, _frame: os.kill(life, got))
        else:
            signal.signal(number, _BEFORE[number])
    if not life:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDED_ON)
    return life
