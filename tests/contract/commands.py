"""Run the commands that read a store from afar in this process."""

from typer.testing import CliRunner

from aimfuse.cli import destination
from aimfuse.cli.past import register
from aimfuse.cli.plain import App

app = App()
app.callback()(lambda: None)
register(app)
destination.register(app)


def run(*words: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [*map(str, words)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr
