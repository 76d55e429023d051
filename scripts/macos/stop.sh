#!/bin/sh
# Stops the agent of this directory, when its builds have ended. Arguments: "devopsAgent stop --help".
set -eu
me=$0
while [ -L "$me" ]; do # called through a link: the agent lies where the script really is
	to=$(readlink -- "$me")
	case $to in
	/*) me=$to ;;
	*) me=$(dirname -- "$me")/$to ;;
	esac
done
home=$(CDPATH='' cd -- "$(dirname -- "$me")" && pwd -P)
if [ ! -x "$home/devopsAgent" ]; then
	echo "stop.sh: no devopsAgent in $home: unpack the whole archive there" >&2
	exit 1
fi
exec "$home/devopsAgent" --home "$home" stop "$@"
