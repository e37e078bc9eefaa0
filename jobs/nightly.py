"""Ray job: update a model nightly. The same as ``distrib nightly``."""

import sys

from distrib.console import main

if __name__ == "__main__":
    main(["nightly", *sys.argv[1:]])
