"""Ray job: prepare a rating log. The same as ``distrib prepare``."""

import sys

from distrib.console import main

if __name__ == "__main__":
    main(["prepare", *sys.argv[1:]])
