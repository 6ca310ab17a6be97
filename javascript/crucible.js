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

    function keep(key, values) {
        try {
            localStorage.setItem(key, JSON.stringify(values));
        } catch (refused) {
            console.info("Crucible: this browser keeps no values between visits.", refused);
        }
    }

    const kept = recall(KEY);

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

    const NAMED = /<(?:lora|lyco):([^:>]+)/g;
    let pressed = new Set(); // the cards of the networks in the prompt

    function markCards() {
        const text = promptBox()?.value ?? "";
        const names = [...text.matchAll(NAMED)].map((match) => match[1]);
        const used = new Set(names.flatMap((name) => cardsOf.get(name) ?? []));
        for (const card of pressed) if (!used.has(card)) card.setAttribute("aria-pressed", "false");
        for (const card of used) if (!pressed.has(card)) card.setAttribute("aria-pressed", "true");
        pressed = used;
    }

    // --- which cards are shown, and in what order ----------------------------------------------

    // A library has thousands of cards. What is asked at every key stands in arrays and maps, made
    // when the server sends a list; of those that fit only as many are shown as have been scrolled to.
    const PORTION = 120;
    let list = null;
    let slots = []; // in their order
    let cardsOf = new Map(); // by name and alias
    let fitting = [];
    let shown = []; // the first of those that fit
    let searched = "";

    let folder = ""; // "" is all of them
    let order = recall(SORT_KEY);

    // Whether the server has sent other cards.
    function takeIn() {
        const now = find(".crucible-cards");
        if (now === list) return false;
        list = now;
        slots = [...(list?.children ?? [])].map((slot) => (
            {slot, text: slot.dataset.search, folder: slot.dataset.folder}));
        cardsOf = new Map();
        for (const {slot} of slots) {
            const card = slot.firstElementChild;
            for (const name of new Set([card.dataset.name, card.dataset.alias])) {
                if (!cardsOf.has(name)) cardsOf.set(name, []);
                cardsOf.get(name).push(card);
            }
        }
        pressed = new Set();
        for (const {slot} of slots) slot.hidden = true;
        shown = [];
        return true;
    }

    const byName = new Intl.Collator(undefined, {numeric: true}).compare;
    const nameOf = (slot) => slot.firstElementChild.dataset.name;
    const ORDERS = {
        name: () => 0,
        newest: (a, b) => b.dataset.changed - a.dataset.changed,
        kind: (a, b) => byName(a.dataset.kind, b.dataset.kind),
    };

    function sort() {
        const now = slots.map(({slot}) => slot);
        // What cannot be used stays below what can, in every order.
        slots.sort(({slot: a}, {slot: b}) => a.dataset.group - b.dataset.group
            || ORDERS[order](a, b) || byName(nameOf(a), nameOf(b)));
        if (slots.some(({slot}, place) => slot !== now[place])) {
            list.append(...slots.map(({slot}) => slot));
        }
    }

    function showOrder() {
        if (!Object.hasOwn(ORDERS, order)) order = "name";
        const choice = find("#crucible-sort");
        if (choice && choice.value !== order) choice.value = order;
    }

    const inside = (path) => !folder || path === folder || path.startsWith(`${folder}/`);
    const search = () => (find("#crucible-search")?.value ?? "").toLowerCase();

    function sift() {
        const chips = [...document.querySelectorAll(".crucible-folders .crucible-chip")];
        if (!chips.some((chip) => chip.dataset.folder === folder)) folder = "";
        for (const chip of chips) {
            chip.setAttribute("aria-pressed", String(chip.dataset.folder === folder));
        }
        searched = search();
        const words = searched.split(/\s+/).filter(Boolean);
        fitting = slots.filter((each) => inside(each.folder)
            && words.every((word) => each.text.includes(word)));
        show(PORTION);
        const nothing = find(".crucible-nomatch");
        if (nothing) nothing.hidden = fitting.length > 0;
    }

    function show(count) {
        const now = fitting.slice(0, count).map(({slot}) => slot);
        const seen = new Set(now);
        for (const slot of shown) if (!seen.has(slot)) slot.hidden = true;
        for (const slot of now) slot.hidden = false;
        shown = now;
    }

    // Scrolling does not bubble.
    document.addEventListener("scroll", ({target}) => {
        if (target !== list || shown.length === fitting.length) return;
        const below = list.scrollHeight - list.scrollTop - list.clientHeight;
        if (below < 2 * list.clientHeight) show(shown.length + PORTION);
    }, true);

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
            sift();
        }
    });

    // --- keys ---------------------------------------------------------------------------------

    // The main buttons, of which one is in sight.
    const MAIN = "#crucible-go, #crucible-one, #crucible-tagger-go, #crucible-prepare-go, "
        + "#crucible-training-go, "
        + "#crucible-toolbox-about-go, .crucible-toolbox-actions button.primary";

    document.addEventListener("keydown", (event) => {
        if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
            event.preventDefault();
            // A value typed just now is told to the page before the button is pressed.
            document.activeElement?.blur?.();
            const buttons = [...document.querySelectorAll(MAIN)];
            const seen = buttons.find((button) => button.offsetParent !== null);
            setTimeout(() => seen?.click(), 50);
        } else if (event.key === "Escape" && event.target.id === "crucible-search") {
            event.target.value = "";
            sift();
        }
    }, true);

    // --- translation, with the same files as the WebUI's --------------------------------------

    const asked = page.lang || (navigator.language || "").replace("-", "_");
    const lang = page.lang || (asked.startsWith("zh") ? "zh_CN" : asked);
    const texts = page.texts[lang] ?? null;
    const NUMBER = /\d+/g;
    const ATTRIBUTES = ["placeholder", "title", "alt", "aria-label"];
    const OURS = ".crucible-card .crucible-name, textarea, code, pre, [translate=no]";

    function translated(text) {
        const plain = text.trim();
        if (plain && Object.hasOwn(texts, plain)) return text.replace(plain, texts[plain]);
        // "Tag 12 pictures" is found as "Tag {n} pictures".
        const numbers = plain.match(NUMBER) ?? [];
        const pattern = plain.replace(NUMBER, "{n}");
        if (!numbers.length || !Object.hasOwn(texts, pattern)) return text;
        return text.replace(plain, texts[pattern].replaceAll("{n}", () => numbers.shift()));
    }

    // A sentence about somebody's file is found as "{file}: there is no such folder". What stands in
    // a hole is left as it is, unless it has a line of its own.
    const HOLE = /\{(?!n\})[a-z]+\}/g;
    const SAID = ".crucible-messages, .crucible-training-said-last, .crucible-step, "
        + ".crucible-tagger-done, .crucible-tagger-problems li";
    const sentences = Object.entries(texts ?? {}).filter(([text]) => text.match(HOLE)).map(
        ([text, told]) => ({told, holes: text.match(HOLE), pattern: new RegExp(
            `^${text.split(HOLE).map(escaped).join("(.+?)")}$`, "s")}));

    function sentence(plain) {
        for (const {pattern, holes, told} of sentences) {
            const found = plain.match(pattern);
            if (!found) continue;
            return told.replace(HOLE, (hole) => {
                const part = found[holes.indexOf(hole) + 1];
                return Object.hasOwn(texts, part) ? texts[part] : sentence(part);
            });
        }
        return plain;
    }

    function translateText(node) {
        if (node.parentElement?.closest(`${OURS}, script, style`)) return;
        let text = translated(node.data);
        if (text === node.data && node.parentElement?.closest(SAID)) text = sentence(text.trim());
        if (text !== node.data) node.data = text;
    }

    function translate(root) {
        if (root.nodeType === Node.TEXT_NODE) translateText(root);
        const nodes = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
        for (let node = nodes.nextNode(); node; node = nodes.nextNode()) translateText(node);
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
    let fresh = new Set(); // what was added or changed since the last look

    function tidy() {
        const changed = [...fresh].filter((node) => node.isConnected);
        planned = false;
        fresh = new Set();
        showOrder();
        if (takeIn()) {
            sort();
            sift();
        } else if (search() !== searched) sift();
        markCards();
        if (texts) changed.forEach(translate);
    }

    function plan() {
        if (!planned) requestAnimationFrame(tidy);
        planned = true;
    }

    document.addEventListener("DOMContentLoaded", () => {
        if (texts) document.documentElement.lang = lang.replace("_", "-");
        new MutationObserver((changes) => {
            for (const {type, target, addedNodes} of changes) {
                if (type === "characterData") fresh.add(target);
                for (const node of addedNodes) fresh.add(node);
            }
            plan();
        }).observe(document.body, {
            childList: true,
            subtree: true,
            characterData: true,
        });
        fresh.add(document.body);
        plan();
    });
})();
