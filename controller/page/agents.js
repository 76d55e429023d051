// The agents: a table of all, and one with its builds and its past.

import { el, put, svg, sync, table } from "./dom.js";
import { get } from "./api.js";
import { t, tongue } from "./text.js";
import { ago, facts, labels, moment, state } from "./show.js";
import { firstMachine } from "./enrol.js";
import { buildTable } from "./builds.js";

const page = 100; // agents shown at once
const columns = [["name", "name"], ["state", "status"], ["version", "version"], ["system", "system"], ["load", "builds"], ["seen", "seen"], ["upgrade", ""]];

function load(a) {
	const share = a.places > 0 ? Math.min(1, (a.builds || 0) / a.places) : 0;
	const text = a.cpu === undefined ? t("agents.builds", a.builds || 0) : t("agents.count", a.builds || 0, a.cpu);
	return el("span", { class: "load" }, svg("svg", { viewBox: "0 0 40 6", width: 40, height: 6, "aria-hidden": "true" },
		svg("rect", { width: 40, height: 6, rx: 3, class: "groove" }), svg("rect", { width: 40 * (a.cpu === undefined ? share : a.cpu / 100), height: 6, rx: 3, class: "level" })), " ", text);
}

export function list(root, app) {
	let sort = "", down = false, offset = 0;
	const find = el("input", { type: "search", placeholder: t("agents.filter"), "aria-label": t("agents.filter"), oninput: () => { offset = 0; app.look(); } });
	const status = el("select", { "aria-label": t("agent.state"), onchange: () => { offset = 0; app.look(); } }, el("option", { value: "" }, t("agents.all")),
		["IMPORT_OK", "IMPORT_EXCEPTION", "UN_IMPORT"].map((s) => el("option", { value: s }, t("state." + s))));
	const buttons = columns.map(([name, by]) => (by ? el("button", { type: "button", class: "sort", onclick: () => {
		down = sort === by && !down;
		sort = by;
		offset = 0;
		app.look();
	} }, t("agent." + name)) : t("agent." + name)));
	const list = table(t("agents"), columns.map(([name], i) => ({ title: buttons[i], name: t("agent." + name) })));
	const by = el("select", { "aria-label": t("agents.sort"), onchange: () => { sort = by.value; offset = 0; app.look(); } }, el("option", { value: "" }, t("agents.sort")),
		columns.filter(([, by]) => by).map(([name, by]) => el("option", { value: by }, t("agents.by", t("agent." + name)))));
	const turn = el("button", { type: "button", "aria-label": t("agents.turn"), title: t("agents.turn"), onclick: () => { down = !down; offset = 0; app.look(); } }, "↑");
	const count = el("small");
	const none = el("p", { class: "soft", hidden: true }, t("agents.none"));
	const start = el("div");
	const tools = el("div", { class: "filter" }, find, status, el("span", { class: "narrow" }, by, turn)); // narrow screens have no row of columns to press
	const back = el("button", { type: "button", onclick: () => { offset = Math.max(0, offset - page); app.look(); } }, t("previous"));
	const on = el("button", { type: "button", onclick: () => { offset += page; app.look(); } }, t("next"));
	const range = el("span", { class: "soft" });
	const pager = el("div", { class: "pager" }, back, range, on);
	root.append(el("h1", null, t("agents"), " ", count), tools, list.node, none, pager, start);
	return {
		query: () => new URLSearchParams({ q: find.value, status: status.value, sort, down, offset, limit: page }).toString(),
		refresh() {
			const s = app.state;
			count.textContent = s.total ? t("agents.online", s.online, s.total) : "";
			tools.hidden = list.node.hidden = !s.total;
			none.hidden = !s.total || s.found > 0;
			list.node.hidden ||= !s.found;
			pager.hidden = s.found <= page;
			range.textContent = t("agents.more", Math.min(s.found, offset + 1), Math.min(s.found, offset + s.agents.length), s.found);
			back.disabled = offset === 0;
			on.disabled = offset + s.agents.length >= s.found;
			by.value = sort;
			turn.disabled = !sort;
			turn.textContent = down ? "↓" : "↑";
			turn.setAttribute("aria-pressed", String(down));
			[...list.head.children].forEach((th, i) => {
				if (columns[i][1] && columns[i][1] === sort) th.setAttribute("aria-sort", down ? "descending" : "ascending");
				else th.removeAttribute("aria-sort");
			});
			const names = s.agents.map((a) => a.hostName);
			const namesake = (a) => a.hostName && names.indexOf(a.hostName) !== names.lastIndexOf(a.hostName);
			sync(list.body, s.agents.map((a) => ({ ...a, namesake: namesake(a) })), (a) => a.id, (a) => list.row([
				[el("a", { href: "#/agents/" + encodeURIComponent(a.id) }, a.hostName || a.id, a.namesake ? [" ", el("small", null, a.id)] : ""), " ", labels(a.labels)],
				state(a.status), a.agentVersion || "", a.system, load(a), ago(a.seenAt),
				a.upgrade ? [el("a", { href: "#/upgrades/" + a.upgrade.rollout }, a.upgrade.version), " ", state(a.upgrade.state)] : ""]));
			if (s.total) start.replaceChildren();
			else if (!start.firstChild) start.append(firstMachine(app));
		},
	};
}

