// Who may do what: tokens that make machines agents, tokens for people and programs, and what was done with them.

import { el, sync, table } from "./dom.js";
import { get, post, remove } from "./api.js";
import { t } from "./text.js";
import { ago, alertBox, command, empty, field, guard, labels, moment, state } from "./show.js";

const many = 100; // shown at once, and more each time somebody asks for more
const enrolColumns = ["token", "project", "state", "made", "expires", "uses", "last"], tokenColumns = ["name", "role", "state", "made", "expires", "last"];
const made = (x) => [x.createdBy ? [x.createdBy, " "] : null, x.createdAt ? el("small", null, ago(x.createdAt)) : null];
const named = (x) => x.note || x.id;

const enrolCells = (x) => [[x.note ? el("span", { class: "strong" }, x.note) : null, " ", el("code", null, x.id), " ", labels(x.labels)], x.project, state(x.state), made(x), moment(x.expiresAt),
	x.uses ? t("access.of", x.used, x.uses) : t("access.any", x.used), ago(x.usedAt)];
const tokenCells = (x) => [[el("span", { class: "strong" }, x.name), " ", x.mine ? el("span", { class: "label" }, t("access.mine")) : el("code", null, x.id)], t("access." + x.role), state(x.state), made(x),
	x.expiresAt ? moment(x.expiresAt) : t("access.never"), x.usedAt ? ago(x.usedAt) : el("small", null, t("access.unused"))];

// tokens lists those of one kind: the valid ones with a button to revoke them, the others folded.
function tokens(app, { title, text, none, path, columns, cells, name, sure, mine }) {
	const wrong = alertBox(), said = el("p", { class: "good", role: "status" }), head = el("h2", { tabindex: "-1" }, title), nobody = el("p", { class: "soft", hidden: true }, none);
	const heads = (keys) => keys.map((key) => ({ title: t("access." + key), class: { act: "tight", role: "tight", uses: "tight", project: "short" }[key] }));
	const valid = table(title, heads([...columns, "act"])), ended = table(title, heads(columns)), count = el("summary");
	let wanted = many, old = many;
	const more = el("button", { type: "button", onclick: () => { wanted += many; app.look(); } }), further = el("button", { type: "button", onclick: () => { old += many; app.look(); } });
	const fold = el("details", { hidden: true, ontoggle: () => { if (fold.open) app.look(); } }, count, ended.node, el("div", { class: "pager" }, further));
	const revoke = (x) => el("button", { type: "button", class: "danger", onclick: guard(wrong, async () => {
		said.textContent = "";
		if (!confirm(sure(x))) return;
		await remove(`/page/api/${path}/${encodeURIComponent(x.id)}`);
		said.textContent = t("access.gone", name(x));
		head.focus(); // the row goes
		await app.look();
	}) }, t("access.revoke"), el("span", { class: "unseen" }, " " + name(x)));
	const button = (node, shown, all) => {
		node.parentNode.hidden = shown >= all;
		node.textContent = t("access.more", shown, all);
	};
	return {
		node: el("section", null, head, el("p", { class: "soft" }, text), said, valid.node, nobody, el("div", { class: "pager" }, more), wrong, fold),
		async refresh() {
			const got = await get(`/page/${path}?valid=${wanted}&ended=${fold.open ? old : 0}`);
			const own = (x) => (mine ? { ...x, mine: mine(x) } : x);
			valid.node.hidden = !got.validCount;
			nobody.hidden = got.validCount > 0;
			sync(valid.body, got.valid.map(own), (x) => x.id, (x) => valid.row([...cells(x), revoke(x)]));
			button(more, got.valid.length, got.validCount);
			fold.hidden = !got.endedCount;
			count.textContent = t("access.ended", got.endedCount);
			if (fold.open) sync(ended.body, got.ended, (x) => x.id, (x) => ended.row(cells(x)));
			button(further, fold.open ? got.ended.length : got.endedCount, got.endedCount);
		},
	};
}

