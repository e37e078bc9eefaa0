"""What Ray's libraries log, and others report better."""

import logging

_LEVELS = {
    "ray.data": logging.WARNING,
    "ray.train": logging.WARNING,
    "ray.tune": logging.WARNING,
    "ray.serve": logging.WARNING,
    "ray.widgets": logging.WARNING,
    # It warns that it may wait forever for a processor; it waits for what runs beside it.
    "ray.data.dataset": logging.ERROR,
    # Tracebacks of errors that jobs report in one line, and what we set ourselves.
    "ray.data.exceptions": logging.CRITICAL,
    "ray.data._internal.execution.streaming_executor_state": logging.CRITICAL,
    "ray.data._internal.progress": logging.CRITICAL,
}


def quiet() -> None:
    """Silence Ray's libraries in this process, but for warnings of something that is not ours."""
    for name, level in _LEVELS.items():
        logging.getLogger(name).setLevel(level)
