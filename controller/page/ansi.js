// Reads what programs print for terminals. Colours become classes; everything else of it is left out.

// One sequence: CSI, OSC and its kin (titles, links), a short escape, or a control character other than tab.
const sequence = /(?:\x1b\[|\x9b)([0-?]*)[ -\/]*([@-~])|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[ -\/]*[0-~]?|[\x00-\x08\x0b-\x1f\x7f-\x9f]/g;
// Characters that turn the direction of a text round, or hide in it.
const tricky = /[\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]/g;
const marker = /^##\[(?:debug|error|warning|command|section)\]/;

// visible is what is left of a line that returned to its begin, as progress bars do.
function visible(text) {
	text = text.replace(/\r+$/, "");
	return text.slice(text.lastIndexOf("\r") + 1).replace(marker, "");
}

// plain is a line's text as it is shown.
export function plain(text) {
	text = visible(text);
	return /[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]/.test(text) ? text.replace(sequence, "").replace(tricky, "") : text;
}

function apply(style, codes) {
	const n = codes === "" ? [0] : codes.split(/[;:]/).map((c) => Number(c) || 0);
	for (let i = 0; i < n.length; i++) {
		const c = n[i];
		if (c === 0) style = {};
		else if (c === 1) style = { ...style, bold: true };
		else if (c === 2) style = { ...style, dim: true };
		else if (c === 3) style = { ...style, italic: true };
		else if (c === 4) style = { ...style, under: true };
		else if (c === 7) style = { ...style, inverse: true };
		else if (c === 9) style = { ...style, strike: true };
		else if (c === 22) style = { ...style, bold: false, dim: false };
		else if (c === 23) style = { ...style, italic: false };
		else if (c === 24) style = { ...style, under: false };
		else if (c === 27) style = { ...style, inverse: false };
		else if (c === 29) style = { ...style, strike: false };
		else if (c >= 30 && c <= 37) style = { ...style, fg: c - 30 };
		else if (c >= 90 && c <= 97) style = { ...style, fg: c - 82 };
		else if (c >= 40 && c <= 47) style = { ...style, bg: c - 40 };
		else if (c >= 100 && c <= 107) style = { ...style, bg: c - 92 };
		else if (c === 39) style = { ...style, fg: undefined };
		else if (c === 49) style = { ...style, bg: undefined };
		else if (c === 38 || c === 48) {
			let colour;
			if (n[i + 1] === 5) {
				colour = palette(n[i + 2] || 0);
				i += 2;
			} else if (n[i + 1] === 2) {
				colour = nearest(n[i + 2] || 0, n[i + 3] || 0, n[i + 4] || 0);
				i += 4;
			}
			style = c === 38 ? { ...style, fg: colour } : { ...style, bg: colour };
		}
	}
	return style;
}

// palette brings the 256 colours down to the sixteen that have a class: they can be read on the log's ground.
function palette(n) {
	if (n < 16) return n;
	if (n >= 232) return nearest(...Array(3).fill((n - 232) * 10 + 8));
	n -= 16;
	const level = (v) => (v ? v * 40 + 55 : 0);
	return nearest(level(Math.floor(n / 36)), level(Math.floor(n / 6) % 6), level(n % 6));
}

function nearest(r, g, b) {
	const top = Math.max(r, g, b);
	if (top < 50) return 0;
	const bit = (v, i) => (v > top * 0.6 ? 1 << i : 0);
	return bit(r, 0) + bit(g, 1) + bit(b, 2) + (top > 170 ? 8 : 0);
}

function classes(style) {
	const list = [];
	for (const name of ["bold", "dim", "italic", "under", "strike", "inverse"]) if (style[name]) list.push("a-" + name);
	if (style.fg !== undefined) list.push("f" + style.fg);
	if (style.bg !== undefined) list.push("b" + style.bg);
	return list.join(" ");
}

// spans splits a line into parts {text, name}; the texts together are plain(line).
export function spans(text) {
	text = visible(text);
	const list = [];
	let style = {}, from = 0;
	const push = (part) => {
		part = part.replace(tricky, "");
		if (part) list.push({ text: part, name: classes(style) });
	};
	for (const m of text.matchAll(sequence)) {
		push(text.slice(from, m.index));
		from = m.index + m[0].length;
		if (m[2] === "m") style = apply(style, m[1]);
	}
	push(text.slice(from));
	return list;
}
