// A log of any length: only the lines that can be seen are in the document.

import { el } from "./dom.js";
import { plain, spans } from "./ansi.js";
import { t } from "./text.js";

const lineHeight = 20; // px, as in page.css
const spare = 30;      // lines beyond the visible ones
const most = 500_000;  // lines that are kept; a download has them all

export class Log {
	constructor() {
		this.lines = [];   // {seq, type, tag, message, text}
		this.shown = new Map();
		this.query = "";
		this.hits = [];    // indexes of lines
		this.hit = -1;     // in hits
		this.searched = 0; // lines
		this.follow = true;
		this.waiting = false;
		this.spoken = 0;

		this.sheet = el("div", { class: "log-sheet" });
		this.box = el("div", { class: "log", tabindex: "0", role: "region", "aria-label": t("log"), onscroll: () => this.scrolled() }, this.sheet);
		this.voice = el("div", { class: "unseen", role: "log", "aria-live": "polite", "aria-label": t("log.newest") });
		this.count = el("span", { class: "soft", role: "status" });
		this.total = el("span", { class: "soft" });
		this.find = el("input", { type: "search", placeholder: t("log.search"), "aria-label": t("log.search"), autocomplete: "off",
			oninput: () => this.search(this.find.value), onkeydown: (e) => this.key(e) });
		this.tail = el("input", { type: "checkbox", checked: true, onchange: () => { this.follow = this.tail.checked; this.draw(); } });
		this.bar = el("div", { class: "log-bar" }, el("span", { class: "finder" }, this.find,
			el("button", { type: "button", class: "quiet", "aria-label": t("log.previous"), title: t("log.previous"), onclick: () => this.step(-1) }, "↑"),
			el("button", { type: "button", class: "quiet", "aria-label": t("log.next"), title: t("log.next"), onclick: () => this.step(1) }, "↓")),
		this.count, el("span", { class: "grow" }), this.total, el("label", { class: "check" }, this.tail, t("log.follow")));
		this.node = el("div", { class: "log-frame" }, this.bar, this.box, this.voice);
		this.size = new ResizeObserver(() => this.draw());
		this.size.observe(this.box);
	}

	stop() {
		this.size.disconnect();
		clearTimeout(this.speaking);
	}

	append(lines) {
		for (const l of lines) this.lines.push({ seq: l.seq, type: l.type, tag: l.tag, message: l.message, text: plain(l.message) });
		if (this.lines.length > most * 1.1) { // the oldest go, seldom
			this.lines.splice(0, this.lines.length - most);
			this.searched = 0;
			this.hits = [];
			this.clear();
		}
		this.more();
		this.draw();
		this.speak();
	}

	last() { return this.lines.length ? this.lines[this.lines.length - 1].seq : 0; }

	// speak tells a screen reader the newest lines, a few at most every two seconds.
	speak() {
		if (this.speaking || !this.live || !this.follow) return;
		this.speaking = setTimeout(() => {
			this.speaking = 0;
			const fresh = this.lines.slice(Math.max(this.spoken, this.lines.length - 5));
			this.spoken = this.lines.length;
			this.voice.replaceChildren(...fresh.map((l) => el("p", null, l.text)));
		}, 2000);
	}

	clear() {
		for (const node of this.shown.values()) node.remove();
		this.shown.clear();
	}

	draw() {
		if (this.waiting) return;
		this.waiting = true;
		requestAnimationFrame(() => {
			this.waiting = false;
			this.render();
		});
	}

	render() {
		const height = this.lines.length * lineHeight;
		if (this.height !== height) {
			this.height = height;
			this.sheet.style.height = height + "px";
			this.total.textContent = t("log.lines", this.lines.length.toLocaleString());
		}
		if (this.follow) {
			const end = Math.max(0, height + 2 * 8 - this.box.clientHeight);
			if (Math.abs(this.box.scrollTop - end) > 1) {
				const before = this.box.scrollTop;
				this.box.scrollTop = end;
				this.own = this.box.scrollTop !== before;
			}
		}
		const first = Math.max(0, Math.floor(this.box.scrollTop / lineHeight) - spare);
		const end = Math.min(this.lines.length, Math.ceil((this.box.scrollTop + this.box.clientHeight) / lineHeight) + spare);
		for (const [i, node] of this.shown) {
			if (i < first || i >= end) {
				node.remove();
				this.shown.delete(i);
			}
		}
		const fresh = document.createDocumentFragment();
		for (let i = first; i < end; i++) {
			if (this.shown.has(i)) continue;
			const node = this.line(i);
			node.style.top = i * lineHeight + "px";
			this.shown.set(i, node);
			fresh.append(node);
		}
		this.sheet.append(fresh);
	}

