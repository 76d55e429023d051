// Package host: facts of this host that the protocol asks for: host name, OS name, OS version, IP, JDK and worker versions.
//
// Names and addresses are looked up when they are asked for; versions, which cost two starts of a Java machine, by a
// [Prober] in the background. Nothing here is ever worth waiting for.
package host
