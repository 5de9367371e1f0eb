"""The host side: collecting frames, the training loop, and scenes for the racing agents."""
