// Releases, and how far they have come.

import { el, put, sync, table } from "./dom.js";
import { get, post } from "./api.js";
import { t } from "./text.js";
import { ago, alertBox, command, empty, field, guard, labels, moment, size, state, words } from "./show.js";

const inForce = (r) => !r.replacedBy;

function card(r, app, linked) {
	const n = (name) => r.counts[name] || 0;
	const back = r.state === "rolled-back";
	const have = back ? n("reverted") : n("upgraded");
	const all = back ? n("reverted") + n("reverting") : r.matching;
	const parts = [t(back ? "up.back" : "up.have", have, all)];
	if (!back) {
		for (const [count, text] of [[n("upgraded") - r.proven, "unproven"], [n("downloading"), "downloading"], [n("offered"), "told"], [n("waiting") - r.offline, "waiting"], [r.offline, "offline"]]) {
			if (count > 0) parts.push(t("up." + text, count));
		}
	}
	if (n("failed")) parts.push(t("up.failed", n("failed")));
	if (r.state === "canary") parts.push(t("up.canaries", r.canaries, r.canary));
	const wrong = alertBox();
	const act = (what, text, body, sure) => el("button", { type: "button", class: what === "rollback" ? "danger" : undefined, onclick: guard(wrong, async () => {
		if (sure && !confirm(sure)) return;
		await post(`/page/api/rollouts/${r.id}/${what}`, body);
		await app.look();
	}) }, text);
	const may = app.may && inForce(r);
	const buttons = may ? [
		["canary", "rolling", "done"].includes(r.state) ? act("pause", t("up.pause"), {}) : null,
		["paused", "halted", "canary"].includes(r.state) ? act("resume", t("up.resume"), {}) : null,
		n("failed") && r.state !== "rolled-back" ? act("resume", t("up.retry"), { retry: true }) : null,
		r.state !== "rolled-back" ? act("rollback", t("up.rollback"), {}, t("up.sure", r.id)) : null,
	].filter(Boolean) : [];
	return el("article", { class: "card" }, el("h3", null, linked ? el("a", { href: "#/upgrades/" + r.id }, r.version) : r.version, " ", state(r.state), " ",
		el("small", null, t("up.rollout", r.id), ", ", t("up.to", r.labels?.length ? "" : t("up.all")), labels(r.labels), r.window ? ", " + r.window : "", ", ", ago(r.createdAt))),
	el("progress", { max: Math.max(1, all), value: have, "aria-label": t("up.progress", r.version) }),
	el("p", { class: "soft" }, parts.join(" · ")),
	r.reason ? el("p", { class: "bad" }, r.reason) : null,
	r.replacedBy ? el("p", { class: "soft" }, t("up.replaced", r.replacedBy)) : null,
	r.failures.length ? el("ul", { class: "bad" }, r.failures.slice(0, 10).map((f) => el("li", null, (f.hostName || f.agent) + ": " + (f.reason || "")))) : null,
	buttons.length ? el("div", { class: "actions" }, buttons) : null, wrong);
}

function offerForm(app) {
	const wrong = alertBox();
	const version = el("select"), to = el("input", { type: "text", autocomplete: "off" });
	const number = (value, min) => el("input", { type: "number", min, value, inputmode: "numeric" });
	const canary = number(1, 0), failures = number(0, 0), parallel = el("input", { type: "number", min: 0, placeholder: t("up.auto"), inputmode: "numeric" });
	const hours = el("input", { type: "text", placeholder: t("up.always"), pattern: "[0-9]{2}:[0-9]{2}-[0-9]{2}:[0-9]{2}", autocomplete: "off" });
	const node = el("form", { class: "sheet", onsubmit: guard(wrong, async () => {
		const made = await post("/page/api/rollouts", { version: version.value, labels: words(to.value), canary: Number(canary.value), maxFailures: Number(failures.value),
			parallel: Number(parallel.value || 0), window: hours.value.trim() });
		app.go("#/upgrades/" + made.id);
	}) }, el("div", { class: "columns" }, field(t("up.version"), version), field(t("up.labels"), to, t("up.labelshint"))),
	el("div", { class: "columns" }, field(t("up.canary"), canary), field(t("up.failures"), failures), field(t("up.parallel"), parallel), field(t("up.window"), hours)),
	el("div", { class: "actions" }, el("button", { class: "main" }, t("up.go"))), wrong);
	return { node, versions(list) {
		if (version.children.length === list.length && [...version.children].every((o, i) => o.value === list[i])) return;
		const was = version.value;
		version.replaceChildren(...list.map((v) => el("option", { value: v }, v)));
		if (list.includes(was)) version.value = was;
	} };
}

export function list(root, app) {
	const rollouts = el("div"), none = el("p", { class: "soft" }, t("up.norollout")), start = el("div");
	const releases = table(t("up.releases"), ["version", "files", "size", "worker", "jdk", "added"].map((name) => ({ title: t("up." + name) })));
	const offer = offerForm(app);
	const offering = el("section", null, el("h2", null, t("up.offer")), offer.node);
	const known = el("section", null, el("h2", null, t("up.releases")), releases.node, start);
	root.append(el("h1", null, t("upgrades")), el("h2", null, t("up.rollouts")), rollouts, none, offering, known);
	return {
		async refresh() {
			const [all, versions] = await Promise.all([get("/page/api/rollouts"), get("/page/api/releases")]);
			sync(rollouts, all.slice(0, 20), (r) => r.id, (r) => card(r, app, true));
			none.hidden = all.length > 0;
			offering.hidden = !app.may || !versions.length;
			offer.versions(versions.map((r) => r.version));
			releases.node.hidden = !versions.length;
			sync(releases.body, versions, (r) => r.version, (r) => releases.row([el("span", { class: "strong" }, r.version), String(r.files.length),
				size(r.files.reduce((sum, f) => sum + f.size, 0)), r.worker || "", r.jdk || "", moment(r.addedAt)]));
			if (versions.length) start.replaceChildren();
			else put(start, 1, () => empty(el("p", null, t("up.none")), command("devopsController upgrade add bin/ --version v1.2.3")));
		},
	};
}

export function one(root, app, id) {
	const head = el("div"), none = el("p", { class: "soft", hidden: true }, t("up.nomembers"));
	const members = table(t("up.members"), [t("agent.name"), t("agent.state"), t("up.reports"), t("up.had"), t("up.reason")].map((title) => ({ title })));
	root.append(el("h1", null, t("up.rollout", id)), head, el("h2", null, t("up.members")), members.node, none);
	return {
		async refresh() {
			const r = await get("/page/api/rollouts/" + encodeURIComponent(id));
			const { agents = [], ...rest } = r;
			sync(head, [rest], (x) => x.id, () => card(r, app, false));
			none.hidden = agents.length > 0;
			members.node.hidden = !agents.length;
			sync(members.body, agents.slice(0, 1000), (m) => m.agent, (m) => members.row([
				[el("a", { href: "#/agents/" + encodeURIComponent(m.agent) }, m.hostName || m.agent), m.canary ? [" ", el("span", { class: "label" }, t("up.iscanary"))] : null],
				state(m.state), m.version || "", m.from || "", m.reason || ""]));
		},
	};
}
