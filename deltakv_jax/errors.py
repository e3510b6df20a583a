"""The one exception that means "the input is wrong", as opposed to "the program is"."""


class UserError(ValueError):
    """Bad input: one line that names the thing and says what would be right.

    The command line prints it on stderr without a traceback and exits with status 2.
    """
