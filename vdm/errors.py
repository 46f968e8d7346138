"""The exceptions of this package that are not bugs; without torch, so that any program can name them."""


class TrainingDiverged(ArithmeticError):
    """A loss, the norm of its gradient, or a weight is no longer a finite number."""
