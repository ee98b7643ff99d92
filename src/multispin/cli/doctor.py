def doctor() -> None:
    """Check this installation."""
