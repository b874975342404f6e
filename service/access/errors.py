"""What can be wrong with a bearer token."""


class BadTokenError(Exception):
    """Nobody's token, or one that is good no longer; the message may be told to whoever sent it."""
