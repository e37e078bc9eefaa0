"""Ray job: convert a log or histories. The same as ``distrib convert``."""

import sys

from distrib.console import main

if __name__ == "__main__":
    main(["convert", *sys.argv[1:]])
