"""What must not be put into a job: everybody who can list a cluster's jobs reads their commands and variables."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import parse_qsl, urlsplit

from msrcnn.errors import InputError

SECRET_NAME = re.compile(
    r"(^|[_.-])(token|secret|secrets|pass|password|passwd|passphrase|pwd|credential|credentials|auth|authorization|"
    r"bearer|cookie|pat|sas|sig|signature|key)($|[_.-])|apikey|accesskey|secretkey|privatekey|authtoken|password",
    re.IGNORECASE,
)
"""Names of variables, options and parameters of URLs whose values are secrets."""
SECRET_VALUE = re.compile(
    r"\b(AKIA|ASIA)[0-9A-Z]{16}\b|\bgh[pousr]_[0-9A-Za-z]{20,}|\bhf_[0-9A-Za-z]{20,}|\bxox[abprs]-[0-9A-Za-z-]{10,}|"
    r"\bsk-[0-9A-Za-z_-]{20,}|\beyJ[0-9A-Za-z_-]{10,}\.eyJ|-----BEGIN [A-Z ]*PRIVATE KEY"
)
"""What secrets of well-known services look like."""
WHERE = (
    "a job's command and variables can be read by all who can list jobs; put it into the environment that Ray's nodes "
    "are started with (Kubernetes: the Secret msrcnn-credentials), see docs/cluster.md"
)


def in_url(text: str) -> str:
    """What makes a URL in `text` secret, in words; empty if nothing does."""
    for url in re.findall(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s,'\"]+", text):
        parts = urlsplit(url)
        if "@" in parts.netloc:
            return "a user's name or password in its URL"
        for name, _ in parse_qsl(parts.query, keep_blank_values=True):
            if SECRET_NAME.search(_words(name)):
                return f"'{name}' in its URL"
    return ""


def without_password(text: str) -> str:
    """A text without the names and passwords that URLs in it may hold."""
    return re.sub(r"://[^/@\s]*@", "://", text)


def check_variable(name: str, value: str) -> None:
    """Refuses a variable whose name or value says that it is a secret.

    Raises:
        InputError: naming the variable, never its value.
    """
    if SECRET_NAME.search(name):
        raise InputError(f"--env {name}: is not forwarded, by its name it is a secret: {WHERE}")
    if found := in_url(value) or ("what looks like a secret" if SECRET_VALUE.search(value) else ""):
        raise InputError(f"--env {name}: is not forwarded, it has {found}: {WHERE}")


def check_command(arguments: Iterable[str]) -> None:
    """Refuses a command with a secret in it.

    Raises:
        InputError: naming the option before it, never its value.
    """
    option = ""
    for argument in arguments:
        if argument.startswith("--"):
            option = argument.partition("=")[0]
        if found := in_url(argument) or ("what looks like a secret" if SECRET_VALUE.search(argument) else ""):
            raise InputError(f"{option or 'the command'}: is not submitted, it has {found}: {WHERE}")


def _words(name: str) -> str:
    """AccessKey as Access_Key: a name's words apart, as those of variables are."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
