// What several views show: states, times, commands to copy, errors.

import { el } from "./dom.js";
import { known, t, tongue } from "./text.js";

const tones = {
	IMPORT_OK: "good", done: "good", upgraded: "good", reverted: "good", succeeded: "good",
	valid: "good", ok: "good", "used-up": "soft", expired: "soft", revoked: "soft", refused: "wait", unknown: "soft",
	halted: "bad", failed: "bad", IMPORT_EXCEPTION: "bad", DELETE: "bad",
	paused: "wait", "rolled-back": "wait", UN_IMPORT: "soft", cancelled: "soft", skipped: "soft", queued: "wait", handed: "wait", pending: "soft", waiting: "soft",
	running: "mark", rolling: "mark", canary: "mark", downloading: "mark", offered: "mark", reverting: "mark", cancelling: "wait",
};

export const state = (name) => el("span", { class: "state " + (tones[name] || "") }, known("state." + name) ? t("state." + name) : String(name));

let skew = 0; // ms that the controller's clock is ahead
export function clock(now) { skew = now - Date.now(); }
export const now = () => Date.now() + skew;

function since(at) {
	if (!at) return t("ago.never");
	const s = Math.max(0, Math.round((now() - at) / 1000));
	if (s < 5) return t("ago.now");
	if (s < 120) return t("ago.s", s);
	if (s < 7200) return t("ago.min", Math.round(s / 60));
	if (s < 172800) return t("ago.h", Math.round(s / 3600));
	return t("ago.d", Math.round(s / 86400));
}

export const moment = (at) => (at ? new Date(at).toLocaleString(tongue()) : "");

// ago is a time that tick keeps up to date.
export function ago(at) {
	const node = el("time", { "data-at": at || 0, title: moment(at) }, since(at));
	if (at) node.dateTime = new Date(at).toISOString();
	return node;
}

export function span(ms) {
	if (ms < 10_000) return (Math.max(0, ms) / 1000).toFixed(1) + " s";
	const s = Math.round(ms / 1000);
	if (s < 120) return s + " s";
	if (s < 7200) return Math.floor(s / 60) + " min " + (s % 60) + " s";
	return Math.floor(s / 3600) + " h " + Math.floor((s % 3600) / 60) + " min";
}

// running is a duration from a time on that tick keeps up to date.
export const running = (from) => el("span", { "data-from": from }, span(now() - from));

export function tick(root) {
	for (const node of root.querySelectorAll("[data-at]")) {
		const text = since(Number(node.dataset.at));
		if (node.textContent !== text) node.textContent = text;
	}
	for (const node of root.querySelectorAll("[data-from]")) node.textContent = span(now() - Number(node.dataset.from));
}

export function size(bytes) {
	const units = ["B", "kB", "MB", "GB"];
	let i = 0;
	for (; bytes >= 1000 && i < 3; i++) bytes /= 1000;
	return (i ? bytes.toFixed(1) : bytes) + " " + units[i];
}

async function toClipboard(text, node) {
	try {
		await navigator.clipboard.writeText(text);
	} catch { // without TLS, away from this machine
		const range = document.createRange();
		range.selectNodeContents(node);
		getSelection().removeAllRanges();
		getSelection().addRange(range);
		document.execCommand("copy");
	}
}

// command is something to type, ready to be copied.
export function command(text) {
	const code = el("code", { tabindex: "0" }, text);
	const said = el("span", { class: "unseen", role: "status" });
	const button = el("button", { type: "button", class: "copy", onclick: async () => {
		await toClipboard(text, code);
		button.textContent = said.textContent = t("copied");
		setTimeout(() => {
			button.textContent = t("copy");
			said.textContent = "";
		}, 2000);
	} }, t("copy"));
	return el("div", { class: "command" }, code, button, said);
}

// guard runs what a button does, once at a time, and shows in box what went wrong.
export function guard(box, work) {
	let busy = false;
	return async (event) => {
		event?.preventDefault();
		if (busy) return;
		busy = true;
		box.textContent = "";
		try {
			await work(event);
		} catch (err) {
			if (err.code !== 401) box.replaceChildren(t("failed", err.message), err.hint ? el("span", { class: "hint" }, t("hint", err.hint)) : "");
			else dispatchEvent(new Event("signed-out"));
		} finally {
			busy = false;
		}
	};
}

export const alertBox = () => el("p", { class: "bad alert", role: "alert" });

export const empty = (...content) => el("div", { class: "empty" }, content);

// facts is a list of names and values; those without a value are left out.
export const facts = (...pairs) => el("dl", { class: "facts" }, pairs.filter(([, value]) => value !== "" && value !== null && value !== undefined && value !== false && value.length !== 0)
	.map(([name, value]) => el("div", null, el("dt", null, name), el("dd", null, value))));

export const labels = (list) => (list || []).map((l) => el("span", { class: "label" }, l));

export const words = (text) => text.split(/[\s,，]+/).filter(Boolean);

export function field(label, input, hint) {
	const id = "f" + (field.count = (field.count || 0) + 1);
	input.id = id;
	if (hint) input.setAttribute("aria-describedby", id + "-hint");
	return el("div", { class: "field" }, el("label", { for: id }, label), input, hint && el("p", { class: "hint", id: id + "-hint" }, hint));
}
