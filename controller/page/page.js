"use strict";

// What is shown comes from /page/state. Texts go in as text nodes only: nothing that an agent says becomes markup.
const every = 3000; // ms between two looks
const byId = (id) => document.getElementById(id);

function make(tag, className, ...content) {
	const node = document.createElement(tag);
	if (className) node.className = className;
	node.append(...content);
	return node;
}

const tones = {
	IMPORT_OK: "good", done: "good", upgraded: "good", reverted: "good",
	halted: "bad", failed: "bad", IMPORT_EXCEPTION: "bad", DELETE: "bad",
	paused: "wait", "rolled-back": "wait", UN_IMPORT: "wait",
};
const words = { IMPORT_OK: "online", IMPORT_EXCEPTION: "offline", UN_IMPORT: "never started", UN_IMPORT_OK: "starting" };
const state = (name) => make("span", "state " + (tones[name] || ""), words[name] || name);

function ago(at, now) {
	if (!at) return "never";
	const s = Math.max(0, Math.round((now - at) / 1000));
	if (s < 5) return "now";
	if (s < 120) return s + " s ago";
	if (s < 7200) return Math.round(s / 60) + " min ago";
	if (s < 172800) return Math.round(s / 3600) + " h ago";
	return Math.round(s / 86400) + " days ago";
}

// empty is a box that says what to type next.
function empty(text, ...commands) {
	const box = make("div", "empty", make("p", "", text));
	for (const c of commands) box.append(make("p", "", make("code", "", c)));
	return box;
}

function rollout(r) {
	const n = (name) => r.counts[name] || 0;
	const back = r.state === "rolled-back";
	const done = back ? n("reverted") : n("upgraded");
	const all = back ? n("reverted") + n("reverting") : r.matching;
	const bar = make("progress", "");
	bar.max = Math.max(1, all);
	bar.value = done;
	bar.setAttribute("aria-label", "progress of " + r.version);
	const parts = [`${done} of ${all} ${back ? "are back" : "have it"}`];
	const more = [[n("upgraded") - r.proven, "not settled yet"], [n("downloading"), "downloading"], [n("offered"), "told"],
		[n("waiting") - r.offline, "waiting"], [r.offline, "offline"], [n("failed"), "failed"]];
	for (const [count, what] of more) if (count > 0 && (!back || what === "failed")) parts.push(count + " " + what);
	if (r.state === "canary") parts.push(`canaries: ${r.canaries} of ${r.canary} told`);
	const card = make("article", "card", make("h3", "", r.version + " ", state(r.state), " ",
		make("small", "", "rollout " + r.id + (r.labels ? " to " + r.labels.join(", ") : " to all agents") + (r.window ? ", " + r.window : ""))), bar, make("p", "soft", parts.join(", ")));
	if (r.reason) card.append(make("p", "bad", r.reason));
	if (r.failures.length) {
		card.append(make("ul", "", ...r.failures.slice(0, 10).map((f) => make("li", "", (f.hostName || f.agent) + ": " + f.reason))));
		if (n("failed") > 10) card.append(make("p", "soft", `and ${n("failed") - 10} more: devopsController upgrade status ${r.id}`));
	}
	if (r.state === "halted") card.append(make("p", "", "Go on: ", make("code", "", "devopsController upgrade resume"), " or give up: ", make("code", "", "devopsController upgrade rollback")));
	if (r.state === "paused") card.append(make("p", "", "Go on: ", make("code", "", "devopsController upgrade resume")));
	return card;
}

function agents(list, now) {
	const head = ["Name", "State", "Version", "System", "Builds", "Last contact", "Upgrade"];
	const body = make("tbody", "", ...list.map((a) => {
		const up = a.upgrade ? [a.upgrade.version + " ", state(a.upgrade.state)] : [""];
		const cells = [[a.hostName || a.id], [state(a.status)], [a.agentVersion || ""], [a.system], [a.builds ? String(a.builds) : ""], [ago(a.seenAt, now)], up];
		return make("tr", "", ...cells.map((content, i) => {
			const cell = make("td", "", make("span", "", ...content));
			cell.dataset.name = head[i];
			return cell;
		}));
	}));
	const titles = head.map((text) => {
		const cell = make("th", "", text);
		cell.scope = "col";
		return cell;
	});
	return make("table", "", make("thead", "", make("tr", "", ...titles)), body);
}

function show(s) {
	byId("version").textContent = s.version;
	const rollouts = s.rollouts.map(rollout);
	if (!rollouts.length && !s.releases) rollouts.push(empty("Nothing to upgrade to yet. Add programs:", "devopsController upgrade add bin/ --version v1.2.3"));
	else if (!rollouts.length) rollouts.push(empty("No rollout yet. Offer a release to the agents:", "devopsController upgrade offer " + s.newest));
	byId("rollouts").replaceChildren(...rollouts);
	byId("agents-count").textContent = s.total ? `${s.online} of ${s.total} online` : "";
	const rows = s.total ? [agents(s.agents, s.now)]
		: [empty("No agent yet. On this machine:", "devopsController enroll-token | devopsAgent enroll --gateway " + location.origin)];
	if (s.total > s.agents.length) rows.push(make("p", "soft", `and ${s.total - s.agents.length} more: devopsController agents`));
	byId("agents").replaceChildren(...rows);
}

function enter(inside) {
	byId("inside").hidden = byId("leave").hidden = !inside;
	byId("door").hidden = inside;
	if (!inside) byId("token").focus();
}

let timer = 0;
async function look() {
	clearTimeout(timer);
	try {
		const answer = await fetch("/page/state", { cache: "no-store" });
		if (answer.status === 401) {
			byId("note").textContent = "";
			enter(false);
			return;
		}
		if (!answer.ok) throw new Error(answer.statusText);
		show(await answer.json());
		byId("note").textContent = "";
		enter(true);
	} catch {
		byId("note").textContent = "The controller does not answer; what you see may be old.";
	}
	timer = setTimeout(look, document.hidden ? 10 * every : every);
}

byId("sign-in").addEventListener("submit", async (event) => {
	event.preventDefault();
	byId("refused").textContent = "";
	try {
		const answer = await fetch("/session", { method: "POST", body: new URLSearchParams({ token: byId("token").value.trim() }) });
		if (answer.ok) {
			byId("token").value = "";
			look();
			return;
		}
		byId("refused").textContent = answer.status === 401 ? "This is not the token." : "It did not work: " + answer.statusText;
	} catch {
		byId("refused").textContent = "The controller does not answer.";
	}
});
byId("leave").addEventListener("click", async () => {
	await fetch("/session", { method: "DELETE" });
	look();
});
document.addEventListener("visibilitychange", () => document.hidden || byId("inside").hidden || look());
look();
