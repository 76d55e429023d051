// Package agent: one running agent; it owns every loop.
package agent
