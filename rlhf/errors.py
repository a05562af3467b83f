"""Errors by which a run ends in good order."""


class InputError(ValueError):
    """Bad input: the message says what was given, what is needed and what to do.

    Recipes print the message without a traceback and exit with status 2; nothing has been changed on disk.
    """


class NonFiniteError(RuntimeError):
    """A number that training depends on is NaN or infinite; the message names the tensor and the samples."""


class DiskError(OSError):
    """The disk under a run's folder refused: the message says where, why, what is kept and how to go on.

    Recipes print the message without a traceback and exit with status 4.
    """
