#!/bin/sh
# Takes the interpreter's place in `<python> -m trainer.ray_entry <attempt dir>`: runs the stand-in driver instead.
[ "$1 $2 $#" = "-m trainer.ray_entry 3" ] || { echo "unexpected command: $*"; exit 2; }
exec python3 -I "$(dirname "$0")/stand_in_driver.py" "$3"
