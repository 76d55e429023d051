// The definitions: stored build files, what starts them, and how they ended.

import { el, put, sync, table } from "./dom.js";
import { get, post, remove } from "./api.js";
import { t } from "./text.js";
import { alertBox, command, empty, facts, field, guard, moment, state } from "./show.js";
import { fileField, scheduled, sending } from "./buildfile.js";
import { definitionAt, runTable } from "./runs.js";

const base = (app) => (app.state?.gateway || location.origin).replace(/\/+$/, "");
const api = (d, more = "") => `/page/api/definitions/${encodeURIComponent(d.name)}${more}?project=${encodeURIComponent(d.project)}`;
const schedules = (d) => (d.schedules || []).map((s) => el("div", null, el("code", null, s.cron), s.timezone ? " " + s.timezone : ""));
const last = (d) => d.lastRun && [el("a", { href: "#/runs/" + d.lastRun.number }, "#" + d.lastRun.number), " ", state(d.lastRun.state)];

export function list(root, app) {
	const tab = table(t("definitions"), ["name", "project", "starts", "next", "last"].map((name) => ({ title: t("def." + name) })));
	const none = el("div");
	root.append(el("div", { class: "title" }, el("h1", null, t("definitions")), app.may ? el("a", { class: "button main", href: "#/define" }, t("def.new")) : null), tab.node, none);
	return {
		async refresh() {
			const all = await get("/page/api/definitions");
			tab.node.hidden = !all.length;
			sync(tab.body, all, (d) => d.project + " " + d.name, (d) => tab.row([el("a", { class: "strong", href: definitionAt(d.project, d.name) }, d.name), d.project,
				[schedules(d), d.webhook ? el("div", null, t("def.webhook")) : null, d.problem ? el("small", { class: "bad why" }, d.problem) : null],
				moment(d.nextAt), last(d) || ""]));
			if (all.length) none.replaceChildren();
			else put(none, 1, () => empty(el("p", null, t("def.none")), app.may ? el("p", null, el("a", { href: "#/define" }, t("def.first"))) : null, command("devopsController define nightly.yaml")));
		},
	};
}

// signed is how to call a webhook by hand. The key comes from the environment, so that no list of processes shows it.
const signed = (url, secret) => `export ${secret}='…'; echo '{"ref": "main"}' > body.json
curl --data-binary @body.json -H "X-Delivery-Id: $(date +%s)" -H "X-Hub-Signature-256: sha256=$(python3 -c 'import hmac, os, sys; print(hmac.new(os.environb[b"${secret}"], sys.stdin.buffer.read(), "sha256").hexdigest())' < body.json)" '${url}'`;

function hook(d, app, known) {
	const url = `${base(app)}/hooks/${encodeURIComponent(d.project)}/${encodeURIComponent(d.name)}`;
	return el("section", null, el("h2", null, t("def.webhook")), known ? null : el("p", { class: "bad" }, t("def.nosecret", d.webhook.secret), " ", el("a", { href: "#/secrets" }, t("secrets"))),
		command(url), el("p", null, t("def.sign", d.webhook.secret)),
		d.webhook.variables ? el("p", null, t("def.body")) : null, facts(...Object.entries(d.webhook.variables || {}).map(([name, at]) => [name, el("code", null, at)])),
		el("details", null, el("summary", null, t("def.byhand")), command(signed(url, d.webhook.secret))));
}

function badge(d, app) {
	const path = `/badge/${encodeURIComponent(d.project)}/${encodeURIComponent(d.name)}.svg`;
	return el("section", null, el("h2", null, t("def.badge")), el("p", null, el("img", { src: `${path}?${d.lastRun?.number || 0}`, alt: t("def.badgeof", d.name), height: 20 })),
		command(`![${d.name}](${base(app)}${path})`));
}

