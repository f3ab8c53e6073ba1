"""`python -m jaxunlearn`, see `jaxunlearn.commands`."""

import sys

from jaxunlearn.commands import main

if __name__ == "__main__":
    sys.exit(main())
