// The browser's part of the Toolbox tab, in a WebUI too: offers the host's files in fields, shows
// networks with their weights as rows, draws the energy by rank, and takes a file to its tool.
(() => {
    "use strict";
    const ID = "crucible-toolbox";
    const PRESETS = [
        "NONE", "ALL", "INS", "IND", "INALL", "MIDD", "OUTD", "OUTS", "OUTALL", "ALL0.5"];
    const tab = () => document.getElementById(ID);
    const find = (name) => document.getElementById(`${ID}-${name}`);
    const boxOf = (place) => place?.querySelector("input:not([type=checkbox]):not([type=range]), textarea");

    function el(name, told, ...inside) {
        const made = document.createElement(name);
        for (const [key, value] of Object.entries(told ?? {})) {
            if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
            else made.setAttribute(key, value);
        }
        made.append(...inside.filter((each) => each !== null && each !== undefined));
        return made;
    }

    function write(box, text) {
        if (!box || box.value === text) return;
        const kind = Object.getPrototypeOf(box);
        Object.getOwnPropertyDescriptor(kind, "value").set.call(box, text);
        box.dispatchEvent(new Event("input", {bubbles: true}));
        box.dispatchEvent(new Event("change", {bubbles: true}));
    }

    // --- files of the host, offered while one types ----------------------------------------------

    async function files(sort, words) {
        const asked = new URLSearchParams({sort: sort === "any" ? "" : sort, words});
        try {
            const answer = await fetch(`${find("live").dataset.route}/files?${asked}`);
            return answer.ok ? (await answer.json()).files : [];
        } catch (unreachable) {
            console.info("Crucible: the server does not list its files.", unreachable);
            return [];
        }
    }

    let lists = 0;
    async function offer(box, sort) {
        if (!box.list) {
            lists += 1;
            const made = el("datalist", {id: `${ID}-list-${lists}`, translate: "no"});
            box.after(made);
            box.setAttribute("list", made.id);
            box.setAttribute("autocomplete", "off");
        }
        const found = await files(sort, box.value);
        const options = found.filter((each) => each !== box.value);
        box.list?.replaceChildren(...options.map((each) => el("option", {value: each})));
    }

    function sortOf(box) {
        const field = box.closest(".crucible-file");
        const named = [...(field?.classList ?? [])].find((each) => each.startsWith("crucible-of-"));
        return named?.slice("crucible-of-".length) ?? null;
    }

    document.addEventListener("focusin", ({target}) => {
        if (target.tagName !== "INPUT" || !target.closest(`#${ID} .crucible-file`)) return;
        offer(target, sortOf(target));
    });
    let typing = 0;
    document.addEventListener("input", ({target}) => {
        if (target.tagName !== "INPUT" || !target.closest?.(`#${ID} .crucible-file`)) return;
        clearTimeout(typing);
        typing = setTimeout(() => offer(target, sortOf(target)), 150);
    });

    // --- networks with their weights, as rows ----------------------------------------------------

    // FILE, FILE:0.8, FILE:0.5:1, each with more: FILE:0.8:lbw=MIDD. A file's name may have colons.
    const TAGGED = /^(.*?)((?::(?:-?\d*\.?\d+|[a-z_]+=[^:]*))*)$/i;

    function read(line) {
        const [, file, rest] = line.trim().match(TAGGED);
        const parts = rest.split(":").slice(1);
        const numbers = parts.filter((each) => !each.includes("="));
        const named = new Map(parts.filter((each) => each.includes("=")).map((each) => each.split("=")));
        const te = Number(numbers[0] ?? named.get("te") ?? 1);
        const unet = Number(numbers[1] ?? named.get("unet") ?? te);
        const blocks = named.get("lbw") ?? "";
        const more = [...named].filter(([key]) => !["te", "unet", "lbw"].includes(key));
        return {file, te, unet, blocks, more, dyn: numbers[2] ?? ""};
    }

    function line({file, te, unet, blocks, more, dyn}) {
        const numbers = dyn ? [te, unet, dyn] : te === unet ? [unet] : [te, unet];
        const named = [...(blocks ? [["lbw", blocks]] : []), ...more];
        return [file, ...numbers, ...named.map((pair) => pair.join("="))].join(":");
    }

    class Rows {
        constructor(field) {
            this.box = boxOf(field);
            this.place = el("div", {class: "crucible-toolbox-networks"});
            this.list = el("ol");
            const add = el("button", {type: "button", class: "crucible-press", onclick: () => {
                this.all.push(read(""));
                this.show();
                this.list.lastElementChild.querySelector("input").focus();
            }}, "+ Add a network");
            this.place.append(el("h4", {}, field.querySelector("label > span")?.textContent ?? ""),
                this.list, add);
            (field.closest(".form") ?? field).after(this.place);
            field.classList.add("crucible-wire");
            this.box.addEventListener("input", () => this.follow());
            this.told = null;
            this.follow();
        }

        // The field may be filled by what the browser kept, or from what is shown about a file.
        follow() {
            if (this.box.value === this.told) return;
            this.told = this.box.value;
            this.all = this.told.split("\n").filter((each) => each.trim()).map(read);
            this.show();
        }

        tell() {
            this.told = this.all.filter(({file}) => file.trim()).map(line).join("\n");
            write(this.box, this.told);
        }

        add(file) {
            this.all = this.all.filter((each) => each.file.trim());
            if (!this.all.some((each) => each.file === file)) this.all.push(read(file));
            this.show();
            this.tell();
        }

        show() {
            if (!this.all.length) this.all.push(read(""));
            this.list.replaceChildren(...this.all.map((each) => this.row(each)));
        }

        row(each) {
            const linked = each.te === each.unet;
            const sliders = el("span", {class: "crucible-toolbox-weights"});
            const both = (value) => { each.te = each.unet = value; };
            const weigh = () => sliders.replaceChildren(...(sliders.dataset.apart
                ? [this.slider("UNet", each.unet, (value) => { each.unet = value; }),
                    this.slider("Text encoder", each.te, (value) => { each.te = value; })]
                : [this.slider("Weight", each.unet, both)]));
            if (!linked) sliders.dataset.apart = "yes";
            weigh();
            const apart = el("button", {type: "button", class: "crucible-press",
                title: "Weights of text encoder and UNet apart", "aria-pressed": String(!linked),
                onclick: ({currentTarget}) => {
                    if (sliders.dataset.apart) delete sliders.dataset.apart;
                    else sliders.dataset.apart = "yes";
                    if (!sliders.dataset.apart) both(each.unet);
                    currentTarget.setAttribute("aria-pressed", String(Boolean(sliders.dataset.apart)));
                    weigh();
                    this.tell();
                }}, "⇅");
            const file = el("input", {
                class: "crucible-field", type: "text", placeholder: "path, or its name",
                "aria-label": "Network", oninput: ({target}) => {
                    each.file = target.value.trim();
                    this.tell();
                }});
            file.value = each.file;
            const blocks = el("input", {
                class: "crucible-field", type: "text", placeholder: "all blocks", list: `${ID}-presets`,
                "aria-label": "Weights by block", title: "Weights by block: a preset, or 12, 17, 20 or 26 numbers",
                oninput: ({target}) => {
                    each.blocks = target.value.trim();
                    this.tell();
                }});
            blocks.value = each.blocks;
            const away = el("button", {type: "button", class: "crucible-press", title: "Take it out",
                onclick: () => {
                    this.all.splice(this.all.indexOf(each), 1);
                    this.show();
                    this.tell();
                }}, "×");
            return el("li", {}, el("span", {class: "crucible-file crucible-of-network"}, file),
                sliders, apart, blocks, away);
        }

        slider(name, value, set) {
            const range = el("input", {
                type: "range", min: "-1", max: "2", step: "0.05", "aria-label": name});
            const number = el("input", {
                type: "number", step: "0.05", class: "crucible-field", "aria-label": name});
            range.value = number.value = String(value);
            const moved = (from, to) => () => {
                const found = Number(from.value);
                if (from.value === "" || !Number.isFinite(found)) return;
                to.value = from.value;
                set(found);
                this.tell();
            };
            range.addEventListener("input", moved(range, number));
            number.addEventListener("input", moved(number, range));
            return el("label", {}, el("span", {}, name), range, number);
        }
    }
    const rows = new Map(); // by the field's id

    // --- the energy by rank ----------------------------------------------------------------------

    const SVG = "http://www.w3.org/2000/svg";
    const HEIGHT = 220, LEFT = 48, RIGHT = 14, TOP = 12, BOTTOM = 26;

    function node(name, attributes, ...inside) {
        const made = document.createElementNS(SVG, name);
        for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
        made.append(...inside);
        return made;
    }

    const rankBox = () => boxOf(find("resize-rank"));

    function drawEnergy(place) {
        const {whole, least} = JSON.parse(place.dataset.energy);
        const width = Math.max(320, place.clientWidth), right = width - RIGHT, bottom = HEIGHT - BOTTOM;
        const most = whole.length;
        const start = Math.min(whole[0], least[0][0]);
        const lowest = [0.96, 0.9, 0.8, 0.6, 0.4, 0.2, 0].find((each) => each <= start);
        const x = (rank) => LEFT + (most > 1 ? (rank - 1) / (most - 1) : 0.5) * (right - LEFT);
        const y = (share) => bottom - ((share - lowest) / (1 - lowest || 1)) * (bottom - TOP);
        const path = (values) => values.map(
            (value, place) => `${place ? "L" : "M"}${x(place + 1).toFixed(1)} ${y(value).toFixed(1)}`).join("");
        const svg = node("svg", {viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT,
            role: "slider", tabindex: "0", "aria-label": "Rank", "aria-valuemin": 1, "aria-valuemax": most});
        for (let at = 0; at <= 4; at += 1) {
            const share = lowest + ((1 - lowest) * at) / 4;
            svg.append(
                node("line", {class: "grid", x1: LEFT, x2: right, y1: y(share), y2: y(share)}),
                node("text", {x: LEFT - 6, y: y(share) + 4, "text-anchor": "end"},
                    `${Number((share * 100).toFixed(1))} %`));
        }
        const step = Math.max(1, Math.ceil(most / Math.max(4, Math.floor(width / 70))));
        for (let rank = 1; rank <= most; rank += rank === 1 && step > 1 ? step - 1 : step) {
            svg.append(node("text", {x: x(rank), y: HEIGHT - 8, "text-anchor": "middle"}, String(rank)));
        }
        const mark = node("g", {class: "mark"}, node("line", {y1: TOP, y2: bottom}),
            node("circle", {class: "whole", r: 5}), node("circle", {class: "least", r: 4}));
        svg.append(node("path", {class: "least", d: path(least.map(([share]) => share))}),
            node("path", {class: "whole", d: path(whole)}), mark);
        const tip = el("p", {class: "crucible-energy-tip", role: "status"});
        const percent = (share) => `${(share * 100).toFixed(share > 0.99 ? 2 : 1)} %`;

        function show() {
            const asked = Number(rankBox()?.value) || 1;
            const rank = Math.min(most, Math.max(1, Math.round(asked)));
            const [line, all, worst] = mark.children;
            line.setAttribute("x1", x(rank));
            line.setAttribute("x2", x(rank));
            for (const [dot, share] of [[all, whole[rank - 1]], [worst, least[rank - 1][0]]]) {
                dot.setAttribute("cx", x(rank));
                dot.setAttribute("cy", y(share));
            }
            svg.setAttribute("aria-valuenow", rank);
            tip.replaceChildren(
                el("b", {}, el("span", {}, "Rank"), ` ${rank}`), el("span", {}, percent(whole[rank - 1])),
                el("span", {}, "of the energy kept"), "·", el("span", {}, "least:"),
                el("span", {translate: "no"}, `${percent(least[rank - 1][0])} ${least[rank - 1][1]}`));
        }
        const choose = (rank) => {
            write(rankBox(), String(Math.min(most, Math.max(1, rank))));
            show();
        };
        let held = false;
        const at = (event) => {
            const box = svg.getBoundingClientRect();
            const across = (event.clientX - box.left) * (width / box.width);
            choose(Math.round(1 + ((across - LEFT) / (right - LEFT)) * (most - 1)));
        };
        svg.addEventListener("pointerdown", (event) => {
            held = true;
            svg.setPointerCapture(event.pointerId);
            at(event);
        });
        svg.addEventListener("pointermove", (event) => held && at(event));
        svg.addEventListener("pointerup", () => { held = false; });
        svg.addEventListener("keydown", (event) => {
            const by = {ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1}[event.key];
            if (!by) return;
            event.preventDefault();
            choose(Number(svg.getAttribute("aria-valuenow")) + by);
        });
        place.replaceChildren(svg, tip);
        place.crucibleShow = show;
        show();
    }

    const energies = () => [...document.querySelectorAll(`#${ID} .crucible-energy`)];
    function drawAll(anew = false) {
        for (const place of energies()) {
            if (place.offsetParent && (anew || !place.firstChild)) drawEnergy(place);
        }
    }
    window.addEventListener("resize", () => tab()?.offsetParent && drawAll(true));
    document.addEventListener("input", ({target}) => {
        if (target.closest?.(`#${ID}-resize-rank`)) energies().forEach((each) => each.crucibleShow?.());
    });

    // --- from what is shown about a file to a tool ------------------------------------------------

    const LABELS = {about: 0, convert: 1, resize: 2, merge: 3, extract: 4, bake: 5, cache: 6, folder: 7};

    function goTo(tool) {
        const buttons = document.querySelectorAll(`#${ID}-tabs > .tab-nav button`);
        buttons[LABELS[tool]]?.click();
    }

    document.addEventListener("click", ({target}) => {
        const button = target.closest?.(`#${ID} [data-tool]`);
        if (!button) return;
        const {tool, field, path} = button.dataset;
        goTo(tool);
        const networks = rows.get(`${ID}-${tool}-${field}`);
        if (networks) networks.add(path);
        else write(boxOf(find(`${tool}-${field}`)), path);
        // what was typed is told to the page before the button is pressed
        if (tool === "about") setTimeout(() => find("about-go").click(), 200);
        if (tool === "resize") setTimeout(() => find("spectrum-go").click(), 200);
        tab().scrollIntoView({block: "start"});
    });

    // --- fields ----------------------------------------------------------------------------------

    const follow = () => find("changed")?.click();
    const form = window.crucibleForm(ID);
    window.crucibleToolbox = {
        ...form,
        restore(...told) {
            setTimeout(() => {
                for (const each of rows.values()) each.follow();
                follow();
            }, 900);
            return form.restore(...told);
        },
        reset(values) {
            setTimeout(follow, 150);
            return form.reset(values);
        },
    };
    window.crucibleChanges(ID, follow);

    // The page is built by another script, after this one.
    const wait = setInterval(() => {
        if (!find("live")) return;
        clearInterval(wait);
        tab().append(el("datalist", {id: `${ID}-presets`, translate: "no"},
            ...PRESETS.map((value) => el("option", {value}))));
        for (const field of document.querySelectorAll(`#${ID} .crucible-networks`)) {
            rows.set(field.id, new Rows(field));
        }
        new MutationObserver(() => requestAnimationFrame(() => drawAll())).observe(
            tab(), {childList: true, subtree: true, attributes: true, attributeFilter: ["style"]});
    }, 300);
})();
