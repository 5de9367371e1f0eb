"""Errors meant for the person at the terminal."""


class UserError(Exception):
    """One clear message naming the setting and the remedy.

    Scripts print `error: <message>` and exit with code 2; no traceback is shown.
    """
