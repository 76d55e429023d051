// A build file as text: a field to write it in, that shows where an error is.

import { el } from "./dom.js";
import { t } from "./text.js";
import { field } from "./show.js";

const longest = 1 << 20; // characters of a file from the disk

export const example = `name: nightly
jobs:
  build:
    steps:
      - script: echo compile
  test:
    needs: build
    matrix: {go: ["1.25", "1.26"]}
    steps:
      - script: echo "test with \${{ matrix.go }}"
`;

export const scheduled = `name: nightly
schedule: "0 3 * * *"
steps:
  - script: echo hello
`;

// fileField is a field for a build file. at marks the line that an error names.
export function fileField(label, text) {
	const area = el("textarea", { rows: 18, spellcheck: "false", autocapitalize: "off", autocomplete: "off", wrap: "off", required: true, value: text });
	const pick = el("input", { type: "file", accept: ".yaml,.yml,.json", hidden: true, onchange: async () => {
		const chosen = pick.files[0];
		if (chosen && chosen.size <= longest) area.value = await chosen.text();
		pick.value = "";
		area.focus();
	} });
	const node = el("div", null, field(label, area), el("div", { class: "actions" }, el("button", { type: "button", onclick: () => pick.click() }, t("file.open")), pick));
	return { node, area, at(err) {
		const line = Number(/\bline (\d+)/.exec(err.message || "")?.[1] || 0);
		if (!line) return;
		const lines = area.value.split("\n"), from = lines.slice(0, line - 1).join("\n").length + (line > 1 ? 1 : 0);
		area.focus();
		area.setSelectionRange(from, from + (lines[line - 1] || "").length);
		area.scrollTop = (line - 4) * (area.scrollHeight / Math.max(1, lines.length));
	} };
}

// sending runs what a form does, and marks the line that an error names.
export const sending = (file, work) => async () => {
	try {
		await work();
	} catch (err) {
		file.at(err);
		throw err;
	}
};
