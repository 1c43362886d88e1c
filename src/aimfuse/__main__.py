"""`python -m aimfuse`: the same as the command `aimfuse`."""

from aimfuse.cli.main import main

if __name__ == "__main__":
    main()
