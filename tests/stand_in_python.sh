#!/bin/sh
# Takes the interpreter's place in `<python> -m trainer.ray_entry <attempt dir>` and in `... --spare <dir> <ranks>`: runs
# the stand-in driver instead.
case "$1 $2 $#" in
  "-m trainer.ray_entry 3" | "-m trainer.ray_entry 5") ;;
  *) echo "unexpected command: $*"; exit 2 ;;
esac
shift 2
exec python3 -I "$(dirname "$0")/stand_in_driver.py" "$@"
