"""``python -m fluxor_fast.service grant EMAIL ROLE``: give a user a role.

The database is that of ``DATABASE_URL``. Exit code 0 when the user has the role, 1 when there is
no such user or the database cannot be asked, 2 when called in another way.
"""

from __future__ import annotations

import os
import sys

import psycopg

from fluxor_fast.db.connection import reason
from fluxor_fast.service.accounts import grant_role

USAGE = "usage: DATABASE_URL=postgresql://… python -m fluxor_fast.service grant EMAIL ROLE"


def main(arguments: list[str]) -> int:
    """Run the command and return the exit code; what went wrong goes to standard error."""
    url = os.environ.get("DATABASE_URL")
    if len(arguments) != 3 or arguments[0] != "grant" or not url:
        print(USAGE, file=sys.stderr)
        return 2
    _, email, role = arguments
    try:
        found = grant_role(url, email, role)
    except psycopg.ProgrammingError as error:
        # without an SQLSTATE it is about the URL, and may quote the password in it
        what = reason(error) if error.sqlstate else "DATABASE_URL is not a PostgreSQL URL"
        print(what, file=sys.stderr)
        return 1
    except psycopg.Error as error:
        print(reason(error), file=sys.stderr)
        return 1
    if not found:
        print(f"there is no user {email}", file=sys.stderr)
        return 1
    print(f"{email} has the role {role} from the next login on")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
