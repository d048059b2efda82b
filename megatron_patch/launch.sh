# shellcheck shell=sh
# What the documented scripts share; sourced by them, never run. A script sets patch_root, this project's root, and calls
#   check_count COUNT "$@"               before it names its arguments,
#   use_checkout "$MEGATRON_PATCH_PATH"  behind them, where there is one, and
#   python_entry MODULE …                as its last line.

# Prints the argument list that stands in the script: the lines NAME=$1  # meaning.
print_usage() {
    printf 'Usage: sh %s ARGUMENT...\n\n' "$0"
    sed -n '/^[A-Za-z][A-Za-z0-9_]*=\$[0-9{]/p' "$0"
}

# check_count COUNT "$@": exits with status 2 unless COUNT arguments are there, and what follows them begins with --.
# --help as the first lists them, and the flags of what the script's last command starts.
check_count() {
    wanted=$1
    shift
    case ${1-} in
        --help | -h)
            shift
            # shellcheck disable=SC2046  # a module, and for some a word behind it
            (python_entry $(sed -n 's/^python_entry \([a-z_. ]*\) \\$/\1/p' "$0") --help "$@") && exit 0
            print_usage >&2
            exit 2
            ;;
    esac
    [ "$#" -ge "$wanted" ] || wrong_count "$@"
    [ "$#" -gt "$wanted" ] || return 0
    place=0
    for word in "$@"; do  # until the one behind the last argument
        [ "$place" -lt "$wanted" ] || break
        place=$((place + 1))
    done
    case $word in --*) return 0 ;; esac
    wrong_count "$@"
}

# The documented list, what is wrong with it and an example, from Python, which knows the user's language; where no Python can, the list
# and the count.
wrong_count() {
    (python_entry megatron_patch.arguments.usage "$0" "$@") >&2 && exit 2
    print_usage >&2
    printf '\n%s takes %s arguments and got %s.\n' "$0" "$wanted" "$#" >&2
    exit 2
}

# use_checkout MEGATRON_PATCH_PATH: the code of that checkout runs, as in the original, where it goes onto PYTHONPATH, and a line says
# so. A folder that does not hold this project is left to the Python entry, which names it among the other findings.
use_checkout() {
    [ -f "$1/megatron_patch/launch.sh" ] || return 0
    named=$(CDPATH='' cd -- "$1/megatron_patch" && pwd -P)
    own=$(CDPATH='' cd -- "$patch_root/megatron_patch" && pwd -P)
    [ "$named" != "$own" ] || return 0
    named=$(CDPATH='' cd -- "$1/." && pwd)
    printf "MEGATRON_PATCH_PATH names another checkout than this script's: the code of %s runs, not that of %s.\n" "$named" "$patch_root"
    patch_root=$named
}

# python_entry MODULE ARGUMENT...: becomes `python3 -m MODULE ARGUMENT...` with this project importable.
# PYTHON names another interpreter; without it, and without an activated environment, the checkout's own .venv serves, which make
# has made. A megatron_patch/ in the current folder, the original project's, is not taken for this one.
python_entry() {
    # shellcheck disable=SC2154
    case $patch_root in
        *:*)
            printf '%s: no Python can import from %s: PYTHONPATH ends at a colon; move that folder, or link to it.\n' \
                "$0" "$patch_root" >&2
            exit 2
            ;;
    esac
    own=$patch_root/.venv/bin/python
    if [ -z "${PYTHON:-}" ] && [ -z "${VIRTUAL_ENV:-}" ] && [ -x "$own" ]; then
        PYTHON=$own
    fi
    PYTHONPATH=$patch_root${PYTHONPATH:+:$PYTHONPATH}
    PYTHONSAFEPATH=1
    export PYTHONPATH PYTHONSAFEPATH
    check_installed "${PYTHON:-python3}"
    exec "${PYTHON:-python3}" -m "$@"
}

# Exits with status 2 where this interpreter is too old or too new, or lacks a library, as a system's own does. Debian's pip installs
# into virtual environments alone ("externally managed"), so the sentence makes one.
check_installed() {
    if ! command -v "$1" >/dev/null; then
        printf '%s: there is no %s; install Python 3.11, 3.12 or 3.13, or set PYTHON to one.\n' "$0" "$1" >&2
        exit 2
    fi
    missing=$("$1" -c 'import sys
import importlib.util
if not (3, 11) <= sys.version_info[:2] <= (3, 13):
    sys.exit("%s is Python %d.%d, and 3.11, 3.12 or 3.13 is needed: set PYTHON to one." % (sys.argv[1], *sys.version_info[:2]))
names = ("torch", "megatron", "jinja2", "numpy", "orjson", "psutil", "safetensors", "sentencepiece", "tensorboard", "tokenizers",
         "tqdm", "zstandard")
print(*(name for name in names if importlib.util.find_spec(name) is None))' "$1") || exit 2
    [ -n "$missing" ] || return 0
    printf '%s: %s has no %s; activate the environment that this project is installed in, set PYTHON to its python,\n' \
        "$0" "$1" "$missing" >&2
    printf 'or make one: %s -m venv %s && %s -m pip install %s\n' \
        "$1" "'$patch_root/.venv'" "'$patch_root/.venv/bin/python'" "'$patch_root'" >&2
    exit 2
}
