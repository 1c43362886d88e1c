"""Run `aimfuse history` in this process."""

from typer.testing import CliRunner

from aimfuse.cli.past import register
from aimfuse.cli.plain import App

app = App()
app.callback()(lambda: None)
register(app)


def run_history(*words: object) -> str:
    done = CliRunner().invoke(app, ["history", *map(str, words)])
    assert done.exit_code == 0, done.output
    return done.stdout
