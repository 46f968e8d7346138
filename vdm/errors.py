"""The exceptions of this package that are not bugs; without torch, so that any program can name them."""


class TrainingDiverged(ArithmeticError):
    """The loss, or the norm of its gradient, is no longer a finite number."""
