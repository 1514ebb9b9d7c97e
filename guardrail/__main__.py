"""`guardrail` and `python -m guardrail`: the command line, where its extra is installed."""

from __future__ import annotations

import sys

from guardrail.errors import MissingExtraError
from guardrail.extras import require


def main() -> None:
    """Run the command line and leave with its exit code."""
    try:
        for module in ("typer", "rich"):
            require(module)
    except MissingExtraError as error:
        sys.exit(f"guardrail: {error}")
    from guardrail.cli.main import app

    app(prog_name="guardrail")


if __name__ == "__main__":
    main()
