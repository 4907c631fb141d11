"""`python -m celeriac` runs the program `celeriac`."""

import os
import sys

from .program import SettingsError, execute

if __name__ == "__main__":
    try:
        execute(sys.argv[1:], os.environ)
    except SettingsError as error:
        sys.exit(f"celeriac: {error}")
