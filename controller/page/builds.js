// The builds: what waits and runs, and what is over, with their times drawn to one scale.

import { el, svg, sync, table } from "./dom.js";
import { get } from "./api.js";
import { t } from "./text.js";
import { ago, labels, now, running, span, state } from "./show.js";

const page = 50;

export const stateOf = (b) => (b.cancelRequested && !b.finishedAt ? "cancelling" : b.state);

// bar draws how long a build waited and ran; full is the longest of all that are shown, in ms.
function bar(b, full) {
	const w = 160, waited = (b.startedAt || b.finishedAt || now()) - b.queuedAt, ran = b.startedAt ? (b.finishedAt || now()) - b.startedAt : 0;
	const scale = (ms) => Math.max(ms > 0 ? 1 : 0, (ms / full) * w);
	const texts = [];
	if (waited > 0) texts.push([t("builds.waited", ""), b.startedAt || b.finishedAt ? span(waited) : running(b.queuedAt)]);
	if (b.startedAt) texts.push([t("builds.ran", ""), b.finishedAt ? span(ran) : running(b.startedAt)]);
	return el("span", { class: "times" }, svg("svg", { viewBox: `0 0 ${w} 8`, width: w, height: 8, "aria-hidden": "true" },
		svg("rect", { width: w, height: 8, rx: 2, class: "groove" }), svg("rect", { width: Math.min(w, scale(waited)), height: 8, class: "waited" }),
		svg("rect", { x: Math.min(w, scale(waited)), width: Math.max(0, Math.min(w - scale(waited), scale(ran))), height: 8, class: "ran " + b.state })),
	el("span", { class: "soft" }, texts.map(([what, node], i) => [i ? ", " : "", what, node])));
}

// buildTable shows builds in box.
export function buildTable(box, list, label) {
	let tab = box.tab;
	if (!tab) {
		tab = box.tab = table(label, ["number", "name", "state", "agent", "when", "time"].map((name) => ({ title: t(name === "time" ? "builds.time" : "build." + name) })));
		box.replaceChildren(tab.node);
	}
	if (box.firstChild !== tab.node) box.replaceChildren(tab.node);
	const full = Math.max(1000, ...list.map((b) => (b.finishedAt || now()) - b.queuedAt));
	sync(tab.body, list.map((b) => ({ id: b.id, number: b.number, name: b.name, state: stateOf(b), agent: b.agent, host: b.agentHost, labels: b.labels, message: b.message,
		queuedAt: b.queuedAt, startedAt: b.startedAt, finishedAt: b.finishedAt, full: b.finishedAt ? full : Math.floor(now() / 3000) })), (b) => b.id, (b) => tab.row([
		el("a", { href: "#/builds/" + b.number }, "#" + b.number), el("a", { href: "#/builds/" + b.number, class: "strong" }, b.name),
		[state(b.state), b.message && b.state === "failed" ? el("small", { class: "why" }, b.message) : null],
		b.agent && b.state !== "queued" ? el("a", { href: "#/agents/" + encodeURIComponent(b.agent) }, b.host || b.agent) : b.labels?.length ? el("span", { class: "soft" }, t("builds.needs", ""), labels(b.labels)) : "",
		ago(b.queuedAt), bar({ ...b, state: b.state }, full)]));
}

export function list(root, app) {
	let before = 0;
	const count = el("small"), active = el("div"), idle = el("p", { class: "soft" }, t("builds.idle")), done = el("div"), none = el("div", { hidden: true });
	const newest = el("button", { type: "button", onclick: () => { before = 0; app.look(); } }, t("newer"));
	const older = el("button", { type: "button", onclick: () => { before = last; app.look(); } }, t("older"));
	const pager = el("div", { class: "pager" }, newest, older);
	const parts = el("div", null, el("h2", null, t("builds.active"), " ", count), active, idle, el("h2", null, t("builds.done")), done, pager);
	root.append(el("div", { class: "title" }, el("h1", null, t("builds")), app.may ? el("a", { class: "button main", href: "#/submit" }, t("submit")) : null), parts, none);
	let last = 0;
	return {
		async refresh() {
			const [live, all] = await Promise.all([get("/page/api/builds?active=true&limit=200"), get(`/page/api/builds?limit=${page}&before=${before}`)]);
			const over = all.filter((b) => b.finishedAt);
			last = all.length ? all[all.length - 1].number : 0;
			const empty = !live.length && !all.length && !before;
			parts.hidden = empty;
			none.hidden = !empty;
			if (empty && !none.firstChild) {
				none.append(el("div", { class: "empty" }, el("p", null, t("empty.build"), " ", app.may ? el("a", { href: "#/submit" }, t("empty.submit")) : null)));
			}
			count.textContent = live.length ? t("builds.queue", app.state.queued, app.state.running) : "";
			active.hidden = !live.length;
			idle.hidden = live.length > 0;
			if (live.length) buildTable(active, live, t("builds.active"));
			done.hidden = !over.length;
			if (over.length) buildTable(done, over, t("builds.done"));
			newest.hidden = !before;
			older.hidden = all.length < page || last <= 1;
		},
	};
}
