// Package metrics: measurements of this host.
//
// A [Collector] reads them by gopsutil, starting no program and walking over no list of processes: a minute's sample
// costs a few milliseconds. They have telegraf's names and fields, because that is what the original agents send
// (protocol §1.6.13); [Mapped] gives them the names that the newer generation uses. [JSON] and [Lines] encode them.
//
// Projects whose id does not begin with "git_" get JSON at agents/metrics. The others get line protocol, at
// agents/metrix (ask generation) or agents/metrix/write (seed generation). Who sends, and when, is package agent's
// business. No metric ever carries the agent's secret (weakness W-34).
package metrics
