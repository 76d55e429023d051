// One build: its steps, and its log while it grows.

import { el, put, sync } from "./dom.js";
import { events, get, post } from "./api.js";
import { Log } from "./log.js";
import { t } from "./text.js";
import { alertBox, facts, guard, labels, moment, running, span, state } from "./show.js";
import { stateOf } from "./builds.js";
import { artifacts } from "./artifacts.js";

const took = (s) => (s.startedAt ? (s.finishedAt ? span(s.finishedAt - s.startedAt) : running(s.startedAt)) : "");

export function one(root, app, id) {
	const head = el("div", { class: "title" }, el("h1", null, "#" + id)), about = el("div"), why = el("div"), steps = el("ol", { class: "steps" }), saved = el("div"), more = el("div");
	const log = new Log(), wrong = alertBox(), over = new AbortController();
	const cancel = el("button", { type: "button", class: "danger", hidden: true, onclick: guard(wrong, async () => {
		if (!confirm(t("build.sure", "#" + current.number))) return;
		show(await post(`/page/api/builds/${encodeURIComponent(current.id)}/cancel`));
	}) }, t("build.cancel"));
	const rerun = el("button", { type: "button", hidden: true, onclick: guard(wrong, async () => {
		if (current.run) { // a job is nothing without the others
			const run = await post(`/page/api/runs/${encodeURIComponent(current.run)}/rerun`);
			app.go("#/builds/" + (run.jobs.find((j) => j.job === current.job) || run.jobs[0]).number);
			return;
		}
		const b = await post(`/page/api/builds/${encodeURIComponent(current.id)}/rerun`);
		app.go("#/builds/" + b.number);
	}) }, t("build.rerun"));
	const edit = el("a", { class: "button", hidden: true }, t("build.edit"));
	const download = el("a", { class: "button", download: true }, t("build.download"));
	const gone = el("p", { class: "soft", hidden: true });
	root.append(head, el("div", { class: "actions" }, cancel, rerun, edit, download), wrong, why, about,
		el("h2", null, t("build.steps")), steps, saved, el("h2", null, t("build.log")), gone, log.node, more);
	let current = null, following = false;

	function show(b) {
		current = b;
		log.live = !b.finishedAt;
		put(head, [b.number, b.name, stateOf(b)], () => el("h1", null, "#" + b.number + " " + b.name + " ", state(stateOf(b))));
		cancel.hidden = !app.may || !!b.finishedAt;
		cancel.disabled = !!b.cancelRequested;
		rerun.hidden = !app.may;
		rerun.textContent = t(b.run ? "build.rerunrun" : "build.rerun", b.runNumber);
		edit.hidden = !app.may || !!b.run;
		edit.href = "#/submit/" + b.number;
		download.href = `/page/builds/${b.number}/log.txt`;
		put(why, [b.message, b.report], () => el("div", null, b.message ? el("p", { class: b.state === "failed" ? "bad" : "soft" }, b.message) : null,
			b.report && b.report.message && b.state !== "succeeded" && !(b.message || "").includes(b.report.message) ? el("p", { class: "soft" }, t("build.said") + ": " + b.report.message) : null));
		put(about, [b.agent, b.startedAt, b.finishedAt, b.labels, b.handOuts], () => facts(
			[t("build.agent"), b.agent && b.state !== "queued" && el("a", { href: "#/agents/" + encodeURIComponent(b.agent) }, b.agentHost || b.agent)],
			[t("build.run"), b.run && el("a", { href: "#/runs/" + b.runNumber }, `${b.runNumber}: ${b.job}`)], [t("build.matrix"), b.matrix && labels(Object.entries(b.matrix).map(([k, v]) => `${k}=${v}`))],
			[t("build.labels"), labels(b.labels)], [t("build.project"), b.project], [t("build.when"), moment(b.queuedAt)],
			[t("build.started"), moment(b.startedAt)], [t("build.ended"), b.finishedAt ? [moment(b.finishedAt), b.startedAt ? ` (${span(b.finishedAt - b.startedAt)})` : ""] : ""],
			[t("build.handouts"), b.handOuts > 1 && String(b.handOuts)]));
		sync(steps, b.steps, (s) => s.task, (s) => el("li", null, el("button", { type: "button", class: "step", title: t("build.toLog"), onclick: () => log.toStep(s.task) },
			state(s.state), " ", el("span", { class: "strong" }, s.name), " ", el("span", { class: "soft" }, took(s))),
		s.progress > 0 && s.progress < 1 ? el("progress", { max: 1, value: s.progress, "aria-label": s.name }) : null,
		s.message && s.state !== "succeeded" ? el("p", { class: "why" }, s.message) : null));
		put(saved, [b.number, b.artifacts], () => artifacts(b));
		put(more, b.variables || {}, () => {
			const list = Object.entries(b.variables || {}).sort(([x], [y]) => (x < y ? -1 : 1));
			return list.length ? el("details", null, el("summary", null, t("build.variables")), facts(...list)) : el("div");
		});
	}

	// follow shows what comes until the build is over, also when the controller is restarted meanwhile.
	async function follow() {
		if (following) return;
		following = true;
		while (!over.signal.aborted) {
			try {
				await events(id, log.last(), over.signal, (list) => {
					const lines = list.filter((e) => e.line && e.line.seq > log.last()).map((e) => e.line);
					if (lines.length) log.append(lines);
					for (const e of list) if (e.build) show(e.build);
				});
				if (current?.finishedAt) {
					gone.textContent = current.logGone ? t("build.gone") : t("build.nolog");
					gone.hidden = log.lines.length > 0;
					break;
				}
			} catch (err) {
				if (over.signal.aborted) return;
				if (err.code === 401) {
					dispatchEvent(new Event("signed-out"));
					return;
				}
				if (err.code === 404) return;
			}
			await new Promise((go) => setTimeout(go, 1000));
		}
	}

	return {
		async refresh() {
			if (current && (following || current.finishedAt && current.report)) return;
			const got = await get("/page/builds/" + encodeURIComponent(id));
			show(got.build);
			follow();
		},
		stop() {
			over.abort();
			log.stop();
		},
	};
}
