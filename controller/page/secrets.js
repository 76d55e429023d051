// The secrets: their names. A value goes in and is never shown.

import { el, put, sync, table } from "./dom.js";
import { get, remove, store } from "./api.js";
import { t } from "./text.js";
import { ago, alertBox, empty, field, guard } from "./show.js";
import { definitionAt } from "./runs.js";

export function list(root, app) {
	const wrong = alertBox(), refused = alertBox(), said = el("p", { class: "good", role: "status" }), locked = el("div"), none = el("div");
	const text = (props) => el("input", { type: "text", autocomplete: "off", autocapitalize: "off", spellcheck: "false", ...props });
	const name = text({ placeholder: "DEPLOY_KEY", required: true, maxlength: 128, pattern: "[A-Za-z_][A-Za-z0-9_]*" }), place = text({ placeholder: "demo" });
	const value = el("textarea", { rows: 3, class: "covered", autocomplete: "off", autocapitalize: "off", spellcheck: "false", required: true });
	const form = el("form", { class: "sheet", autocomplete: "off", onsubmit: guard(refused, async () => {
		said.textContent = "";
		const set = await store("/page/api/secrets/" + encodeURIComponent(name.value.trim()), { project: place.value.trim(), value: value.value.replace(/\r\n/g, "\n").replace(/\n$/, "") });
		value.value = "";
		said.textContent = t("secret.done", set.name);
		await app.look();
	}) }, el("div", { class: "columns" }, field(t("secret.name"), name, t("secret.namehint")), field(t("secret.project"), place)), field(t("secret.value"), value, t("secret.valuehint")),
	el("div", { class: "actions" }, el("button", { class: "main" }, t("secret.set"))), refused);
	const set = el("section", { hidden: true }, el("h2", null, t("secret.new")), form);
	const tab = table(t("secrets"), ["name", "project", "used", "changed", ...(app.may ? ["act"] : [])].map((key) => ({ title: t("secret." + key), class: key === "act" || key === "changed" ? "tight" : undefined })));
	const again = (s) => el("button", { type: "button", onclick: () => {
		name.value = s.name;
		place.value = s.project;
		value.focus();
	} }, t("secret.again"), el("span", { class: "unseen" }, " " + s.name));
	const drop = (s) => el("button", { type: "button", class: "danger", onclick: guard(wrong, async () => {
		if (!confirm(s.usedBy ? t("secret.sureused", s.name, s.usedBy.join(", ")) : t("secret.sure", s.name))) return;
		await remove(`/page/api/secrets/${encodeURIComponent(s.name)}?project=${encodeURIComponent(s.project)}`);
		await app.look();
	}) }, t("secret.drop"), el("span", { class: "unseen" }, " " + s.name));
	root.append(el("h1", null, t("secrets")), locked, tab.node, none, wrong, said, set);
	return {
		async refresh() {
			const got = await get("/page/secrets");
			const all = got.secrets;
			put(locked, [got.locked, got.hint], () => (got.locked ? el("div", { class: "card", role: "alert" }, el("p", { class: "bad strong" }, t("secret.locked")), el("p", null, got.locked), el("p", null, t("hint", got.hint))) : el("div")));
			set.hidden = !app.may || !!got.locked;
			tab.node.hidden = !all.length;
			sync(tab.body, all, (s) => s.project + " " + s.name, (s) => tab.row([el("span", { class: "strong" }, s.name), s.project,
				s.usedBy ? s.usedBy.map((d, i) => [i ? ", " : "", el("a", { href: definitionAt(s.project, d) }, d)]) : "", ago(s.changedAt),
				...(app.may ? [el("span", { class: "actions" }, got.locked ? null : again(s), drop(s))] : [])]));
			if (all.length) none.replaceChildren();
			else put(none, 1, () => empty(el("p", null, t("secret.none"), " ", el("code", null, "secrets: [DEPLOY_KEY]"))));
		},
	};
}
