# SPDX-License-Identifier: MIT
"""``ascedfast`` and ``python -m ascedfast``."""

import sys


def main() -> None:
    try:
        from ascedfast.cli import app
    except ModuleNotFoundError as error:
        sys.exit(f"the command line needs {error.name}: pip install 'ascedfast[demo]'")
    app()


if __name__ == "__main__":
    main()
