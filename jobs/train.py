"""Ray job: train a model. The same as ``distrib train``."""

import sys

from distrib.console import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
