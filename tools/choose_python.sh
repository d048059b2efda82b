#!/bin/sh
# Prints the interpreter that make takes: $1 where it is named; else python3 where it is a supported one, as an activated
# environment's is; else the newest supported python3.x there is, uv's included. Where there is none, says what to install, and ends
# with status 2.
set -eu

# Whether $1 is there and is Python 3.11, 3.12 or 3.13. pyenv has a python3.x for each that it could run, and may then not run it.
supported() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1
}

for name in ${1:+"$1"} python3 python3.13 python3.12 python3.11; do
    if supported "$name"; then
        command -v "$name"
        exit 0
    fi
    [ -z "${1-}" ] || break
done
if [ -z "${1-}" ] && found=$(uv python find '>=3.11,<3.14' 2>/dev/null) && supported "$found"; then
    printf '%s\n' "$found"
    exit 0
fi
name=${1:-python3}
here=$("$name" -V 2>/dev/null) || here="no $name"
{
    printf 'Python 3.11, 3.12 or 3.13 is needed; here is %s.\n' "$here"
    printf 'On Debian 12 and 13 and Ubuntu 24.04: apt-get install python3 python3-venv\n'
    printf 'Elsewhere: uv python install 3.13 (https://docs.astral.sh/uv/), then the same make command again,\n'
    printf 'or make PYTHON=/path/to/python3.13 ...\n'
} >&2
exit 2
