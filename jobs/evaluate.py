"""Ray job: evaluate a trained model. The same as ``distrib evaluate``."""

import sys

from distrib.console import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
