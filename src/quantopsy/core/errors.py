"""The one exception a user is meant to see, and what others say in it."""


def first_line(error: BaseException) -> str:
    """What an error of others says, in a line of at most 200 characters; its type where it says nothing."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]


class QuantopsyError(Exception):
    """A mistake that the user can mend, in one line: the thing, the reason, the remedy.

    The command line prints it without a traceback and exits with 2.
    """

    def __init__(self, thing: str, reason: str, remedy: str) -> None:
        self.thing, self.reason, self.remedy = thing, reason, remedy
        super().__init__(" ".join(f"{thing}: {reason}; {remedy}".split()))

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        # What an exception is pickled with is its message; this one is made of three.
        return type(self), (self.thing, self.reason, self.remedy)
