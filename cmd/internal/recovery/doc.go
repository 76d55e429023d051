// Package recovery: What a start of an agent does about upgrades: carry interrupted ones on, take over what a package brought, watch a new version.
package recovery
