"""Run the system's programs, which have to succeed."""

import subprocess

PROGRAM_S_MAX = 240.0


def run(*command: object) -> str:
    """Return what *command* printed."""
    done = subprocess.run(
        list(map(str, command)), check=False, capture_output=True, text=True, timeout=PROGRAM_S_MAX
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout
