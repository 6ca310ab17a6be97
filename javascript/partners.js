// Embeddings in pairs (DreamArtist, APT): while the prompt names one half and the negative prompt
// lacks the other, a hint below the negative prompt offers it. Sent away, it stays away.
(() => {
    "use strict";
    const PAUSE = 400; // ms after the last key
    const BELOW = {
        "crucible-prompt": "crucible-negative",
        "txt2img_prompt": "txt2img_neg_prompt",
        "img2img_prompt": "img2img_neg_prompt",
    };
    const NONE = {}; // an answer without pairs, which a server older than this script gives too
    const tags = () => window.crucible_tags;
    const boxIn = (id) => document.querySelector(`#${id} textarea`);
    const sentAway = new Set();

    // --- what is missing ----------------------------------------------------------------------

    const escaped = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
    const whole = (name) =>
        new RegExp(`(?<![\\p{L}\\p{N}_])${escaped(name)}(?![\\p{L}\\p{N}_])`, "giu");
    const names = (text, name) => whole(name).test(text);

    // Other halves for the negative prompt that neither it nor the prompt has.
    function missing(prompt, negative, pairs) {
        const said = prompt.replace(/<[^<>]*>/g, " "); // the name of a network is no embedding
        return Object.entries(pairs).flatMap(([name, partners]) => {
            const rest = partners.reduce((text, each) => text.replace(whole(each), " "), said);
            if (!names(rest, name)) return [];
            return partners.filter((each) => !names(said, each) && !names(negative, each));
        });
    }

    // --- the hint -----------------------------------------------------------------------------

    function element(tag, properties, ...inside) {
        const made = Object.assign(document.createElement(tag), properties);
        made.append(...inside);
        return made;
    }

    function hint(name, box) {
        const add = element("button", {type: "button", className: "crucible-partner-add"},
            element("span", {}, "Add"), " ", element("b", {translate: false}, name));
        const away = element("button", {type: "button", className: "crucible-partner-away"}, "×");
        away.setAttribute("aria-label", "Not now");
        add.addEventListener("click", () => {
            const {value} = box;
            const joint = !value.trim() || /[,\n]\s*$/.test(value) ? "" : ", ";
            tags().replace(box, value.length, value.length, joint + name);
            look();
        });
        away.addEventListener("click", () => {
            sentAway.add(name);
            look();
        });
        return element("p", {className: "crucible-partner"}, add, away);
    }

    function show(id, box, wanted) {
        const place = document.getElementById(id);
        const shown = [...place.querySelectorAll(".crucible-partner")];
        const now = shown.map((each) => each.querySelector("b").textContent);
        if (now.join("\n") === wanted.join("\n")) return;
        shown.forEach((each) => each.remove());
        place.append(...wanted.map((name) => hint(name, box)));
    }

    const isEmpty = (id) => !boxIn(id)?.value.trim();

    function look() {
        const known = Object.keys(BELOW).every(isEmpty) ? NONE : tags().names(look);
        if (!known) return;
        for (const [above, below] of Object.entries(BELOW)) {
            const [prompt, negative] = [boxIn(above), boxIn(below)];
            if (!prompt || !negative) continue;
            const found = missing(prompt.value, negative.value, known.partners ?? {});
            const wanted = [...new Set(found)].filter((name) => !sentAway.has(name));
            show(below, negative, wanted);
        }
    }

    let planned = 0;
    function plan(event) {
        if (!tags()?.boxOf(event)) return;
        clearTimeout(planned);
        planned = setTimeout(look, PAUSE);
    }
    document.addEventListener("input", plan);
    document.addEventListener("focusin", plan);
})();
