// The runs: files with several jobs. One run shows which job waits for which.

import { el, put, svg, sync, table } from "./dom.js";
import { get, post } from "./api.js";
import { t } from "./text.js";
import { ago, alertBox, facts, guard, moment, running, span, state } from "./show.js";
import { stateOf } from "./builds.js";

const page = 50;
const states = ["succeeded", "failed", "cancelled", "skipped", "running", "handed", "queued", "waiting"];

const tight = { number: "tight", name: "named", builds: "named", when: "tight", took: "tight" };
const triggers = { operator: "runs.by.operator", schedule: "runs.by.schedule", webhook: "runs.by.webhook" };

export const definitionAt = (project, name) => `#/definitions/${encodeURIComponent(project)}/${encodeURIComponent(name)}`;

const took = (x) => (x.startedAt ? (x.finishedAt ? span(x.finishedAt - x.startedAt) : running(x.startedAt)) : "");

// source is what started a run.
function source(r) {
	const by = t(triggers[r.trigger] || "runs.by.file");
	return r.definition ? [el("a", { href: definitionAt(r.project, r.definition) }, r.definition), " ", el("span", { class: "soft" }, by)] : el("span", { class: "soft" }, by);
}

// tally draws and says how many builds are in which state.
function tally(counts, all) {
	const w = 160, found = states.filter((s) => counts[s]);
	let at = 0;
	return el("span", { class: "times" }, svg("svg", { viewBox: `0 0 ${w} 8`, width: w, height: 8, "aria-hidden": "true" }, svg("rect", { width: w, height: 8, rx: 2, class: "groove" }),
		found.map((s) => {
			const width = (counts[s] / all) * w;
			at += width;
			return svg("rect", { x: at - width, width, height: 8, class: "part " + s });
		})), el("span", { class: "soft" }, found.map((s) => t("runs.count", counts[s], t("state." + s))).join(", ")));
}

// runTable shows runs in box.
export function runTable(box, list, label) {
	const tab = box.tab ||= table(label, ["number", "name", "state", "builds", "by", "when", "took"].map((name) => ({ title: t("runs." + name), class: tight[name] })));
	if (box.firstChild !== tab.node) box.replaceChildren(tab.node);
	sync(tab.body, list, (r) => r.id, (r) => tab.row([
		el("a", { href: "#/runs/" + r.number }, "#" + r.number), el("a", { href: "#/runs/" + r.number, class: "strong" }, r.name),
		[state(stateOf(r)), r.message ? el("small", { class: "why" }, r.message) : null], tally(r.counts, r.builds), source(r),
		ago(r.createdAt), r.finishedAt ? span(r.finishedAt - r.createdAt) : running(r.createdAt)]));
}

export function list(root, app) {
	let before = 0, last = 0;
	const box = el("div"), none = el("div", { hidden: true });
	const newest = el("button", { type: "button", onclick: () => { before = 0; app.look(); } }, t("newer"));
	const older = el("button", { type: "button", onclick: () => { before = last; app.look(); } }, t("older"));
	root.append(el("div", { class: "title" }, el("h1", null, t("runs")), app.may ? el("a", { class: "button main", href: "#/submit/file" }, t("runs.new")) : null),
		box, el("div", { class: "pager" }, newest, older), none);
	return {
		async refresh() {
			const all = await get(`/page/runs?limit=${page}&before=${before}`);
			last = all.length ? all[all.length - 1].number : 0;
			const empty = !all.length && !before;
			box.hidden = !all.length;
			none.hidden = !empty;
			if (empty && !none.firstChild) {
				none.append(el("div", { class: "empty" }, el("p", null, t("runs.none"), " ", app.may ? el("a", { href: "#/submit/file" }, t("runs.first")) : null)));
			}
			if (all.length) runTable(box, all, t("runs"));
			newest.hidden = !before;
			older.hidden = all.length < page || last <= 1;
		},
	};
}

// lanes sorts the jobs of a run into columns: each stands behind all that it waits for.
function lanes(jobs) {
	const groups = new Map();
	for (const j of jobs) {
		if (!groups.has(j.job)) groups.set(j.job, { job: j.job, needs: j.needs || [], always: !!j.always, cells: [] });
		groups.get(j.job).cells.push({ number: j.number, name: j.name, matrix: j.matrix, state: j.state, message: j.message, startedAt: j.startedAt, finishedAt: j.finishedAt });
	}
	const depth = new Map();
	const deep = (name) => {
		if (!depth.has(name)) {
			depth.set(name, 0); // the controller lets no circle in
			depth.set(name, Math.max(0, ...groups.get(name).needs.filter((n) => groups.has(n)).map((n) => deep(n) + 1)));
		}
		return depth.get(name);
	};
	const found = [];
	for (const group of groups.values()) (found[deep(group.job)] ||= []).push(group);
	return found.filter(Boolean);
}

const cellName = (c) => Object.entries(c.matrix || {}).map(([k, v]) => `${k}=${v}`).join(", ");

function card(g) {
	const one = g.cells.length === 1 && !g.cells[0].matrix;
	const counts = {};
	for (const c of g.cells) counts[c.state] = (counts[c.state] || 0) + 1;
	return el("li", { class: "job" }, el("h3", null, one ? el("a", { href: "#/builds/" + g.cells[0].number }, g.job) : g.job, " ", one ? [state(g.cells[0].state), " ", el("small", null, took(g.cells[0]))] : null),
		g.needs.length ? el("p", { class: "soft needs" }, t("runs.needs", g.needs.join(", ")), g.always ? " " + t("runs.always") : "") : null,
		one ? g.cells[0].message && el("p", { class: "why" }, g.cells[0].message) : [tally(counts, g.cells.length),
			el("ul", { class: "cells" }, g.cells.map((c) => el("li", null, el("a", { href: "#/builds/" + c.number }, cellName(c)), " ", state(c.state), " ", el("small", null, took(c)),
				c.message ? el("p", { class: "why" }, c.message) : null)))]);
}

