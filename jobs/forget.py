"""Ray job: remove people. The same as ``distrib forget``."""

import sys

from distrib.console import main

if __name__ == "__main__":
    main(["forget", *sys.argv[1:]])
