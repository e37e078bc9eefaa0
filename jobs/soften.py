"""Ray job: make soft labels from a trained run. The same as ``distrib soften``."""

import sys

from distrib.console import main

if __name__ == "__main__":
    main(["soften", *sys.argv[1:]])