	line(i) {
		const l = this.lines[i];
		const kind = { ERROR: " is-error", WARN: " is-warn", DEBUG: " is-debug" }[l.type] || "";
		const here = this.hit >= 0 && this.hits[this.hit] === i ? " is-hit" : "";
		return el("div", { class: "line" + kind + here }, el("span", { class: "nr", "aria-hidden": "true" }, String(l.seq)), el("span", { class: "tx" }, this.parts(l)));
	}

	// parts are a line's coloured parts, with what was searched for marked in them.
	parts(l) {
		const marks = [];
		if (this.query) {
			const text = l.text.toLowerCase();
			if (text.length === l.text.length) {
				for (let at = text.indexOf(this.query); at >= 0 && marks.length < 1000; at = text.indexOf(this.query, at + this.query.length)) marks.push([at, at + this.query.length]);
			}
		}
		const list = [];
		let at = 0, m = 0;
		for (const span of spans(l.message)) {
			let from = 0;
			const put = (to, marked) => {
				if (to <= from) return;
				const text = span.text.slice(from, to);
				list.push(marked ? el("mark", { class: span.name || undefined }, text) : span.name ? el("span", { class: span.name }, text) : text);
				from = to;
			};
			while (m < marks.length && marks[m][0] < at + span.text.length) {
				put(marks[m][0] - at, false);
				put(Math.min(marks[m][1] - at, span.text.length), true);
				if (marks[m][1] > at + span.text.length) break;
				m++;
			}
			put(span.text.length, false);
			at += span.text.length;
		}
		return list;
	}

	scrolled() {
		if (this.own) this.own = false;
		else {
			const atEnd = this.box.scrollTop + this.box.clientHeight >= this.height + 2 * 8 - lineHeight;
			if (this.follow !== atEnd) this.follow = this.tail.checked = atEnd;
		}
		this.draw();
	}

	to(i) {
		this.follow = this.tail.checked = false;
		this.box.scrollTop = Math.max(0, i * lineHeight - this.box.clientHeight / 3);
		this.clear();
		this.draw();
	}

	// toStep shows the first line of a step; it reports whether there is one.
	toStep(tag) {
		const i = this.lines.findIndex((l) => l.tag === tag);
		if (i >= 0) this.to(i);
		return i >= 0;
	}

	search(text) {
		this.query = text.toLowerCase();
		this.hits = [];
		this.hit = -1;
		this.searched = 0;
		this.more();
		this.clear();
		if (this.hits.length) this.step(1);
		this.draw();
	}

	// more searches the lines that came since.
	more() {
		if (this.query) {
			for (let i = this.searched; i < this.lines.length; i++) if (this.lines[i].text.toLowerCase().includes(this.query)) this.hits.push(i);
		}
		this.searched = this.lines.length;
		this.said();
	}

	said() {
		this.count.textContent = !this.query ? "" : this.hits.length ? t("log.hits", this.hit + 1, this.hits.length) : t("log.none");
	}

	step(by) {
		if (!this.hits.length) return;
		this.hit = this.hit < 0 ? (by > 0 ? 0 : this.hits.length - 1) : (this.hit + by + this.hits.length) % this.hits.length;
		this.said();
		this.to(this.hits[this.hit]);
	}

	key(event) {
		if (event.key === "Enter") {
			event.preventDefault();
			this.step(event.shiftKey ? -1 : 1);
		} else if (event.key === "Escape" && this.find.value) {
			this.find.value = "";
			this.search("");
		}
	}
}
