// What a build has saved: names, sizes, digests, and links to download it.

import { el, table } from "./dom.js";
import { t } from "./text.js";
import { moment, size } from "./show.js";

// artifacts is the section of a build's page; it is empty when nothing was saved.
export function artifacts(b) {
	if (!b.artifacts?.length) return el("div");
	const list = table(t("artifacts"), ["name", "size", "sha256", "saved"].map((name) => ({ title: t("artifact." + name) })));
	for (const a of b.artifacts) {
		const href = `/page/api/builds/${b.number}/artifacts/${encodeURIComponent(a.name)}`;
		list.body.append(list.row([
			a.gone ? [el("span", { class: "strong" }, a.name), " ", el("span", { class: "soft" }, t("artifact.gone"))] : el("a", { href, download: true }, a.name),
			[size(a.bytes), " ", el("span", { class: "soft" }, t("artifact.packed", size(a.size)))],
			el("code", { class: "digest" }, a.sha256),
			[moment(a.savedAt), a.expiresAt && !a.gone ? [" ", el("span", { class: "soft" }, t("artifact.until", moment(a.expiresAt)))] : null],
		]));
	}
	return el("div", null, el("h2", null, t("artifacts")), list.node);
}
