"""The one exception that means "the input is wrong", as opposed to "the program is wrong"; and the check of a field."""


class InputError(Exception):
    """Something the user gave cannot be used: a path, a file's content, an option.

    The message is one line that says what is wrong, where (file, image id, field) and what to do about it. The
    command line prints that line and exits with code 2; it shows a traceback only under `--debug`.
    """


def require(condition: bool, name: str, value: object, accepted: str) -> None:
    """Raises InputError naming the field, its value and what would be accepted, unless `condition` holds."""
    if not condition:
        raise InputError(f"{name} = {value!r} is not accepted; it must be {accepted}")
