"""Ray job: the whole pipeline. The same as ``distrib pipeline``."""

import sys

from distrib.console import main

if __name__ == "__main__":
    main(["pipeline", *sys.argv[1:]])
