"""The one error that is the user's to mend."""


class InputError(ValueError):
    """Bad input: the message says what was given, what is needed and what to do.

    Recipes print the message without a traceback and exit with status 2; nothing has been changed on disk.
    """