export function one(root, app, project, name) {
	const self = { project, name };
	const head = el("div", { class: "title" }, el("h1", null, name)), why = el("div"), about = el("div"), wrong = alertBox(), values = el("div"), outside = el("div"), shield = el("div");
	const runs = el("div"), norun = el("p", { class: "soft" }, t("def.norun")), file = el("div");
	let inputs = [], text = null, changed = 0;
	const go = el("button", { type: "button", class: "main", onclick: guard(wrong, async () => {
		const r = await post(api(self, "/trigger"), { inputs: Object.fromEntries(inputs.map(([key, box]) => [key, box.value])) });
		app.go("#/runs/" + r.number);
	}) }, t("def.go"));
	const drop = el("button", { type: "button", class: "danger", onclick: guard(wrong, async () => {
		if (!confirm(t("def.sure", name))) return;
		await remove(api(self));
		app.go("#/definitions");
	}) }, t("def.drop"));
	root.append(head, app.may ? el("div", { class: "actions" }, go, el("a", { class: "button", href: definitionAt(project, name).replace("#/definitions", "#/define") }, t("def.edit")), drop) : null,
		wrong, values, why, about, el("h2", null, t("def.runs")), runs, norun, outside, shield, file);
	return {
		async refresh() {
			const [d, found, secrets] = await Promise.all([get(api(self)), get(`/page/runs?limit=10&project=${encodeURIComponent(project)}&definition=${encodeURIComponent(name)}`),
				get("/page/api/secrets?project=" + encodeURIComponent(project))]);
			if (app.may && (text === null || changed !== d.changedAt)) {
				try {
					text = (await get(api(self, "/file"))).file;
				} catch (err) {
					if (err.code !== 503) throw err;
					text = err.hint || err.message; // the key of secrets is missing
				}
				changed = d.changedAt;
			}
			put(head, [d.name, d.lastRun], () => el("h1", null, d.name, " ", d.lastRun ? state(d.lastRun.state) : null));
			put(why, d.problem || "", () => (d.problem ? el("p", { class: "bad" }, d.problem) : el("div")));
			put(about, [d], () => facts([t("def.project"), d.project], [t("def.schedule"), schedules(d)], [t("def.next"), moment(d.nextAt)], [t("def.last"), last(d)],
				[t("def.changed"), moment(d.changedAt)]));
			put(values, app.may && Object.keys(d.webhook?.variables || {}), () => {
				inputs = Object.keys(app.may && d.webhook?.variables || {}).sort().map((key) => [key, el("input", { type: "text", autocomplete: "off", spellcheck: "false" })]);
				return inputs.length ? el("details", null, el("summary", null, t("def.values")), el("div", { class: "columns" }, inputs.map(([key, box]) => field(key, box)))) : el("div");
			});
			norun.hidden = found.length > 0;
			runs.hidden = !found.length;
			if (found.length) runTable(runs, found, t("def.runs"));
			const known = d.webhook && secrets.some((s) => s.name === d.webhook.secret);
			put(outside, [d.webhook, known, base(app)], () => (d.webhook ? hook(d, app, known) : el("div")));
			put(shield, [d.badge, d.lastRun], () => (d.badge ? badge(d, app) : el("div")));
			put(file, text, () => (text === null ? el("div") : el("section", null, el("h2", null, t("def.file")), el("pre", { class: "file", tabindex: "0", "aria-label": t("def.file") }, text))));
		},
	};
}

// form stores a definition: a new one, or one in the place of another.
export function form(root, app, project, name) {
	const wrong = alertBox(), note = el("p", { class: "hint", role: "status" }), file = fileField(t("def.file"), name ? "" : scheduled);
	const place = el("input", { type: "text", autocomplete: "off", autocapitalize: "off", spellcheck: "false", placeholder: "demo", value: project || "", disabled: !!name });
	let read = !name;
	const node = el("form", { class: "sheet", onsubmit: guard(wrong, sending(file, async () => {
		const d = await post("/page/api/definitions", { project: place.value.trim(), file: file.area.value });
		app.go(definitionAt(d.project, d.name));
	})) }, file.node, field(t("def.project"), place), note, el("p", { class: "hint" }, t("def.help")), el("div", { class: "actions" }, el("button", { class: "main" }, t("def.save"))), wrong);
	root.append(el("h1", null, name ? t("def.change", name) : t("def.new")), node);
	return {
		async refresh() {
			if (read) return;
			const got = await get(api({ project, name }, "/file"));
			read = true;
			file.area.value = got.file;
			if (got.masked) note.textContent = t("file.masked");
		},
	};
}
