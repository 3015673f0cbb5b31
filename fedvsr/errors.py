"""The one exception that is the user's to mend."""


class UserError(ValueError):
    """A setting, file or request that cannot be met; the message names it and the way out.

    The command line prints the message alone and exits with 2. Every other exception is a fault of
    the program and exits with 1.
    """
