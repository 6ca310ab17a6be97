// The browser's part of the standalone page: cards and tags, the popup about a network, keys,
// remembered values, translation.
// Inside a WebUI, which has these itself, it does nothing.
(() => {
    "use strict";
    const page = window.crucible_page;
    if (!page) return;
    const KEY = `crucible-form-${page.version}`;
    const SORT_KEY = "crucible-sort";
    const find = (selector) => document.querySelector(selector);
    const promptBox = () => find("#crucible-prompt textarea");

    // --- values that survive a reload ---------------------------------------------------------

    // Read before gradio builds the page: its fields report their first values as changes, which
    // must not take the place of what is kept. So the last values are kept once those have settled.
    const SETTLED = 500; // ms
    let settled = false;
    let latest = null;
    function recall(key) {
        try {
            return JSON.parse(localStorage.getItem(key));
        } catch (unreadable) {
            return null;
        }
    }
    const kept = recall(KEY);

    function keep(key, values) {
        try {
            localStorage.setItem(key, JSON.stringify(values));
        } catch (refused) {
            console.info("Crucible: this browser keeps no values between visits.", refused);
        }
    }

    window.crucible = {
        remember(values) {
            latest = values;
            if (settled) keep(KEY, values);
            return [];
        },
        restore(values) {
            setTimeout(() => {
                settled = true;
                if (latest) keep(KEY, latest);
            }, SETTLED);
            return Array.isArray(kept) && kept.length === values.length ? kept : values;
        },
    };

    // --- tags and cards -----------------------------------------------------------------------

    const escaped = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
    const tagOf = (card, flags) => {
        const names = [card.dataset.name, card.dataset.alias].filter(Boolean).map(escaped);
        return new RegExp(`\\s*<(?:lora|lyco):(?:${names.join("|")})(?::[^>]*)?>`, flags);
    };

    function setPrompt(text) {
        const box = promptBox();
        const setter = Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, "value").set;
        setter.call(box, text);
        box.dispatchEvent(new Event("input", {bubbles: true}));
    }

    function toggle(card) {
        const box = promptBox();
        const {tag, words} = card.dataset;
        let text = box.value;
        if (tagOf(card).test(text)) {
            text = text.replace(tagOf(card, "g"), "");
            if (words && text.endsWith(`, ${words}`)) text = text.slice(0, -words.length - 2);
            else if (text === words) text = "";
        } else if (!card.classList.contains("crucible-broken")) {
            if (words && !text.includes(words)) text = text ? `${text}, ${words}` : words;
            text = text ? `${text.trimEnd()} ${tag}` : tag;
        }
        setPrompt(text.trimStart());
        markCards();
    }

    function markCards() {
        const text = promptBox()?.value ?? "";
        let used = 0;
        for (const card of document.querySelectorAll(".crucible-card")) {
            const on = tagOf(card).test(text);
            used += on;
            const pressed = String(on);
            if (card.getAttribute("aria-pressed") !== pressed) {
                card.setAttribute("aria-pressed", pressed);
            }
        }
        return used;
    }

    // --- which cards are shown, and in what order ----------------------------------------------

    let folder = ""; // "" is all of them
    let order = recall(SORT_KEY);

    const byName = new Intl.Collator(undefined, {numeric: true}).compare;
    const nameOf = (slot) => slot.firstElementChild.dataset.name;
    const ORDERS = {
        name: () => 0,
        newest: (a, b) => b.dataset.changed - a.dataset.changed,
        kind: (a, b) => byName(a.dataset.kind, b.dataset.kind),
    };

    function sort() {
        if (!Object.hasOwn(ORDERS, order)) order = "name";
        const list = find(".crucible-cards");
        const choice = find("#crucible-sort");
        if (choice && choice.value !== order) choice.value = order;
        if (!list) return;
        const now = [...list.children];
        // What cannot be used stays below what can, in every order.
        const sorted = [...now].sort((a, b) => a.dataset.group - b.dataset.group
            || ORDERS[order](a, b) || byName(nameOf(a), nameOf(b)));
        // Moving a card is a change of the page, which comes back here: only where there is one.
        if (sorted.some((slot, place) => slot !== now[place])) list.append(...sorted);
    }

    const inside = (path) => !folder || path === folder || path.startsWith(`${folder}/`);

    function sift() {
        const chips = [...document.querySelectorAll(".crucible-folders .crucible-chip")];
        if (!chips.some((chip) => chip.dataset.folder === folder)) folder = "";
        for (const chip of chips) {
            const pressed = String(chip.dataset.folder === folder);
            if (chip.getAttribute("aria-pressed") !== pressed) {
                chip.setAttribute("aria-pressed", pressed);
            }
        }
        const words = (find("#crucible-search")?.value ?? "").toLowerCase().split(/\s+/);
        let shown = 0;
        for (const slot of document.querySelectorAll(".crucible-slot")) {
            const fits = inside(slot.dataset.folder)
                && words.every((word) => slot.dataset.search.includes(word));
            if (slot.hidden === fits) slot.hidden = !fits;
            shown += fits;
        }
        const nothing = find(".crucible-nomatch");
        if (nothing && nothing.hidden !== shown > 0) nothing.hidden = shown > 0;
    }

    // --- the popup about a network --------------------------------------------------------------

    let opener = null;
    let pressedOutside = false;
    const popup = () => find("#crucible-about");
    const template = (id) => find(`#${id}`).content.cloneNode(true);

    // Puts a piece of the page that the server makes into `place`, or why there is none.
    async function fill(place, address) {
        place.dataset.address = address;
        place.replaceChildren(template("crucible-reading"));
        let text = null;
        let reason = "";
        try {
            const answer = await fetch(address);
            if (answer.ok) text = await answer.text();
            else reason = `${answer.status} ${answer.statusText}`;
        } catch (unreachable) {
            reason = String(unreachable);
        }
        // Meanwhile the popup may have been opened for another network.
        if (!place.isConnected || place.dataset.address !== address) return;
        if (text === null) {
            place.replaceChildren(template("crucible-unanswered"));
            place.querySelector("code").textContent = reason;
            return;
        }
        place.innerHTML = text; // every text from a file is escaped there
        for (const part of place.querySelectorAll("[data-fill]")) fill(part, part.dataset.fill);
        markInserts();
    }

    function tellAbout(button) {
        const {checkpoint} = find(".crucible-cards").dataset;
        const asked = new URLSearchParams({file: button.dataset.file, checkpoint});
        opener = button;
        find("#crucible-about-name").textContent = nameOf(button.parentElement);
        popup().showModal();
        popup().onclose = () => opener.focus(); // some browsers do not focus a clicked button
        fill(popup().querySelector(".crucible-facts"), `/crucible/network?${asked}`);
    }

    // The texts between the commas of a prompt, each with a comma on both sides; without tags.
    const pieces = (text) => {
        const parts = text.replace(/<[^<>]*>/g, "").split(",").map((part) => part.trim());
        return `,${parts.filter(Boolean).join(",")},`;
    };

    function insert(words) {
        const text = promptBox().value;
        if (pieces(text).includes(pieces(words))) return;
        const tags = text.match(/(\s*<[^<>]*>)*\s*$/)[0]; // network tags stay at the end
        const said = text.slice(0, text.length - tags.length).trimEnd();
        setPrompt((said ? `${said}, ${words}` : words) + (tags.trim() ? ` ${tags.trim()}` : ""));
        markInserts();
    }

    function markInserts() {
        const text = pieces(promptBox()?.value ?? "");
        for (const chip of document.querySelectorAll("#crucible-about [data-insert]")) {
            chip.classList.toggle("crucible-used", text.includes(pieces(chip.dataset.insert)));
        }
    }

    // --- clicks and input ---------------------------------------------------------------------

    const CLICKS = {
        ".crucible-card": toggle,
        ".crucible-i": tellAbout,
        ".crucible-folders .crucible-chip": (chip) => {
            folder = chip.dataset.folder;
            sift();
        },
        "#crucible-about [data-insert]": (chip) => insert(chip.dataset.insert),
        "#crucible-about .crucible-close": () => popup().close(),
    };

    document.addEventListener("click", (event) => {
        for (const [selector, act] of Object.entries(CLICKS)) {
            const target = event.target.closest?.(selector);
            if (target) act(target);
        }
        // The dialog's inside is covered by its sheet: a click on itself is one beside it. A text
        // marked with the mouse, out of the sheet, is not.
        if (event.target === popup() && pressedOutside) popup().close();
    });

    document.addEventListener("pointerdown", (event) => {
        pressedOutside = event.target === popup();
    });

    document.addEventListener("input", (event) => {
        if (event.target.id === "crucible-search") sift();
        else if (event.target === promptBox()) markCards();
        else if (event.target.id === "crucible-sort") {
            order = event.target.value;
            keep(SORT_KEY, order);
            sort();
        }
    });

    // --- keys ---------------------------------------------------------------------------------

    document.addEventListener("keydown", (event) => {
        if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
            event.preventDefault();
            // A value typed just now is told to the page before the button is pressed.
            document.activeElement?.blur?.();
            setTimeout(() => find("#crucible-go")?.click(), 50);
        } else if (event.key === "Escape" && event.target.id === "crucible-search") {
            event.target.value = "";
            sift();
        }
    }, true);

    // --- translation, with the same files as the WebUI's --------------------------------------

    const asked = page.lang || (navigator.language || "").replace("-", "_");
    const lang = page.lang || (asked.startsWith("zh") ? "zh_CN" : asked);
    const texts = page.texts[lang] ?? null;
    const ATTRIBUTES = ["placeholder", "title", "aria-label"];
    const OURS = ".crucible-card .crucible-name, textarea, code, pre, [translate=no]";

    function translated(text) {
        const plain = text.trim();
        return plain && Object.hasOwn(texts, plain) ? text.replace(plain, texts[plain]) : text;
    }

    function translate(root) {
        const nodes = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
        for (let node = nodes.nextNode(); node; node = nodes.nextNode()) {
            if (node.parentElement?.closest(`${OURS}, script, style`)) continue;
            const text = translated(node.data);
            if (text !== node.data) node.data = text;
        }
        const elements = root.querySelectorAll?.(ATTRIBUTES.map((name) => `[${name}]`).join()) ?? [];
        for (const element of [root, ...elements]) {
            for (const name of ATTRIBUTES) {
                const value = element.getAttribute?.(name);
                if (!value) continue;
                const text = translated(value);
                if (text !== value) element.setAttribute(name, text);
            }
        }
    }

    // --- what the page changes by itself ------------------------------------------------------

    let planned = false;
    function tidy() {
        planned = false;
        markCards();
        sort();
        sift();
        if (texts) translate(document.body);
    }

    document.addEventListener("DOMContentLoaded", () => {
        if (texts) document.documentElement.lang = lang.replace("_", "-");
        const plan = () => {
            if (!planned) {
                planned = true;
                requestAnimationFrame(tidy);
            }
        };
        new MutationObserver(plan).observe(document.body, {
            childList: true,
            subtree: true,
            characterData: true,
        });
        plan();
    });
})();
