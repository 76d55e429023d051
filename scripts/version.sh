#!/bin/sh
# Prints the version of this tree: the tag it is at, else <last tag or v0.0.0>-dev.<commits since>.
set -eu
cd "$(dirname "$0")/.."
if ! tag=$(git describe --tags --match 'v[0-9]*' --abbrev=0 2>/dev/null); then
	echo "v0.0.0-dev.$(git rev-list --count HEAD 2>/dev/null || echo 0)"
	exit
fi
since=$(git rev-list --count "$tag..HEAD")
if [ "$since" -eq 0 ]; then echo "$tag"; else echo "${tag%%-*}-dev.$since"; fi
