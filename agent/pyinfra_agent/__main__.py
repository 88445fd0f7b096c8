"""`python -m pyinfra_agent` is `pyinfra-agent`."""

import sys

if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:  # the one that stays; as a service it is started like this
        from ._lean import begin

        begin()
    from .cli import main

    sys.exit(main())
