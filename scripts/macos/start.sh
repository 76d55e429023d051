#!/bin/sh
# Starts the agent of this directory.
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
	echo "start.sh: no devopsAgent in $home: unpack the whole archive there" >&2
	exit 1
fi
exec "$home/devopsAgent" --home "$home" start "$@"
