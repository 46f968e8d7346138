"""The exceptions of this package that are not bugs; without torch, so that a program can always name them."""


class CheckpointError(ValueError):
    """A model or a training state is missing, damaged, or not what it claims to be."""


class TrainingDiverged(ArithmeticError):
    """The loss, or the norm of its gradient, is no longer a finite number."""
