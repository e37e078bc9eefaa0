"""Every exception that distrib raises on purpose."""


class DistribError(Exception):
    """Base of the family; takes one message that says what, the value, where, and the remedy."""


class ConfigError(DistribError):
    """A run file, a setting or a combination of settings makes no sense."""


class DataError(DistribError):
    """A rating log, a prepared data set or a history cannot be used as it is."""


class CheckpointError(DistribError):
    """A run folder, checkpoint or bundle is absent, incomplete, altered or of another run."""


class DivergedError(DistribError):
    """Training produced a loss that is not finite."""
