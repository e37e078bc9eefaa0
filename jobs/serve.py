"""Ray job: serve models over HTTP. The same as ``distrib serve``."""

import sys

from distrib.console import main

if __name__ == "__main__":
    main(["serve", *sys.argv[1:]])
