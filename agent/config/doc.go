// Package config: what the operator wrote (agent.toml) and what BK-CI wrote (.agent.properties): two files, one writer each.
//
// [LoadConfig] reads agent.toml, which no program writes. [Open] reads .agent.properties (protocol §2.2) and becomes
// its only writer. The [Settings] of a [Store] are both together: agent.toml wins, and Overrides says where.
package config
