// Calls of the controller. What the operator's API can do is below /page/api.

export class Refusal extends Error {
	constructor(code, text, hint) {
		super(text);
		this.code = code;
		this.hint = hint; // what to do about it, if the controller knows
	}
}

async function ask(method, path, body, signal) {
	const options = { method, cache: "no-store", credentials: "same-origin", headers: { "X-DEVOPS-PAGE": "1" }, signal };
	if (body instanceof URLSearchParams) options.body = body;
	else if (body !== undefined) {
		options.body = JSON.stringify(body);
		options.headers["Content-Type"] = "application/json";
	}
	const answer = await fetch(path, options);
	if (answer.ok) return answer;
	let text = answer.statusText || String(answer.status), hint = "";
	try {
		const said = await answer.json();
		text = said.error || said.message || text;
		hint = said.hint || "";
	} catch { /* not ours: the status has to do */ }
	throw new Refusal(answer.status, text, hint);
}

const json = async (answer) => (answer.status === 204 ? null : answer.json());
export const get = async (path, signal) => json(await ask("GET", path, undefined, signal));
export const post = async (path, body = {}) => json(await ask("POST", path, body));
export const store = async (path, body) => json(await ask("PUT", path, body));
export const remove = async (path) => json(await ask("DELETE", path));

// events follows a log: it calls back with the events of one portion after another until the build is over.
export async function events(id, after, signal, each) {
	const answer = await ask("GET", `/page/api/builds/${encodeURIComponent(id)}/log?follow=true&after=${after}`, undefined, signal);
	const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
	let rest = "";
	for (;;) {
		const { value, done } = await reader.read();
		if (done) return;
		const parts = (rest + value).split("\n");
		rest = parts.pop();
		if (parts.length) each(parts.map((line) => JSON.parse(line)));
	}
}
