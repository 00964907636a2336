"""Passwords in URIs, which are shown as ***."""

from __future__ import annotations

import re
import sys
import traceback
from types import TracebackType
from urllib.parse import unquote

HIDDEN = "***"
SECRET = re.compile(r"pass|pwd|token|secret|key|cred|auth|sig|odbc_connect", re.IGNORECASE)
"""In the name of a query's value that is not shown."""
LOGINS = (
    # A password ends at the last @, because people forget to encode an @ and a / in it. What reads
    # as the port of a server is none.
    r"^((?!sqlite\b)(?:[a-z][\w+.-]*:/*)?[^:/?#@]*:)(?!\d*(?:[/?#]|$)).+(?=@)",
    # A token stands before a server without a colon, or before an empty password; what stands there
    # before a database is a user.
    r"^((?!sqlite\b|postgres|mysql|mssql)(?:[a-z][\w+.-]*:/*)?)[^:/?#]+:?(?=@)",
)
"""Patterns of URIs with a login: what is shown, and then what is not."""


def hide_password(uri: str) -> str:
    """A URI without its passwords: that of its login, a login that is a token, and any credential
    in its query."""
    for login in LOGINS:
        uri = re.sub(login, rf"\1{HIDDEN}", uri, count=1, flags=re.IGNORECASE | re.DOTALL)
    return re.sub(r"([?&])([^=&?]+)=([^&]+)", _hide_value, uri)


def _hide_value(match: re.Match[str]) -> str:
    mark, name, _ = match.groups()
    return f"{mark}{name}={HIDDEN}" if SECRET.search(unquote(name)) else match[0]


def hide_passwords(text: str) -> str:
    """A text without the passwords of the URIs in it, which end at a blank."""
    end = r"(?=[\"':;,.)\]}>]*(?:\s|$))"
    return re.sub(rf"[\w+.-]+:/\S+?{end}", lambda match: hide_password(match[0]), text)


def print_error(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Prints an uncaught error as Python does; MLflow's errors name the URI of a server."""
    told = "".join(traceback.format_exception(kind, error, trace))
    print(hide_passwords(told), end="", file=sys.stderr)
