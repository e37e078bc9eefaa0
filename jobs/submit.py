"""Submit a job to a cluster. The same as ``distrib submit``."""

import sys

from distrib.console import main

if __name__ == "__main__":
    main(["submit", *sys.argv[1:]])
