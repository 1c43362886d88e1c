"""Which modules a command loads."""

import subprocess
import sys
from importlib import import_module

import typer
from typer.main import get_group

from aimfuse.cli.main import FAMILIES


def test_the_table_of_families_names_every_command_that_they_register() -> None:
    for module, commands in FAMILIES.items():
        family = typer.Typer()
        family.callback()(lambda: None)
        import_module(f"aimfuse.cli.{module}").register(family)
        assert set(get_group(family).commands) == set(commands)


def test_a_coordinator_does_not_wait_for_the_library_that_draws() -> None:
    program = (
        "import sys; from aimfuse.cli.main import main; sys.argv = ['aimfuse', 'ship', '/none'];"
        "import atexit; atexit.register(lambda: print('rich.console' in sys.modules)); main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.stdout == "False\n"
    assert "/none" in done.stderr


def test_the_list_of_commands_cuts_no_sentence_off() -> None:
    program = "import sys; from aimfuse.cli.main import main; sys.argv = ['aimfuse', '-h']; main()"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "..." not in done.stdout.partition("Commands:")[2]
