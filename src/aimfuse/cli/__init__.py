"""The command line: thin typer commands, one file per family, no logic."""
