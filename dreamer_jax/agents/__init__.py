"""One file an algorithm; its config dataclass stands beside it."""
