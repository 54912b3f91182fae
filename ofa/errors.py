"""The base of every error that a user can cause.

The command line turns it into one line on stderr and its exit code; anything else that is raised is a bug and shows a
traceback. Subclasses live beside the code that raises them.
"""


class OfaError(ValueError):
    """What went wrong, the value, what was expected and the way out, in one line."""

    exit_code = 1
    told = False  # another process of the same training has said it already
