"""Ray job: run and report a study. The same as ``distrib study``."""

import sys

from distrib.console import main

if __name__ == "__main__":
    main(["study", *sys.argv[1:]])
