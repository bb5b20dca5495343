#!/bin/sh
# Segments every scan in inputs/ beside this file into outputs/, whatever the current folder is.
# FLARE's command inside the container; the same on a host, after `make setup` or with dependencies of your own.
# More arguments go to the app, and later ones win:  sh predict.sh --input-dir scans --output-dir labels
# PYTHON chooses the interpreter; else .venv's if there is one, else python3.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
python=python3
if [ -x "$here/.venv/bin/python" ]; then
    python=$here/.venv/bin/python
fi

# -P and PYTHONPATH instead of `cd`: relative paths among the arguments keep their meaning, and a folder "app" in the
# current folder is not taken for this one.
PYTHONPATH=$here${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH
exec "${PYTHON:-$python}" -P -m app --input-dir "$here/inputs" --output-dir "$here/outputs" "$@"
