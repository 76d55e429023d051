// The page: signing in, the views by what stands behind the # of the address, and looking again every few seconds.

import { byId, el } from "./dom.js";
import { get, post, remove } from "./api.js";
import { t, tongue, turn } from "./text.js";
import { alertBox, clock, field, guard, tick } from "./show.js";
import * as agents from "./agents.js";
import * as builds from "./builds.js";
import * as build from "./build.js";
import * as runs from "./runs.js";
import * as definitions from "./definitions.js";
import * as secrets from "./secrets.js";
import * as submit from "./submit.js";
import * as upgrades from "./upgrades.js";
import * as enrol from "./enrol.js";
import * as access from "./access.js";

const every = 3000; // ms between two looks
const views = [
	[/^\/agents$/, agents.list, "agents"],
	[/^\/agents\/([^/]+)$/, agents.one, "agents"],
	[/^\/builds$/, builds.list, "builds"],
	[/^\/builds\/([^/]+)$/, build.one, "builds"],
	[/^\/runs$/, runs.list, "runs"],
	[/^\/runs\/([^/]+)$/, runs.one, "runs"],
	[/^\/definitions$/, definitions.list, "definitions"],
	[/^\/definitions\/([^/]+)\/([^/]+)$/, definitions.one, "definitions"],
	[/^\/define(?:\/([^/]+)\/([^/]+))?$/, definitions.form, "definitions"],
	[/^\/secrets$/, secrets.list, "secrets"],
	[/^\/submit\/file$/, submit.file, "submit"],
	[/^\/submit\/run\/([^/]+)$/, submit.file, "submit"],
	[/^\/submit(?:\/([^/]+))?$/, submit.form, "submit"],
	[/^\/upgrades$/, upgrades.list, "upgrades"],
	[/^\/upgrades\/([^/]+)$/, upgrades.one, "upgrades"],
	[/^\/enrol$/, enrol.form, "enrol"],
	[/^\/access$/, access.list, "access"],
];
const links = ["agents", "builds", "runs", "definitions", "secrets", "submit", "upgrades", "enrol", "access"];
const changing = ["submit", "enrol", "access"]; // for operators only

// app is what views know of the whole: the last state, and whether changes are allowed.
const app = { state: null, may: false, go: (to) => { location.hash = to; }, look };
let view = null, section = "", timer = 0, looking = false, again = false, outside = false, other = false;

function frame() {
	document.documentElement.lang = tongue();
	byId("skip").textContent = t("skip");
	byId("nav").setAttribute("aria-label", t("nav"));
	byId("nav").replaceChildren(...links.filter((name) => app.may || !changing.includes(name))
		.map((name) => el("a", { href: "#/" + name, "aria-current": section === name ? "page" : undefined }, t(name))));
	byId("language").textContent = t("language");
	byId("language").lang = tongue() === "en" ? "zh-CN" : "en";
	byId("leave").textContent = t("leave");
}

// plain is a part of the address as it was written by us, or as it is.
function plain(part) {
	try {
		return part && decodeURIComponent(part);
	} catch {
		return part;
	}
}

function closeView() {
	view?.stop?.();
	view = null;
}

// open shows the view of the address.
async function open(moved) {
	closeView();
	const path = location.hash.slice(1) || "/agents";
	const found = views.find(([pattern]) => pattern.test(path));
	section = found ? found[2] : "";
	frame();
	const main = byId("main");
	if (!found) {
		main.replaceChildren(el("h1", null, t("missing")));
		return;
	}
	main.replaceChildren(el("p", { class: "soft" }, t("loading")));
	const args = found[0].exec(path).slice(1).map(plain);
	const mine = { root: el("div") };
	view = mine;
	if (!app.state) await look(); // who is there decides what a view has
	if (view !== mine) return;
	mine.built = true;
	Object.assign(mine, found[1](mine.root, app, ...args));
	if (looking) await looking; // it asked for the view before
	if (view === mine) await look();
	if (view !== mine) return;
	main.replaceChildren(mine.root);
	const title = mine.root.querySelector("h1");
	document.title = (title ? title.textContent + " · " : "") + "devopsController";
	if (moved) {
		scrollTo(0, 0);
		main.focus({ preventScroll: true });
	}
	mine.shown?.();
}

// look asks for everything that is shown.
async function look() {
	clearTimeout(timer);
	if (looking) {
		again = true;
		return looking;
	}
	looking = (async () => {
		try {
			app.state = await get("/page/state?" + (view?.query?.() || "limit=0"));
			clock(app.state.now);
			const may = app.state.role === "operator";
			if (may !== app.may) {
				app.may = may;
				other = !!view?.built;
				frame();
			}
			byId("version").textContent = app.state.version;
			if (outside) return; // signed out meanwhile
			byId("nav").hidden = byId("leave").hidden = false;
			await view?.refresh?.();
			byId("note").textContent = may ? "" : t("viewer");
			tick(byId("main"));
		} catch (err) {
			if (err.code === 401) return door();
			if (err.name !== "AbortError") byId("note").textContent = err.code ? t("failed", err.message) + (err.hint ? " " + t("hint", err.hint) : "") : t("down");
		} finally {
			looking = false;
		}
		timer = setTimeout(look, again ? 0 : document.hidden ? 10 * every : every);
		again = false;
		if (other) { // somebody else, since the view was made
			other = false;
			open(false);
		}
	})();
	return looking;
}

// door asks for a token.
function door() {
	clearTimeout(timer);
	closeView();
	app.state = null;
	outside = true;
	byId("nav").hidden = byId("leave").hidden = true;
	byId("note").textContent = "";
	document.title = t("door") + " · devopsController";
	const refused = alertBox();
	const token = el("input", { type: "password", name: "token", autocomplete: "current-password", required: true });
	byId("main").replaceChildren(el("form", { class: "door", onsubmit: guard(refused, async () => {
		try {
			await post("/session", new URLSearchParams({ token: token.value.trim() }));
		} catch (err) {
			if (err.code === 401 || err.code === 429) {
				refused.textContent = t(err.code === 401 ? "door.wrong" : "door.often");
				token.select();
				return;
			}
			throw err;
		}
		outside = false;
		open(true);
	}) }, el("h1", null, t("door")), field(t("door.token"), token), el("button", { class: "main" }, t("door")), refused,
	el("p", { class: "hint" }, t("door.hint"), " ", el("code", null, t("door.file")))));
	token.focus();
}

byId("language").addEventListener("click", () => {
	turn();
	frame();
	if (outside) door();
	else open(false);
});
byId("leave").addEventListener("click", async () => {
	try {
		await remove("/session");
	} finally {
		frame();
		door();
	}
});
byId("skip").addEventListener("click", (event) => {
	event.preventDefault();
	byId("main").focus();
});
addEventListener("hashchange", () => { if (!outside) open(true); });
addEventListener("signed-out", door);
document.addEventListener("visibilitychange", () => { if (!document.hidden && app.state) look(); });
setInterval(() => { if (app.state && !document.hidden) tick(byId("main")); }, 1000);
frame();
open(false);
