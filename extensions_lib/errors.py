"""The errors whose text is meant for the person at the screen."""


class CrucibleError(Exception):
    """A refusal in one clear sentence: what, where, and what to do about it."""


class FileProblem(CrucibleError):
    """A file that cannot be read, written or understood."""


class NetworkProblem(CrucibleError):
    """A network that is missing or does not fit the loaded model."""


class Stopped(CrucibleError):
    """The person pressed Stop."""
