"""Submit a job. ``python jobs/submit.py train --config my.toml --address http://...``."""

import os
import sys
from pathlib import Path

from distrib.submit.command import submission

if __name__ == "__main__":
    about = "Submit a job to a Ray cluster, or to Kubernetes as a RayJob."
    sys.exit(submission(about, environment=os.environ, jobs=Path(__file__).parent))
