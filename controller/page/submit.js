// Submitting a build.

import { el } from "./dom.js";
import { get, post } from "./api.js";
import { t } from "./text.js";
import { alertBox, field, guard, words } from "./show.js";
import { example, fileField, sending } from "./buildfile.js";

// kinds are the two forms: a script, or a file with jobs.
const kinds = (here) => el("div", { class: "tabs" }, [["#/submit", "submit.script"], ["#/submit/file", "submit.file"]]
	.map(([href, name]) => el("a", { href, "aria-current": name === here ? "page" : undefined }, t(name))));

export function form(root, app, from) {
	const wrong = alertBox();
	const text = (props) => el("input", { type: "text", autocomplete: "off", autocapitalize: "off", spellcheck: "false", ...props });
	const name = text({ placeholder: "build", maxlength: 200 }), wanted = text({ placeholder: "linux" }), limit = text({ placeholder: "15h" }), project = text({ placeholder: "demo" });
	const shell = el("select", null, el("option", { value: "" }, t("submit.default")), ["sh", "bash", "python3", "powershell", "bat"].map((name) => el("option", { value: name }, name)));
	const scripts = el("div"), rows = el("div", { class: "vars" }), note = el("p", { class: "hint", role: "status" });
	let old = null;

	const script = (label, value) => {
		const area = el("textarea", { rows: 12, spellcheck: "false", autocapitalize: "off", required: true, value: value ?? "" });
		scripts.append(field(label, area));
		return area;
	};
	const variable = (key = "", value = "", secret = false) => {
		const k = text({ "aria-label": t("submit.envname"), placeholder: "NAME", value: key });
		const v = el("input", { type: secret ? "password" : "text", autocomplete: "off", spellcheck: "false", "aria-label": t("submit.value"), placeholder: t("submit.value"), value });
		const hide = el("input", { type: "checkbox", checked: secret, onchange: () => { v.type = hide.checked ? "password" : "text"; } });
		const row = el("div", { class: "var" }, k, v, el("label", { class: "check" }, hide, t("submit.secret")),
			el("button", { type: "button", class: "quiet", "aria-label": t("submit.drop", key), title: t("submit.drop", key), onclick: () => { row.remove(); add.focus(); } }, "✕"));
		row.read = () => [k.value.trim(), { value: v.value, sensitive: hide.checked }];
		rows.append(row);
		return k;
	};
	const add = el("button", { type: "button", onclick: () => variable().focus() }, t("submit.add"));

	const send = guard(wrong, async () => {
		const variables = Object.fromEntries([...rows.children].map((row) => row.read()).filter(([key]) => key));
		const spec = { name: name.value.trim(), labels: words(wanted.value), variables };
		if (limit.value.trim()) spec.timeout = limit.value.trim();
		const areas = [...scripts.querySelectorAll("textarea")];
		if (old) {
			spec.workspace = old.workspace;
			spec.artifacts = old.artifacts;
			spec.steps = old.steps.map((s, i) => ({ ...s, script: areas[i].value }));
		} else spec.steps = [{ script: areas[0].value.replace(/\r\n/g, "\n"), shell: shell.value }];
		const b = await post("/page/api/builds", { project: project.value.trim(), spec });
		app.go("#/builds/" + b.number);
	});

	const shells = field(t("submit.shell"), shell);
	const node = el("form", { class: "sheet", onsubmit: send, onkeydown: (e) => { if (e.key === "Enter" && (e.ctrlKey || e.metaKey)) node.requestSubmit(); } },
		scripts, el("div", { class: "columns" }, field(t("submit.name"), name, t("submit.namehint")), field(t("submit.labels"), wanted, t("submit.labelshint"))),
		el("fieldset", null, el("legend", null, t("submit.env")), rows, add),
		el("details", null, el("summary", null, t("submit.more")), el("div", { class: "columns" }, shells, field(t("submit.timeout"), limit), field(t("submit.project"), project))),
		note, el("div", { class: "actions" }, el("button", { class: "main" }, t("submit.go"))), wrong);
	root.append(el("h1", null, t("submit")), from ? null : kinds("submit.script"), node);
	if (!from) script(t("submit.script"), 'echo "hello from $(uname -n)"\n');
	return {
		async refresh() {
			const lines = [];
			if (from && !old) {
				const got = await get("/page/builds/" + encodeURIComponent(from));
				old = got.spec;
				name.value = old.name;
				wanted.value = (old.labels || []).join(", ");
				project.value = got.build.project;
				limit.value = old.timeout && old.timeout !== "0s" ? old.timeout : "";
				shells.hidden = true;
				old.steps.forEach((s, i) => script(old.steps.length > 1 ? t("submit.step", s.name || i + 1) : t("submit.script"), s.script));
				for (const [key, v] of Object.entries(old.variables || {})) variable(key, v.value, v.sensitive);
			}
			if (old && Object.values(old.variables || {}).some((v) => v.sensitive)) lines.push(t("submit.again"));
			if (!app.state.online) lines.push(t("submit.noagents"));
			if (note.textContent !== lines.join(" ")) note.textContent = lines.join(" ");
		},
	};
}

// file submits a build file, with one job or several; id is a run whose file is to be changed.
export function file(root, app, id) {
	const wrong = alertBox(), note = el("p", { class: "hint", role: "status" }), source = fileField(t("submit.file"), id ? "" : example);
	const project = el("input", { type: "text", autocomplete: "off", autocapitalize: "off", spellcheck: "false", placeholder: "demo" });
	const node = el("form", { class: "sheet", onsubmit: guard(wrong, sending(source, async () => {
		app.go("#/runs/" + (await post("/page/api/runs", { project: project.value.trim(), file: source.area.value })).number);
	})), onkeydown: (e) => { if (e.key === "Enter" && (e.ctrlKey || e.metaKey)) node.requestSubmit(); } },
	source.node, field(t("submit.project"), project), note, el("div", { class: "actions" }, el("button", { class: "main" }, t("submit.go"))), wrong);
	root.append(el("h1", null, t("submit")), id ? null : kinds("submit.file"), node);
	let notes = id ? null : [];
	return {
		async refresh() {
			if (!notes) {
				const at = "/page/api/runs/" + encodeURIComponent(id);
				const [got, run] = await Promise.all([get(at + "/file"), get(at)]);
				source.area.value = got.file;
				project.value = run.project;
				notes = [got.masked ? t("file.masked") : "", got.changed ? t("file.changed") : ""].filter(Boolean);
			}
			const text = [...notes, app.state.online ? "" : t("submit.noagents")].filter(Boolean).join(" ");
			if (note.textContent !== text) note.textContent = text;
		},
	};
}
