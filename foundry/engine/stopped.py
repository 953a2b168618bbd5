"""What a stage raises when it was asked to stop. In a file of its own, because to say so needs no torch."""


class Stopped(Exception):
    """The run was asked to stop; a checkpoint is written and the workspace can be resumed."""
