"""Ray job: recommend to every user. The same as ``distrib score``."""

import sys

from distrib.console import main

if __name__ == "__main__":
    main(["score", *sys.argv[1:]])