// makeForm makes an access token and shows it this once.
function makeForm(app) {
	const wrong = alertBox(), shown = el("div", { role: "status" });
	const name = el("input", { type: "text", autocomplete: "off", autocapitalize: "off", spellcheck: "false", placeholder: "wall-screen", required: true, maxlength: 64, pattern: "[A-Za-z0-9][A-Za-z0-9_.:=+\\-]*" });
	const role = el("select", null, ["read-only", "operator"].map((r) => el("option", { value: r }, t("access." + r))));
	const days = el("input", { type: "number", min: 1, max: 36500, value: 90, inputmode: "numeric" });
	return el("section", null, el("h3", null, t("access.new")), el("form", { class: "sheet", autocomplete: "off", onsubmit: guard(wrong, async () => {
		const token = await post("/page/api/tokens", { name: name.value.trim(), role: role.value, expires: Number(days.value || 0) * 86400 });
		name.value = "";
		const hide = el("button", { type: "button", onclick: () => { shown.replaceChildren(); name.focus(); } }, t("access.hide"));
		shown.replaceChildren(el("p", { class: "strong" }, t("access.once", token.name)), command(token.token), el("div", { class: "actions" }, hide));
		await app.look();
	}) }, el("div", { class: "columns" }, field(t("access.name"), name, t("access.namehint")), field(t("access.role"), role, t("access.rolehint")), field(t("access.days"), days, t("access.dayshint"))),
	el("div", { class: "actions" }, el("button", { class: "main" }, t("access.make"))), wrong), shown);
}

// audit lists what was done, as far back as somebody asked for.
function audit() {
	const wrong = alertBox(), tab = table(t("audit"), ["at", "who", "what", "result"].map((key) => ({ title: t("audit." + key) }))), none = el("p", { class: "soft", hidden: true }, t("audit.none"));
	const find = el("input", { type: "search", placeholder: t("audit.filter"), "aria-label": t("audit.filter"), oninput: () => show() }), count = el("span", { class: "soft", role: "status" });
	let entries = [], all = false; // entries: the newest first
	const older = el("button", { type: "button", onclick: guard(wrong, async () => {
		const limit = find.value ? 10 * many : many; // who looks for something gets further back
		const got = await get(`/page/api/audit?limit=${limit}&before=${entries.at(-1)?.id ?? 0}`);
		all = got.length < limit;
		entries = entries.concat(got.filter((e) => !entries.length || e.id < entries.at(-1).id));
		show();
	}) }, t("older"));
	const text = (e) => [moment(e.at), e.who, e.role, t("access." + e.role), e.address, e.via, e.verb, e.object, e.name, e.outcome, t("state." + e.outcome), e.status].join(" ").toLowerCase();
	function show() {
		const wanted = find.value.toLowerCase().split(/\s+/).filter(Boolean);
		const found = entries.filter((e) => wanted.every((word) => text(e).includes(word)));
		sync(tab.body, found, (e) => e.id, (e) => tab.row([el("time", { datetime: new Date(e.at).toISOString() }, moment(e.at)),
			[el("span", { class: "strong" }, e.who), " ", el("small", null, [e.address, e.via].filter(Boolean).join(", "))],
			[el("code", null, e.verb), " ", e.object || "", e.name && e.name !== e.object ? [" ", el("small", null, e.name)] : null],
			[state(e.outcome), e.status && e.outcome !== "ok" ? [" ", el("small", null, String(e.status))] : null]]));
		tab.node.hidden = !found.length;
		none.hidden = found.length > 0;
		older.hidden = all;
		const said = t("audit.shown", found.length, entries.length);
		if (count.textContent !== said) count.textContent = said;
	}
	return {
		node: el("section", null, el("h2", null, t("audit")), el("p", { class: "soft" }, t("audit.text")), el("div", { class: "filter" }, find, count), tab.node, none, el("div", { class: "pager" }, older), wrong),
		async refresh() {
			const got = await get("/page/api/audit?limit=" + many);
			const rest = entries.filter((e) => got.length && e.id < got.at(-1).id);
			const joins = entries.some((e) => e.id === got.at(-1)?.id); // else more was done meanwhile than is asked for: what is older has to be fetched again
			if (!joins) all = got.length < many;
			entries = joins ? got.concat(rest) : got;
			show();
		},
	};
}

export function list(root, app) {
	root.append(el("h1", null, t("access")));
	if (!app.may) {
		root.append(empty(el("p", null, t("access.viewer"))));
		return {};
	}
	const enrol = tokens(app, { title: t("access.enrol"), text: [t("access.enroltext"), " ", el("a", { href: "#/enrol" }, t("enrol"))], none: t("access.noenrol"), path: "enroll-tokens", columns: enrolColumns, cells: enrolCells,
		name: named, sure: (x) => t("access.sureenrol", named(x)) });
	const access = tokens(app, { title: t("access.tokens"), text: t("access.tokenstext"), none: t("access.notokens"), path: "tokens", columns: tokenColumns, cells: tokenCells,
		name: (x) => x.name, sure: (x) => t(x.mine ? "access.suremine" : "access.suretoken", x.name), mine: (x) => x.name === app.state?.user });
	const log = audit();
	root.append(enrol.node, access.node, makeForm(app), log.node);
	return {
		async refresh() {
			await Promise.all([enrol.refresh(), access.refresh()]);
			await log.refresh();
		},
	};
}
