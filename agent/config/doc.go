// Package config: what the operator wrote (agent.toml) and what BK-CI wrote (.agent.properties): two files, one writer each.
package config
