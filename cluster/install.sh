#!/usr/bin/env bash
# What the image installs, for any other machine too:
#   install.sh packages cuda|cpu VENV   the locked packages, in a virtual environment that is made if absent
#   install.sh project VENV             msrcnn itself, from this tree
# Two steps, so that a change of the program leaves the image's large layer as it is.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

usage() {
    sed -n '2,4s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
}

packages() {
    local variant=$1 venv=$2
    [[ -x $venv/bin/python ]] || "${PYTHON:-python3}" -m venv "$venv"
    [[ -x $venv/bin/uv ]] || "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-cache-dir uv
    # Its own uv is not in the lock, so not `sync`, which would take it away.
    locked "$variant" | "$venv/bin/uv" pip install --quiet --no-deps --compile-bytecode --python "$venv/bin/python" \
        $([[ $variant == cpu ]] && echo "--torch-backend cpu") --requirements -
    "$venv/bin/uv" pip check --quiet --python "$venv/bin/python"
}

# torch without CUDA has the same version, from another place; the libraries that the one with CUDA stands on are left
# out.
locked() {
    if [[ $1 == cpu ]]; then
        grep -vE '^(nvidia|cuda)-|^triton==' "$root/cluster/requirements.lock"
    else
        cat "$root/cluster/requirements.lock"
    fi
}

project() {
    # The locked setuptools builds it: nothing is fetched, and no package changes.
    "$1/bin/uv" pip install --quiet --no-deps --no-build-isolation --python "$1/bin/python" --compile-bytecode "$root"
}

case "$#-${1:-}-${2:-}" in
    3-packages-cuda | 3-packages-cpu) packages "$2" "$3" ;;
    2-project-*) project "$2" ;;
    *) usage ;;
esac
