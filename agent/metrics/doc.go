// Package metrics: measurements of this host.
package metrics
