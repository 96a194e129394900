"""The one exception that means "the input is wrong", as opposed to "the program is wrong"."""


class InputError(Exception):
    """Something the user gave cannot be used: a path, a file's content, an option.

    The message is one line that says what is wrong, where (file, image id, field) and what to do about it. The
    command line prints that line and exits with code 2; it shows a traceback only under `--debug`.
    """