// graph shows jobs in columns, and lines to those that wait for them: where a job waits for two of which one waits for the
// other, there is one line. Narrow screens have none: each job says what it needs.
function graph() {
	const lines = svg("svg", { class: "edges", "aria-hidden": "true" }), columns = el("ol", { class: "lanes" }), inner = el("div", { class: "graph" }, lines, columns);
	const node = el("div", { class: "graph-frame", tabindex: "0", role: "group", "aria-label": t("runs.jobs") }, inner);
	let edges = [];
	const draw = () => {
		const at = inner.getBoundingClientRect(), cards = new Map(), lanes = [...columns.children].map((n) => n.getBoundingClientRect());
		[...columns.children].forEach((lane, i) => lane.querySelectorAll(".job").forEach((n) => cards.set(n.syncKey, { lane: i, box: n.getBoundingClientRect() })));
		const curve = (x1, y1, x2, y2) => `C${(x1 + x2) / 2} ${y1} ${(x1 + x2) / 2} ${y2} ${x2} ${y2}`;
		let around = 0;
		lines.replaceChildren(...edges.slice(0, 1000).flatMap(([from, to, kind]) => {
			const a = cards.get(from), b = cards.get(to);
			if (!a || !b || a.box.right > b.box.left) return [];
			const x1 = a.box.right - at.left, y1 = a.box.top + 22 - at.top, x2 = b.box.left - at.left, y2 = b.box.top + 22 - at.top;
			const between = lanes.slice(a.lane + 1, b.lane);
			if (!between.length) return [svg("path", { d: `M${x1} ${y1}` + curve(x1, y1, x2, y2), class: "edge " + kind })];
			const under = Math.max(...between.map((r) => r.bottom)) - at.top + 8 + 4 * (around++ % 4), in1 = between[0].left - at.left, in2 = between.at(-1).right - at.left;
			return [svg("path", { d: `M${x1} ${y1}${curve(x1, y1, in1, under)}H${in2}${curve(in2, under, x2, y2)}`, class: "edge " + kind })];
		}));
	};
	const watch = new ResizeObserver(draw);
	watch.observe(inner);
	return { node, draw, stop: () => watch.disconnect(), show(jobs) {
		const found = lanes(jobs), groups = new Map(found.flat().map((g) => [g.job, g]));
		const before = new Map(); // all that a job waits for, directly or not
		for (const g of found.flat()) before.set(g.job, new Set(g.needs.flatMap((n) => [n, ...(before.get(n) || [])])));
		edges = found.flat().flatMap((g) => g.needs.filter((need) => !g.needs.some((n) => n !== need && before.get(n)?.has(need))).map((need) => {
			const all = groups.get(need)?.cells || [];
			return [need, g.job, all.every((c) => c.state === "succeeded") ? "good" : all.some((c) => ["failed", "cancelled", "skipped"].includes(c.state)) ? "bad" : ""];
		}));
		while (columns.children.length > found.length) columns.lastChild.remove();
		found.forEach((groups, i) => {
			if (!columns.children[i]) columns.append(el("li", null, el("ul", { class: "lane" })));
			sync(columns.children[i].firstChild, groups, (g) => g.job, card);
		});
		draw();
	} };
}

export function one(root, app, id) {
	const head = el("div", { class: "title" }, el("h1", null, t("runs.title", id))), why = el("div"), about = el("div"), wrong = alertBox(), jobs = graph();
	let current = null;
	const cancel = el("button", { type: "button", class: "danger", hidden: true, onclick: guard(wrong, async () => {
		if (!confirm(t("runs.sure", current.number))) return;
		show(await post(`/page/api/runs/${encodeURIComponent(current.id)}/cancel`));
	}) }, t("build.cancel"));
	const rerun = el("button", { type: "button", hidden: true, onclick: guard(wrong, async () => {
		app.go("#/runs/" + (await post(`/page/api/runs/${encodeURIComponent(current.id)}/rerun`)).number);
	}) }, t("build.rerun"));
	const edit = el("a", { class: "button", hidden: true }, t("build.edit"));
	root.append(head, el("div", { class: "actions" }, cancel, rerun, edit), wrong, why, about, el("h2", null, t("runs.jobs")), jobs.node);

	function show(r) {
		current = r;
		put(head, [r.number, r.name, stateOf(r)], () => el("h1", null, t("runs.title", r.number), " ", r.name, " ", state(stateOf(r))));
		cancel.hidden = !app.may || !!r.finishedAt;
		cancel.disabled = !!r.cancelRequested;
		rerun.hidden = edit.hidden = !app.may;
		edit.href = "#/submit/run/" + r.number;
		put(why, r.message || "", () => (r.message ? el("p", { class: r.state === "failed" ? "bad" : "soft" }, r.message) : el("div")));
		put(about, [r.createdAt, r.finishedAt], () => facts([t("runs.by"), source(r)], [t("build.project"), r.project], [t("runs.when"), moment(r.createdAt)],
			[t("build.ended"), moment(r.finishedAt)], [t("runs.took"), r.finishedAt ? span(r.finishedAt - r.createdAt) : running(r.createdAt)],
			[t("runs.of"), r.rerunOf && el("a", { href: "#/runs/" + encodeURIComponent(r.rerunOf) }, t("runs.before"))]));
		jobs.show(r.jobs);
	}

	return {
		async refresh() {
			if (!current?.finishedAt) show(await get("/page/api/runs/" + encodeURIComponent(id)));
		},
		shown: () => jobs.draw(),
		stop: () => jobs.stop(),
	};
}
