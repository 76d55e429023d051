#!/bin/sh
# Prints the version of this tree: the tag it is at. After v1.2.3 it is v1.2.4-dev.<commits since>, after v1.3.0-rc.1 it is
# v1.3.0-snapshot.<commits since>: newer than the tag and older than the release to come, so that an upgrade is one.
set -eu
cd "$(dirname "$0")/.."
if ! tag=$(git describe --tags --match 'v[0-9]*' --abbrev=0 2>/dev/null); then
	echo "v0.0.0-dev.$(git rev-list --count HEAD 2>/dev/null || echo 0)"
	exit
fi
since=$(git rev-list --count "$tag..HEAD")
if [ "$since" -eq 0 ]; then
	echo "$tag"
	exit
fi
case $tag in
*-*) echo "${tag%%-*}-snapshot.$since" ;;
*) echo "${tag%.*}.$((${tag##*.} + 1))-dev.$since" ;;
esac
