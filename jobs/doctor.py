"""Ray job: can this run train here? The same as ``distrib doctor``."""

import sys

from distrib.console import main

if __name__ == "__main__":
    main(["doctor", *sys.argv[1:]])
