// Completion while a prompt is typed: kinds of tags after "<", names of networks, arguments, block
// presets, and embeddings outside of tags. In the standalone page and in a WebUI.
(() => {
    "use strict";
    const MOST = 12; // names shown
    const LETTERS = 3; // of a word, before embeddings are offered
    const ID = "crucible-completions";
    const ours = Boolean(window.crucible_page);
    const tags = () => window.crucible_tags; // the other scripts may load later

    const KINDS = [
        ["lora", "a network: LoRA, LoHa, LoKr, OFT, …"],
        ["lyco", "the same as lora"],
        ["hypernet", "a hypernetwork"],
        ["lllite", "a ControlNet-LLLite: follows the control picture"],
        ["aesthetic", "turns the prompt towards the pictures that a file stands for"],
    ].filter(([kind]) => ours || kind !== "aesthetic"); // no WebUI knows it
    const SHELVES = ["hypernet", "lllite", "aesthetic"]; // kinds with names of their own
    const OF_KIND = {
        hypernet: [],
        lllite: ["start=", "stop=", "step=", "hr="],
        aesthetic: ["steps=", "rate=", "slerp="],
    };
    const USUAL = {aesthetic: 0.9}; // the weight of a tag without one, where that is not 1
    const ARGUMENTS = [
        ["te=", "weight of the text encoder"],
        ["unet=", "weight of the UNet; over the steps: 1@0,0@0.5"],
        ["lbw=", "weights by block: a preset, or a number for each"],
        ["lbwe=", "weights by element in the blocks: IN05-OUT05:attn:0"],
        ["start=", "first step, or share of the steps"],
        ["stop=", "step, or share of the steps, where it ends"],
        ["step=", "first and last step: 5-15"],
        ["hr=", "weight in the hires pass"],
        ["hrte=", "weight of the text encoder in the hires pass"],
        ["hrunet=", "weight of the UNet in the hires pass"],
        ["in=", "weight of the blocks going in"],
        ["mid=", "weight of the middle block"],
        ["out=", "weight of the blocks going out"],
        ["dyn=", "how many ranks of a DyLoRA"],
        ["steps=", "how many steps towards the pictures: 5"],
        ["rate=", "how far each step goes: 0.0001"],
        ["slerp=", "1 blends along the sphere, 0 along the line"],
    ];
    const isFor = (kind, name) => OF_KIND[kind]?.includes(name)
        ?? !OF_KIND.aesthetic.includes(name);

    // The extension a1111-sd-webui-tagcomplete offers the same: two lists would cover each other.
    const another = () => !ours && ("TAC_CFG" in window
        || document.querySelector(".autocompleteParent, .autocompleteResults") !== null);

    // --- what could be meant ------------------------------------------------------------------

    // What is being typed at the caret, as {what, typed, from, to, …}; null where there is nothing
    // to complete.
    function context(text, caret, negative) {
        const open = negative ? null : /<([^<>\n]*)$/.exec(text.slice(0, caret));
        if (!open) return word(text, caret);
        const [kind, ...items] = open[1].split(":");
        const tag = {tagStart: open.index, to: caret, closed: isClosed(text, caret)};
        if (!items.length) return {...tag, what: "kind", typed: kind, from: open.index + 1};
        const typed = items.at(-1);
        const from = caret - typed.length;
        if (!KINDS.some(([name]) => name === kind)) return null;
        if (items.length === 1) {
            const rest = tag.closed ? /^[^:>]*/.exec(text.slice(caret))[0] : "";
            const source = SHELVES.includes(kind) ? kind : "lora";
            return {...tag, what: "name", kind, source, typed, from, to: caret + rest.length};
        }
        if (kind === "hypernet") return null;
        const [lead] = /^(?:lbwe?=)?/.exec(typed);
        if (lead && isFor(kind, lead)) {
            const rest = tag.closed ? /^[^:>]*/.exec(text.slice(caret))[0] : "";
            const of = lead === "lbw=" ? "presets" : "elements";
            return {...tag, what: "preset", of, typed: typed.slice(lead.length),
                from: from + lead.length, to: caret + rest.length};
        }
        if (!/^[a-z]*$/.test(typed)) return null;
        const rest = /^[a-z]*=?/.exec(text.slice(caret))[0];
        const used = items.slice(1, -1).map((item) => item.split("=")[0]);
        return {...tag, what: "argument", kind, typed, from, to: caret + rest.length, used};
    }

    const isClosed = (text, caret) => /^[^<>\n]*>/.test(text.slice(caret));

    function word(text, caret) {
        const typed = /[^\s,<>()[\]{}:|\\]*$/.exec(text.slice(0, caret))[0];
        const goesOn = /^[\p{L}\p{N}_]/u.test(text.slice(caret));
        if (typed.length < LETTERS || goesOn) return null;
        return {what: "embedding", typed, from: caret - typed.length, to: caret};
    }

    // The rows that fit: those that begin so, those with an alias that does, those that hold it;
    // `texts` are in lower case, an alias in a line of its own.
    function fitting(rows, typed, texts, anywhere = true, most = MOST) {
        const wanted = typed.toLowerCase();
        const found = [[], [], []];
        for (let i = 0; i < rows.length && found[0].length < most; i++) {
            const place = texts[i].indexOf(wanted);
            if (place < 0) continue;
            const how = place === 0 ? 0 : texts[i].includes(`\n${wanted}`) ? 1 : 2;
            if ((how < 2 || anywhere) && found[how].length < most) found[how].push(rows[i]);
        }
        return found.flat().slice(0, most);
    }

    // In lower case, made once for each list of names.
    const lowered = new WeakMap();
    function searchable(rows) {
        if (!lowered.has(rows)) {
            lowered.set(rows, rows.map(([name, alias]) => `${name}\n${alias}`.toLowerCase()));
        }
        return lowered.get(rows);
    }

    const offer = (name, note, badges, insert) => ({name, note, badges, insert});

    const OFFERS = {
        kind: ({typed}) => fitting(KINDS, typed, KINDS.map(([name]) => name), false)
            .map(([name, note]) => offer(name, note, [], `${name}:`)),
        argument: ({kind, typed, used}) => {
            const free = ARGUMENTS.filter(
                ([name]) => !used.includes(name.slice(0, -1)) && isFor(kind, name));
            return fitting(free, typed, free.map(([name]) => name), false, free.length)
                .map(([name, note]) => offer(name, note, [], name));
        },
        preset: ({typed, of}, known) => {
            const presets = Object.entries(known[of] ?? {});
            return fitting(presets, typed, presets.map(([name]) => name.toLowerCase()))
                .filter(([name]) => name !== typed)
                .map(([name, values]) => offer(name, "", [values], name));
        },
        name: ({typed, source}, known) => {
            const rows = known[source] ?? [];
            return fitting(rows, typed, searchable(rows))
                .map((row) => ({...offer(row[0], "", [row[2], row[3]], row[0]), row}));
        },
        embedding: ({typed}, known) => {
            const rows = known.embedding;
            return fitting(rows, typed, searchable(rows), false)
                .filter(([name]) => name !== typed)
                .map((row) => offer(row[0], "", ["Embedding", row[3]], row[0]));
        },
    };
    const NEEDS_NAMES = ["name", "preset", "embedding"];

    // --- the list -----------------------------------------------------------------------------

    let shown = null; // {box, caret, offers, at, context}
    let writing = false; // what we write ourselves asks for no suggestions
    const list = () => document.getElementById(ID);

    function element(tag, properties = {}, ...inside) {
        const made = Object.assign(document.createElement(tag), properties);
        made.append(...inside);
        return made;
    }

    function makeList() {
        const made = element("ul", {id: ID, hidden: true});
        made.setAttribute("role", "listbox");
        made.setAttribute("aria-label", "Suggestions");
        // The caret stays in the prompt.
        made.addEventListener("mousedown", (event) => event.preventDefault());
        made.addEventListener("click", (event) => {
            const option = event.target.closest("[role=option]");
            if (option && shown) choose(shown.offers[[...made.children].indexOf(option)]);
        });
        document.body.append(made);
        return made;
    }

    function option({name, note, badges}, index) {
        const title = element("span", {className: "crucible-offer-name", translate: false}, name);
        const made = element("li", {id: `${ID}-${index}`}, title);
        if (note) made.append(element("span", {className: "crucible-offer-note"}, note));
        for (const badge of badges.filter(Boolean)) {
            made.append(element("b", {className: "crucible-offer-badge", translate: false}, badge));
        }
        made.setAttribute("role", "option");
        return made;
    }

    function show(box, caret, offers, what) {
        const place = list() ?? makeList();
        if (shown && shown.box !== box) close();
        shown = {box, caret, offers, at: 0, context: what};
        place.replaceChildren(...offers.map(option));
        place.hidden = false;
        box.setAttribute("aria-autocomplete", "list");
        box.setAttribute("aria-controls", ID);
        mark(0);
        put();
        document.dispatchEvent(new Event("crucible-completions"));
    }

    function mark(index) {
        const options = [...list().children];
        shown.at = (index + options.length) % options.length;
        options.forEach((each, i) => each.setAttribute("aria-selected", String(i === shown.at)));
        const chosen = options[shown.at];
        shown.box.setAttribute("aria-activedescendant", chosen.id);
        chosen.scrollIntoView({block: "nearest"});
    }

    function close() {
        if (!shown) return;
        for (const name of ["aria-autocomplete", "aria-controls", "aria-activedescendant"]) {
            shown.box.removeAttribute(name);
        }
        shown = null;
        list().hidden = true;
        document.dispatchEvent(new Event("crucible-completions"));
    }

    // --- where the caret is -------------------------------------------------------------------

    const COPIED = [
        "boxSizing", "width", "paddingTop", "paddingRight", "paddingBottom", "paddingLeft",
        "borderTopWidth", "borderRightWidth", "borderBottomWidth", "borderLeftWidth",
        "fontFamily", "fontSize", "fontStyle", "fontWeight", "fontStretch", "lineHeight",
        "letterSpacing", "wordSpacing", "textIndent", "textTransform", "tabSize", "direction",
    ];

    // The line of the caret, in the window: a copy of the box's text, laid out the same way.
    function caretLine(box, caret) {
        const style = getComputedStyle(box);
        const copy = element("div", {}, box.value.slice(0, caret));
        for (const name of COPIED) copy.style[name] = style[name];
        Object.assign(copy.style, {
            position: "fixed", top: 0, left: 0, height: "auto", visibility: "hidden",
            borderStyle: "solid", whiteSpace: "pre-wrap", overflowWrap: "break-word",
        });
        // The box's own scroll bar takes room from its lines.
        copy.style.boxSizing = "content-box";
        const pads = parseFloat(style.paddingLeft) + parseFloat(style.paddingRight);
        copy.style.width = `${box.clientWidth - pads}px`;
        const end = element("span", {}, "\u200b");
        copy.append(end);
        document.documentElement.append(copy); // beside the body: nobody who watches that is woken
        const [frame, spot] = [box.getBoundingClientRect(), end.getBoundingClientRect()];
        copy.remove();
        const top = frame.top + spot.top - box.scrollTop;
        return {left: frame.left + spot.left, top, bottom: top + spot.height};
    }

    function put() {
        const place = list();
        const line = caretLine(shown.box, shown.context.from);
        const {width, height} = place.getBoundingClientRect();
        const below = line.bottom + 4;
        const fits = below + height <= innerHeight || line.top - 4 - height < 0;
        place.style.top = `${fits ? below : line.top - 4 - height}px`;
        place.style.left = `${Math.max(4, Math.min(line.left, innerWidth - width - 4))}px`;
    }

    // --- typing and choosing ------------------------------------------------------------------

    function suggest(box) {
        const caret = box.selectionStart;
        const here = caret === box.selectionEnd
            ? context(box.value, caret, tags().isNegative(box)) : null;
        if (!here) {
            close();
            return;
        }
        const again = () => {
            // The answer came late: only if one still waits at the same place.
            const waits = document.activeElement === box && box.selectionStart === caret
                && (!shown || shown.box === box) && !writing;
            if (waits) suggest(box);
        };
        const known = NEEDS_NAMES.includes(here.what) ? tags().names(again) : {};
        const offers = known ? OFFERS[here.what](here, known) : [];
        if (offers.length) show(box, caret, offers, here);
        else close();
    }

    function choose(chosen) {
        const {box, context: here} = shown;
        const goesOn = here.what === "kind" || chosen.insert.endsWith("=");
        close();
        writing = !goesOn;
        if (here.what === "name") chooseName(box, here, chosen);
        else {
            const taken = here.what === "kind" && box.value[here.to] === ":" ? 1 : 0;
            tags().replace(box, here.from, here.to + taken, chosen.insert);
        }
        writing = false;
    }

    // As a click on the network's card: with its preferred weight, and its activation words.
    function chooseName(box, here, {row: [name, , , , weight, words]}) {
        const text = box.value;
        const hasArguments = text[here.to] === ":" && here.closed;
        if (hasArguments) {
            tags().replace(box, here.from, here.to, name);
            return;
        }
        const end = here.to + (here.closed && text[here.to] === ">" ? 1 : 0);
        const written = tags().written(weight === 1 ? USUAL[here.kind] ?? 1 : weight);
        const tag = `<${here.kind}:${name}:${written}>`;
        const wanted = words && !text.includes(words) ? words : "";
        if (!wanted || !ours) {
            tags().replace(box, here.tagStart, end, wanted ? `${tag} ${wanted}` : tag);
            return;
        }
        const lead = text.slice(0, here.tagStart).replace(/[ \t]+$/, "");
        const joint = !lead || lead.endsWith("\n") ? "" : lead.endsWith(",") ? " " : ", ";
        tags().replace(box, lead.length, end, `${joint}${wanted} ${tag}`);
    }

    const KEYS = {
        ArrowDown: () => mark(shown.at + 1),
        ArrowUp: () => mark(shown.at - 1),
        Enter: () => choose(shown.offers[shown.at]),
        Tab: () => choose(shown.offers[shown.at]),
        Escape: close,
    };

    function onKey(event) {
        if (!shown || event.target !== shown.box || event.isComposing) return;
        const modified = event.ctrlKey || event.metaKey || event.altKey || event.shiftKey;
        if (modified || !Object.hasOwn(KEYS, event.key)) return;
        event.preventDefault();
        event.stopPropagation();
        KEYS[event.key]();
    }

    function onInput(event) {
        const box = tags()?.boxOf(event);
        if (!box || writing || event.isComposing || document.activeElement !== box) return;
        if (!another()) suggest(box);
    }

    document.addEventListener("keydown", onKey, true);
    document.addEventListener("input", onInput);
    document.addEventListener("compositionend", onInput);
    document.addEventListener("selectionchange", () => {
        if (shown && shown.box.selectionEnd !== shown.caret) close();
    });
    document.addEventListener("focusout", close);
    document.addEventListener("scroll", (event) => {
        if (shown && event.target !== list()) put();
    }, true);
    addEventListener("resize", close);

    window.crucible_completion = {isOpen: () => shown !== null};
})();
