"""Ray job: search hyperparameters. The same as ``distrib search``."""

import sys

from distrib.console import main

if __name__ == "__main__":
    main(["search", *sys.argv[1:]])
