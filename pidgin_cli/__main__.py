"""`pidgin` and `python -m pidgin_cli`."""

import sys


def main() -> None:
    """Run the command line and leave with its exit status."""
    from pidgin_cli.cli.app import run

    sys.exit(run())


if __name__ == "__main__":
    main()
