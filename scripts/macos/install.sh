#!/bin/sh
# Registers the agent of this directory with what keeps it running, and starts it. Arguments: "devopsAgent install --help".
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
	echo "install.sh: no devopsAgent in $home: unpack the whole archive there" >&2
	exit 1
fi
# What a browser downloaded may not run in the background.
! command -v xattr >/dev/null || xattr -dr com.apple.quarantine "$home" 2>/dev/null || :
exec "$home/devopsAgent" --home "$home" install "$@"
