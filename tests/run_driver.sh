#!/bin/sh
# run_driver.sh PLACE COMMAND...: runs a driver for tests/file_launcher.py, which may be killed meanwhile. However often it
# is started for one place, one driver runs. Its process id, its output and its exit code lie in the place.
mkdir "$1" 2>/dev/null || exit 0
place=$1
shift
"$@" >"$place/output" 2>&1 &
driver=$!
echo $driver >"$place/aside" && mv "$place/aside" "$place/pid"
wait $driver
echo $? >"$place/aside" && mv "$place/aside" "$place/code"
