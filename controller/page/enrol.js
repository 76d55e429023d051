// Adding machines: a token, and what to type with it.

import { el } from "./dom.js";
import { post } from "./api.js";
import { t } from "./text.js";
import { alertBox, command, field, guard, moment, words } from "./show.js";

const portable = (token, gateway) => `printf %s '${token}' | ./devopsAgent enroll --gateway ${gateway} && ./devopsAgent`;
const service = (token, gateway) => `printf %s '${token}' > token && sudo ./devopsAgent install --home /opt/ci --gateway ${gateway} --token-file token; rm -f token`;
const packaged = (token, gateway) => `printf %s '${token}' | sudo devopsAgent enroll --gateway ${gateway}`;
const windows = (token, gateway) => `Set-Content token '${token}'; .\\devopsAgent.exe install --home C:\\ci --gateway ${gateway} --token-file token; Remove-Item token`;

// gatewayOf is where machines reach the controller, where the operator said or where this page came from, and how they know its certificate.
const gatewayOf = (app) => (app.state?.gateway || location.origin) + (app.state?.pin ? ` --pin ${app.state.pin}` : "");

// onlyHere says so where the address means another machine on every other machine.
const onlyHere = (gateway) => (/^https?:\/\/(localhost|127(\.\d+){3}|\[::1\])([:/ ]|$)/.test(gateway) ? el("p", { class: "soft" }, t("enrol.here", gateway.split(" ")[0])) : "");

function commands(token, gateway) {
	return el("div", null,
		el("h3", null, t("enrol.unix"), " ", el("small", null, t("enrol.unixdir"))), command(portable(token, gateway)),
		el("h3", null, t("enrol.unix"), " ", el("small", null, t("enrol.unixservice"))), command(service(token, gateway)),
		el("h3", null, t("enrol.package")), command(packaged(token, gateway)),
		el("h3", null, t("enrol.windows")), command(windows(token, gateway)));
}

// firstMachine is what an empty list of agents shows: the command with a token that was just made.
export function firstMachine(app) {
	if (!app.may) return el("p", { class: "empty" }, t("empty.viewer"));
	const wrong = alertBox(), box = el("div", { class: "empty" }, el("h2", null, t("empty.title")), el("p", null, t("empty.text")), wrong);
	guard(wrong, async () => {
		const made = app.token ||= await post("/page/api/enroll-tokens", {});
		box.append(command(portable(made.token, gatewayOf(app))), el("p", null, t("empty.package")), command(packaged(made.token, gatewayOf(app))), el("p", { class: "soft" }, t("empty.token", moment(made.expiresAt)), " ", t("empty.wait"), " ", t("empty.next")), onlyHere(gatewayOf(app)),
			el("details", null, el("summary", null, t("enrol")), commands(made.token, gatewayOf(app))));
	})();
	return box;
}

export function form(root, app) {
	const project = el("input", { type: "text", placeholder: "demo", autocomplete: "off" }), wanted = el("input", { type: "text", placeholder: "gpu, berlin", autocomplete: "off" });
	const wrong = alertBox(), made = el("div", { role: "status" });
	root.append(el("h1", null, t("enrol")), el("p", null, t("enrol.text")), el("form", { class: "sheet", onsubmit: guard(wrong, async () => {
		const token = await post("/page/api/enroll-tokens", { project: project.value.trim(), labels: words(wanted.value) });
		made.replaceChildren(el("h2", null, t("enrol.token", moment(token.expiresAt))), command(token.token), onlyHere(gatewayOf(app)), commands(token.token, gatewayOf(app)), el("p", null, el("a", { href: "#/submit" }, t("enrol.next"))));
	}) }, el("div", { class: "columns" }, field(t("enrol.labels"), wanted), field(t("enrol.project"), project)),
	el("div", { class: "actions" }, el("button", { class: "main" }, t("enrol.make"))), wrong), made);
	return {};
}
