// Makes elements. Texts go in as text nodes only: nothing that a build prints or an agent says becomes markup.

const svgSpace = "http" + "://www.w3.org/2000/svg"; // a name, not an address

function fill(node, props, children) {
	for (const [name, value] of Object.entries(props || {})) {
		if (value === undefined || value === null || value === false) continue;
		if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
		else if (name === "value" || name === "checked") node[name] = value;
		else node.setAttribute(name, value === true ? "" : String(value));
	}
	node.append(...children.flat(3).filter((c) => c !== null && c !== undefined && c !== false));
	return node;
}

export const el = (tag, props, ...children) => fill(document.createElement(tag), props, children);
export const svg = (tag, props, ...children) => fill(document.createElementNS(svgSpace, tag), props, children);
export const byId = (id) => document.getElementById(id);

// sync makes parent's children those of items, in order. A child whose item has not changed stays as it is, with what
// is selected in it; one that is replaced hands its focus on.
export function sync(parent, items, key, render) {
	const old = new Map();
	for (const node of [...parent.children]) {
		if (node.syncKey !== undefined && items.length) old.set(node.syncKey, node);
		else node.remove();
	}
	let at = parent.firstChild;
	for (const item of items) {
		const id = String(key(item)), text = JSON.stringify(item);
		let node = old.get(id);
		old.delete(id);
		if (!node || node.syncText !== text) {
			const fresh = render(item);
			fresh.syncKey = id;
			fresh.syncText = text;
			if (node) {
				if (at === node) at = fresh;
				swap(node, fresh);
			}
			node = fresh;
		}
		if (at === node) at = at.nextSibling;
		else parent.insertBefore(node, at);
	}
	for (const node of old.values()) node.remove();
}

const focusable = "a, button, input, select, textarea, summary, [tabindex]";

// swap replaces a node and keeps the focus, and what is unfolded, where they were.
export function swap(node, fresh) {
	const at = node.contains(document.activeElement) ? [...node.querySelectorAll(focusable)].indexOf(document.activeElement) : -1;
	const open = [...node.querySelectorAll("details")].map((d) => d.open);
	node.replaceWith(fresh);
	fresh.querySelectorAll("details").forEach((d, i) => { d.open = open[i] ?? d.open; });
	if (at >= 0) fresh.querySelectorAll(focusable)[at]?.focus({ preventScroll: true });
}

// put shows one thing in a box, unless it shows the same already.
export function put(box, data, render) {
	sync(box, [data], () => "one", render);
}

// table makes a table whose cells know the names of their columns, for narrow screens.
export function table(label, columns) {
	const body = el("tbody", { role: "rowgroup" });
	const head = el("tr", { role: "row" }, columns.map((c) => el("th", { scope: "col", role: "columnheader", "aria-sort": c.sorted, class: c.class }, c.title)));
	const node = el("table", { role: "table", "aria-label": label }, el("thead", { role: "rowgroup" }, head), body);
	const row = (cells) => el("tr", { role: "row" }, cells.map((content, i) => el("td", { role: "cell", "data-name": columns[i].name ?? columns[i].title, class: columns[i].class },
		el("span", null, content))));
	return { node, body, row, head };
}