// chart draws two hours: bars for contacts, lines for shares in percent.
function chart(past, at) {
	const minutes = 120, w = 720, h = 120, base = 118;
	const end = Math.floor(at / 60000);
	const x = (m) => ((m.at / 60000 - end + minutes - 1) / minutes) * w;
	const shown = past.filter((m) => x(m) >= 0);
	const top = Math.max(4, ...shown.map((m) => m.calls)), most = Math.max(1, ...shown.map((m) => m.builds));
	const line = (value, name, high) => {
		let path = "", last = 0;
		for (const m of shown) {
			if (m[value] === undefined) continue;
			path += (path && m.at - last <= 120000 ? "L" : "M") + (x(m) + w / minutes / 2).toFixed(1) + " " + (base - (m[value] / high) * (base - 10)).toFixed(1);
			last = m.at;
		}
		return path ? svg("path", { d: path, class: "curve " + name }) : null;
	};
	const cpu = shown.findLast((m) => m.cpu !== undefined), memory = shown.findLast((m) => m.memory !== undefined);
	const keys = [["calls", t("agent.contacts"), shown.at(-1)?.calls], ["busy", t("agent.busy"), shown.at(-1)?.builds],
		["cpu", t("agent.cpu"), cpu && t("agent.percent", cpu.cpu)], ["memory", t("agent.memory"), memory && t("agent.percent", memory.memory)]].filter(([, , v]) => v !== undefined);
	const said = keys.map(([, name, v]) => `${name}: ${v}`).join(", ");
	return el("figure", { class: "chart" }, svg("svg", { viewBox: `0 0 ${w} ${h}`, preserveAspectRatio: "none", role: "img", "aria-label": t("agent.past") + ": " + said },
		[0, 0.5, 1].map((f) => svg("line", { x1: 0, x2: w, y1: base - f * (base - 10), y2: base - f * (base - 10), class: "grid" })),
		shown.map((m) => svg("rect", { x: x(m).toFixed(1), width: (w / minutes - 1).toFixed(1), y: (base - (m.calls / top) * 30).toFixed(1), height: ((m.calls / top) * 30).toFixed(1), class: "calls" })),
		line("builds", "busy", most), line("memory", "memory", 100), line("cpu", "cpu", 100)),
	el("div", { class: "axis soft", "aria-hidden": "true" }, [120, 90, 60, 30, 0].map((ago) => el("span", null, new Date(at - ago * 60000).toLocaleTimeString(tongue(), { hour: "2-digit", minute: "2-digit" })))),
	el("figcaption", null, keys.map(([name, text, v]) => el("span", { class: "key " + name }, text, " ", el("b", null, String(v)))), el("span", { class: "soft" }, t("agent.pastnote"))));
}

export function one(root, app, id) {
	const head = el("div", null, el("h1", null, id)), past = el("div"), rest = el("div");
	root.append(head, el("h2", null, t("agent.past")), past, el("h2", null, t("agent.builds")), rest);
	return {
		async refresh() {
			const [got, builds] = await Promise.all([get("/page/agents/" + encodeURIComponent(id)), get("/page/builds?agent=" + encodeURIComponent(id))]);
			const a = got.agent;
			put(head, a, () => el("div", null, el("h1", null, a.hostName || a.id, " ", state(a.status)), facts(
				[t("agent.seen"), ago(a.seenAt)], [t("agent.version"), a.agentVersion], [t("agent.worker"), a.workerVersion], [t("agent.system"), [a.os, a.arch, a.osVersion].filter(Boolean).join(" ")],
				[t("agent.labels"), labels(a.labels)], [t("agent.address"), a.ip], [t("agent.project"), a.project], [t("agent.id"), a.id], [t("agent.home"), a.installPath],
				[t("agent.user"), a.user], [t("agent.parallel"), a.settings.parallel === undefined ? "" : a.settings.parallel === 0 ? t("agent.unlimited") : String(a.settings.parallel)],
				[t("agent.created"), moment(a.createdAt)],
				[t("agent.upgrade"), a.upgrade && [el("a", { href: "#/upgrades/" + a.upgrade.rollout }, a.upgrade.version), " ", state(a.upgrade.state), a.upgrade.reason ? " " + a.upgrade.reason : ""]],
				[t("agent.exit"), a.exitError && `${a.exitError.errorEnum}: ${a.exitError.message}`])));
			put(past, [got.past, Math.floor(got.now / 60000)], () => (got.past.length ? chart(got.past, got.now) : el("p", { class: "soft" }, t("agent.nopast"))));
			if (!builds.length) put(rest, 0, () => el("p", { class: "soft" }, t("agent.nobuilds")));
			else buildTable(rest, builds, t("agent.builds"));
		},
	};
}
