// Package worker: a native worker: the session of one build, its script steps, its log.
package worker
