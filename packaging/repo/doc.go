// Package repo: signed apt and yum repositories as static files.
//
// Both are in one directory and have one address. [Repository.Publish] adds packages, and what was published last, as its
// signatures prove, is all that it believes about the directory: there is no data base beside it.
//
//	pool/main/d/devops-agent/…                              the packages of both
//	dists/stable/{InRelease,Release,Release.gpg}            apt
//	dists/stable/main/binary-amd64/Packages{,.gz,.xz}       the same files below by-hash/SHA256/
//	repodata/{repomd.xml,repomd.xml.asc,SUM-primary.xml.gz} yum, dnf, zypper
//	devops-agent.{gpg,asc,sources,repo}                     what a machine needs to use them
package repo
