#!/bin/sh
# Installs what the tests need beside Go, on Debian and as root: a C compiler for the race detector, a JDK for the test
# worker, a second reader of property lists, a judge of shell scripts, zip for "make dist", minisign and gpg, which must take our
# signatures, createrepo_c, which must describe packages as we do, rpm, which must take
# the signatures in them, other readers of packages for macOS (lab/pkg-check) and for Windows, and what signs those. Anywhere else it says what is missing; the tests
# then say what they leave out.
set -eu
missing=
command -v gcc >/dev/null 2>&1 || missing="$missing gcc libc6-dev"
command -v javac >/dev/null 2>&1 || missing="$missing openjdk-17-jdk-headless"
command -v plistutil >/dev/null 2>&1 || missing="$missing libplist-utils"
command -v shellcheck >/dev/null 2>&1 || missing="$missing shellcheck"
command -v zip >/dev/null 2>&1 || missing="$missing zip"
command -v unzip >/dev/null 2>&1 || missing="$missing unzip"
command -v curl >/dev/null 2>&1 || missing="$missing curl"
command -v minisign >/dev/null 2>&1 || missing="$missing minisign"
command -v gpg >/dev/null 2>&1 || missing="$missing gpg gpg-agent"
command -v gpgv >/dev/null 2>&1 || missing="$missing gpgv"
command -v rpm >/dev/null 2>&1 || missing="$missing rpm"
command -v createrepo_c >/dev/null 2>&1 || missing="$missing createrepo-c"
command -v bsdtar >/dev/null 2>&1 || missing="$missing libarchive-tools"
command -v 7z >/dev/null 2>&1 || missing="$missing p7zip-full"
command -v msiinfo >/dev/null 2>&1 || missing="$missing msitools"
command -v osslsigncode >/dev/null 2>&1 || missing="$missing osslsigncode"
command -v openssl >/dev/null 2>&1 || missing="$missing openssl"
command -v cpio >/dev/null 2>&1 || missing="$missing cpio"
python3 -c 'import plistlib' >/dev/null 2>&1 || missing="$missing python3"
[ -n "$missing" ] || exit 0
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null 2>&1; then
	echo "installing:$missing"
	export DEBIAN_FRONTEND=noninteractive
	# shellcheck disable=SC2086
	apt-get install -y -qq --no-install-recommends $missing >/dev/null 2>&1 || {
		apt-get update -qq
		apt-get install -y -qq --no-install-recommends $missing >/dev/null
	}
else
	echo "not installed (needs root on Debian):$missing"
fi
