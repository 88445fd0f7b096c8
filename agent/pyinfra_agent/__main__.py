"""`python -m pyinfra_agent` is `pyinfra-agent`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
