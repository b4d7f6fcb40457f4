# SPDX-License-Identifier: MIT
"""``ascedfast`` and ``python -m ascedfast``."""

import json
import sys


def main() -> None:
    try:
        from ascedfast.cli import app
    except ModuleNotFoundError as error:
        if sys.argv[1:2] == ["doctor"]:  # what is missing can be asked for even where something is
            from ascedfast.doctor import examine

            print(json.dumps(examine(), indent=2))
            return
        print(
            f"the command line needs {error.name}: pip install 'ascedfast[demo]' (in a checkout: -e '.[demo]')",
            file=sys.stderr,
        )
        sys.exit(2)
    app()


if __name__ == "__main__":
    main()
