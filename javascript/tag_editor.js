// A network tag as a picture: bars for its block weights, a curve over the steps. A button for it
// appears while the caret is in a <lora:…> tag; F2 opens it too.
(() => {
    "use strict";
    const tags = () => window.crucible_tags;
    const GRID = 0.05; // what a dragged weight snaps to
    const FEWEST_STEPS = 2; // a curve in steps ends there at least: up to 1 are shares
    const LAYOUTS = {
        17: "SD1, SD2: blocks with attention",
        26: "SD1, SD2: all blocks",
        12: "SDXL: blocks with attention",
        20: "SDXL: all blocks",
    };
    const SDXL = ["12", "20"];

    // --- small helpers ------------------------------------------------------------------------

    function element(tag, properties = {}, ...inside) {
        const {attributes = {}, ...plain} = properties;
        const made = Object.assign(document.createElement(tag), plain);
        for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
        made.append(...inside);
        return made;
    }

    const button = (text, className, attributes = {}) =>
        element("button", {type: "button", className, attributes}, text);
    const between = (value, low, high) => Math.min(Math.max(value, low), high);
    const snapped = (value, grid = GRID) => tags().tidy(Math.round(value / grid) * grid);
    const near = (value, step) => tags().tidy(Math.round((value + step) * 1e6) / 1e6);

    // --- the button ---------------------------------------------------------------------------

    let opener = null;

    function makeOpener() {
        const title = "Edit this tag as a picture (F2)";
        opener = button("Edit tag", "crucible-edit-tag", {title, "aria-label": title});
        opener.hidden = true;
        opener.addEventListener("mousedown", (event) => event.preventDefault()); // keeps the caret
        opener.addEventListener("click", () => openAt(opener.box));
        document.body.append(opener);
    }

    const loraAt = (box) => {
        const tag = tags().tagAt(box.value, box.selectionStart);
        return tag && tags().isLora(tag) ? tag : null;
    };

    // On the lower edge of the box, so that no line of the prompt is covered.
    function offerEditor() {
        const box = document.activeElement;
        const isPrompt = tags()?.boxOf({composedPath: () => [box]}) === box && box !== null;
        const wanted = isPrompt && !tags().isNegative(box) && loraAt(box) !== null
            && !window.crucible_completion?.isOpen();
        if (!wanted) {
            if (opener) opener.hidden = true;
            return;
        }
        if (!opener?.isConnected) makeOpener();
        opener.box = box;
        opener.hidden = false;
        const frame = box.getBoundingClientRect();
        const [width, height] = [opener.offsetWidth, opener.offsetHeight];
        opener.style.left = `${Math.min(frame.right, innerWidth) - width - 80}px`;
        opener.style.top = `${frame.bottom - height / 2}px`;
    }

    for (const name of ["selectionchange", "crucible-completions"]) {
        document.addEventListener(name, offerEditor);
    }
    for (const name of ["focusin", "focusout"]) {
        document.addEventListener(name, () => setTimeout(offerEditor));
    }
    document.addEventListener("input", offerEditor);
    document.addEventListener("scroll", offerEditor, true);
    addEventListener("resize", offerEditor);
    document.addEventListener("keydown", (event) => {
        const plain = !event.ctrlKey && !event.metaKey && !event.altKey && !event.shiftKey;
        const box = event.key === "F2" && plain && tags()?.boxOf(event);
        if (!box || tags().isNegative(box) || !loraAt(box)) return;
        event.preventDefault();
        openAt(box);
    }, true);

    // In the popup the page's own keys, which mean the prompt, rest.
    addEventListener("keydown", (event) => {
        if (!state || !dialog()?.contains(event.target)) return;
        const writes = event.key === "Enter" && (event.ctrlKey || event.metaKey);
        if (!writes && event.key !== "Escape") return;
        event.stopPropagation(); // Escape closes the popup all the same
        if (!writes) return;
        event.preventDefault();
        finish();
    }, true);

    // In the standalone page: from the popup about a network, whose tag is written if need be.
    document.addEventListener("click", (event) => {
        const card = event.target.closest?.(".crucible-i")?.parentElement.firstElementChild;
        const header = card && document.querySelector("#crucible-about header");
        if (!header) return;
        header.querySelector(".crucible-to-editor")?.remove();
        if (card.classList.contains("crucible-broken")) return;
        const edit = button("Blocks and steps", "crucible-to-editor");
        edit.addEventListener("click", () => {
            document.querySelector("#crucible-about").close();
            editNetwork(card.dataset);
        });
        header.lastElementChild.before(edit);
    });

    function editNetwork({name, alias, tag}) {
        const box = document.querySelector("#crucible-prompt textarea");
        const isIts = (each) => tags().isLora(each) && [name, alias].includes(each.name);
        if (!tags().tagsIn(box.value).some(isIts)) {
            const end = box.value.length;
            tags().replace(box, end, end, end && !/\s$/.test(box.value) ? ` ${tag}` : tag);
        }
        box.focus();
        const found = tags().tagsIn(box.value).find(isIts);
        box.setSelectionRange(found.end - 1, found.end - 1);
        openAt(box);
    }

    // --- what is being edited -----------------------------------------------------------------

    let state = null; // {box, tag, known, plan, total, layout}

    async function openAt(box) {
        const tag = loraAt(box);
        if (!tag) return;
        const known = tags().names() ?? await tags().answer();
        if (!known || document.querySelector("#crucible-tag[open]")) return;
        const plan = tags().read(tag, known);
        state = {box, tag, known, plan, total: stepsOf(box)};
        state.layout = layoutFor(plan.blocks);
        build();
    }

    // The number of steps that pictures are made with here: the width of a curve in steps.
    function stepsOf(box) {
        const id = box.closest("#tab_img2img, [id^=img2img]") ? "img2img_steps" : "txt2img_steps";
        const field = document.querySelector(`:is(#crucible-steps, #${id}) input[type=number]`);
        return Math.max(FEWEST_STEPS, Number(field?.value) || 20);
    }

    // The list of blocks that suits the network, if the weights can be said in it.
    function layoutFor(weights) {
        const {known, tag} = state;
        const row = known.lora.find(([name, alias]) => tag.name === name || tag.name === alias);
        const [, , kind, family] = row ?? ["", "", "", ""];
        const attention = kind === "LoRA";
        const lists = family === "SDXL" ? (attention ? [12, 20] : [20])
            : attention || !row ? [17, 26] : [26];
        const said = weights ?? allOnes();
        const fits = lists.map(String).find((size) => tags().alike(
            tags().filled(known.lists[size], known.lists[size].map((name) => said.get(name))),
            said, relevant(size)));
        return fits ?? (family === "SDXL" ? "20" : "26");
    }

    const allOnes = () => new Map(tags().ALL.map((name) => [name, 1]));
    // SDXL has nine blocks on a side.
    const relevant = (layout) => (SDXL.includes(layout) ? state.known.lists[20] : tags().ALL);
    const text = () => tags().write(state.plan, state.known, relevant(state.layout));

    // --- the popup ----------------------------------------------------------------------------

    const dialog = () => document.getElementById("crucible-tag");

    function build() {
        dialog()?.remove();
        const made = element("dialog", {
            id: "crucible-tag",
            attributes: {"aria-labelledby": "crucible-tag-name"},
        });
        made.append(element("div", {className: "crucible-sheet"},
            header(), numbers(), stepPart(), blockPart(), notes(), footer()));
        made.addEventListener("close", () => {
            made.remove();
            state?.box.focus();
            state = null;
        });
        made.addEventListener("pointerdown", (event) => {
            if (event.target === made) made.close(); // beside its sheet
        });
        document.body.append(made);
        made.showModal();
        drawAll();
        made.querySelector("input").focus();
    }

    function header() {
        const name = element("h2", {id: "crucible-tag-name", translate: false}, state.tag.name);
        const close = button("×", "crucible-close", {"aria-label": "Close"});
        close.addEventListener("click", () => dialog().close());
        return element("header", {}, name, close);
    }

    function footer() {
        const write = button("Write tag", "crucible-write");
        const cancel = button("Cancel", "crucible-cancel");
        write.addEventListener("click", finish);
        cancel.addEventListener("click", () => dialog().close());
        const preview = element("output", {className: "crucible-written", translate: false});
        return element("div", {className: "crucible-foot"}, preview, cancel, write);
    }

    function notes() {
        const {kept, lost} = state.plan;
        const told = [["Stays as it is:", kept], ["Left out, it has no meaning:", lost]];
        return element("div", {className: "crucible-tag-notes"}, ...told
            .filter(([, texts]) => texts.length)
            .map(([what, texts]) => element("p", {}, element("span", {}, what), " ",
                element("code", {translate: false}, texts.join(":")))));
    }

    function finish() {
        const {box, tag} = state;
        const made = text();
        const {value} = box;
        const there = value.slice(tag.start, tag.end) === tag.text;
        const start = there ? tag.start : value.indexOf(tag.text);
        dialog().close();
        if (start >= 0) tags().replace(box, start, start + tag.text.length, made,
            start + made.length - 1);
        offerEditor();
    }

    // --- numbers ------------------------------------------------------------------------------

    const optional = (reader) => (written) => (written.trim() ? reader(written.trim()) : null);
    const aPlace = (written) => {
        const value = tags().number(written);
        if (value < 0) throw new (tags().Mistake)("below 0");
        return value;
    };
    const shown = (value) => (value === null ? "" : tags().written(value));
    const shownCurve = (curve) => (curve === null ? "" : tags().writeCurve(curve));

    const fields = () => [
        ["te", "Text encoder", tags().number, shown],
        ["unet", "UNet", tags().readCurve, shownCurve],
        ["start", "Start", optional(aPlace), shown, "first step"],
        ["stop", "Stop", optional(aPlace), shown, "last step"],
        ["hrte", "Hires: text encoder", optional(tags().number), shown, "the same"],
        ["hrunet", "Hires: UNet", optional(tags().readCurve), shownCurve, "the same"],
        ["dyn", "Ranks (DyLoRA)", optional(tags().rank), shown, "all"],
    ];

    function numbers() {
        return element("div", {className: "crucible-numbers"},
            ...fields().map(([key, label, reader, , placeholder = ""]) => {
                const input = element("input", {
                    type: "text", name: key, placeholder, autocomplete: "off", spellcheck: false,
                });
                input.addEventListener("input", () => take(input, key, reader));
                return element("label", {}, element("span", {}, label), input);
            }));
    }

    // What cannot be read is marked, and the last value that could be stays in force.
    function take(input, key, reader) {
        try {
            state.plan[key] = reader(input.value);
            input.removeAttribute("aria-invalid");
        } catch (mistake) {
            input.setAttribute("aria-invalid", "true");
        }
        drawAll(input);
    }

    function drawNumbers(typing) {
        for (const [key, , , write] of fields()) {
            const input = dialog().querySelector(`input[name=${key}]`);
            if (input === typing) continue;
            input.value = write(state.plan[key]);
            input.removeAttribute("aria-invalid");
        }
    }

    // --- the curve ----------------------------------------------------------------------------

    const SVG = "http://www.w3.org/2000/svg";
    let scale = {low: 0, high: 1.5}; // of the curve

    function stepPart() {
        const add = button("Add a point", "crucible-add-point");
        add.addEventListener("click", addInWidestGap);
        const plot = element("div", {className: "crucible-plot"});
        const lines = document.createElementNS(SVG, "svg");
        lines.setAttribute("viewBox", "0 0 100 100");
        lines.setAttribute("preserveAspectRatio", "none");
        plot.append(lines, element("div", {className: "crucible-points"}));
        plot.addEventListener("pointerdown", startOnCurve);
        plot.addEventListener("keydown", keyOnCurve);
        plot.addEventListener("dblclick", removePressed);
        const axis = element("div", {className: "crucible-axis"},
            element("span", {}, "first step"), element("span", {}, "last step"));
        return element("section", {}, element("div", {className: "crucible-bar-row"},
            element("h3", {}, "UNet weight over the steps"), add), plot, axis,
        element("p", {className: "crucible-hint"},
            "Click to add a point, drag it, double-click or Delete to remove it."));
    }

    const width = () => (state.plan.unet.shares ? 1
        : Math.max(state.total - 1, state.plan.unet.points.at(-1)[0]));
    const across = (place) => (100 * place) / width();
    const up = (value) => (100 * (scale.high - value)) / (scale.high - scale.low);
    const ofValues = (values) => ({
        low: Math.min(0, Math.floor(2 * Math.min(...values)) / 2),
        high: Math.max(1.5, Math.ceil(2 * Math.max(...values) + 0.5) / 2),
    });

    // From where start and stop are written, in steps or shares, to % of the width.
    function edge(value, otherwise) {
        if (value === null) return otherwise;
        const steps = value > 0 && value < 1 ? value * state.total : value;
        return between((100 * steps) / Math.max(1, state.total - 1), 0, 100);
    }

    function drawCurve() {
        const plot = dialog().querySelector(".crucible-plot");
        const {points} = state.plan.unet;
        if (!dragged) scale = ofValues(points.map(([, value]) => value));
        const line = points.map(([place, value]) => `${across(place)},${up(value)}`);
        const [left, right] = [edge(state.plan.start, 0), edge(state.plan.stop, 100)];
        const one = up(1);
        plot.querySelector("svg").innerHTML = `
            <path class="crucible-grid"
                d="M0 ${one}H100M0 ${up(0)}H100M25 0V100M50 0V100M75 0V100"/>
            <rect class="crucible-off" x="0" width="${left}" y="0" height="100"/>
            <rect class="crucible-off" x="${right}" width="${100 - right}" y="0" height="100"/>
            <polyline class="crucible-line" points="0,${up(points[0][1])} ${line.join(" ")}
                100,${up(points.at(-1)[1])}"/>`;
        const handles = plot.querySelector(".crucible-points");
        while (handles.children.length > points.length) handles.lastChild.remove();
        while (handles.children.length < points.length) handles.append(handle());
        points.forEach((point, index) => drawHandle(handles.children[index], point, index));
    }

    const handle = () => element("div", {
        className: "crucible-point", tabIndex: 0, attributes: {role: "slider"},
    });

    function drawHandle(made, [place, value], index) {
        made.dataset.index = index;
        made.style.left = `${across(place)}%`;
        made.style.top = `${up(value)}%`;
        const at = state.plan.unet.shares ? `${Math.round(100 * place)} %` : `${place}`;
        const told = {
            "aria-label": `UNet ${index + 1}`, "aria-valuenow": value,
            "aria-valuetext": `${tags().written(value)} @ ${at}`,
            "aria-valuemin": scale.low, "aria-valuemax": scale.high,
            "aria-orientation": "vertical",
            title: `${tags().written(value)} @ ${at}`,
        };
        for (const [name, text] of Object.entries(told)) made.setAttribute(name, text);
    }

    const placeGrid = () => (state.plan.unet.shares ? 0.01 : 1);

    // Between its neighbours, on the grid; the last of a curve in steps does not become a share.
    function allowed(place, index) {
        const {points, shares} = state.plan.unet;
        const gap = placeGrid();
        const low = index ? points[index - 1][0] + gap : 0;
        const high = index < points.length - 1 ? points[index + 1][0] - gap : width();
        const last = !shares && index === points.length - 1;
        return between(snapped(place, gap), last ? Math.max(low, FEWEST_STEPS) : low, high);
    }

    function movePoint(index, place, value) {
        state.plan.unet.points[index] = [tags().tidy(allowed(place, index)), value];
        drawAll();
    }

    function addPoint(place, value) {
        const {unet} = state.plan;
        const at = snapped(between(place, 0, width()), placeGrid());
        if (unet.points.some((point) => Math.abs(point[0] - at) < placeGrid() / 2)) return -1;
        unet.points = [...unet.points, [at, value]].sort((a, b) => a[0] - b[0]);
        drawAll();
        return unet.points.findIndex(([other]) => other === at);
    }

    function removePoint(index) {
        const {unet} = state.plan;
        if (unet.points.length < 2) return;
        const last = index === unet.points.length - 1;
        unet.points = unet.points.filter((_, other) => other !== index);
        // Without its last point a curve in steps could be read as one in shares.
        const end = unet.points.at(-1);
        if (!unet.shares && last && end[0] < FEWEST_STEPS) end[0] = FEWEST_STEPS;
        drawAll();
        focusPoint(Math.min(index, unet.points.length - 1));
    }

    const focusPoint = (index) =>
        dialog().querySelectorAll(".crucible-point")[index]?.focus();

    function addInWidestGap() {
        const {points} = state.plan.unet;
        const places = [...new Set([0, ...points.map(([place]) => place), width()])];
        const gaps = places.slice(1).map((place, i) => [place - places[i], i]);
        const [size, at] = gaps.reduce((a, b) => (b[0] > a[0] ? b : a));
        // The ends come first: there the curve begins and ends.
        const has = (place) => points.some((point) => point[0] === place);
        const place = !has(width()) ? width() : !has(0) ? 0 : places[at] + size / 2;
        focusPoint(addPoint(place, curveAt(place)));
    }

    function curveAt(place) {
        const {points} = state.plan.unet;
        const after = points.findIndex(([other]) => other >= place);
        if (after === 0) return points[0][1];
        if (after < 0) return points.at(-1)[1];
        const [[x0, y0], [x1, y1]] = [points[after - 1], points[after]];
        return snapped(y0 + ((y1 - y0) * (place - x0)) / (x1 - x0), 0.01);
    }

    let dragged = false;
    let presses = []; // whether each was on a point that was there before

    function removePressed(event) {
        // The plot has caught the pointer, and is what the event tells of.
        const found = document.elementFromPoint(event.clientX, event.clientY);
        const point = found?.closest(".crucible-point");
        if (point && presses.slice(-2).every(Boolean)) removePoint(Number(point.dataset.index));
    }

    // Where the pointer is, in the curve's own measures.
    function pointed(event, plot) {
        const frame = plot.getBoundingClientRect();
        const x = (event.clientX - frame.left) / frame.width;
        const y = (event.clientY - frame.top) / frame.height;
        const value = scale.high - y * (scale.high - scale.low);
        return {place: x * width(), value: snapped(between(value, scale.low, scale.high))};
    }

    function startOnCurve(event) {
        if (event.button !== 0) return;
        const plot = event.currentTarget;
        const point = event.target.closest(".crucible-point");
        const here = pointed(event, plot);
        presses = [...presses.slice(-1), point !== null];
        const index = point ? Number(point.dataset.index) : addPoint(here.place, here.value);
        if (index < 0) return;
        event.preventDefault();
        focusPoint(index);
        follow(plot, event, (moved) => {
            const {place, value} = pointed(moved, plot);
            movePoint(index, place, value);
        });
    }

    // Calls `move` for each movement of the pointer until it is let go.
    function follow(place, event, move) {
        dragged = true;
        place.setPointerCapture(event.pointerId);
        const end = () => {
            dragged = false;
            place.removeEventListener("pointermove", move);
            if (state) drawAll();
        };
        place.addEventListener("pointermove", move);
        place.addEventListener("lostpointercapture", end, {once: true});
    }

    function keyOnCurve(event) {
        const point = event.target.closest(".crucible-point");
        if (!point || event.ctrlKey || event.altKey || event.metaKey) return;
        const index = Number(point.dataset.index);
        const [place, value] = state.plan.unet.points[index];
        const side = state.plan.unet.shares ? GRID : 1;
        const moves = {
            ArrowUp: () => movePoint(index, place, near(value, GRID)),
            ArrowDown: () => movePoint(index, place, near(value, -GRID)),
            ArrowRight: () => movePoint(index, place + side, value),
            ArrowLeft: () => movePoint(index, place - side, value),
            Delete: () => removePoint(index),
            Backspace: () => removePoint(index),
        };
        if (!Object.hasOwn(moves, event.key)) return;
        event.preventDefault();
        moves[event.key]();
    }

    // --- the blocks ---------------------------------------------------------------------------

    let bars = {low: 0, high: 1.5};

    function blockPart() {
        const presets = element("select", {name: "preset", attributes: {"aria-label": "Preset"}},
            element("option", {value: ""}, "Own weights"),
            ...Object.keys(state.known.presets).map((name) =>
                element("option", {value: name, translate: false}, name)));
        presets.addEventListener("change", () => choosePreset(presets.value));
        const layouts = element("select", {name: "layout", attributes: {"aria-label": "Blocks"}},
            ...Object.entries(LAYOUTS).map(([size, name]) =>
                element("option", {value: size}, name)));
        layouts.addEventListener("change", () => {
            state.layout = layouts.value;
            setBlocks(values());
        });
        const chart = element("div", {className: "crucible-blocks"});
        chart.addEventListener("pointerdown", startOnBars);
        chart.addEventListener("keydown", keyOnBars);
        chart.addEventListener("focusin", (event) => tellBar(event.target));
        return element("section", {}, element("div", {className: "crucible-bar-row"},
            element("h3", {}, "Weights by block"), layouts, presets), chart,
        element("p", {className: "crucible-hint crucible-told", attributes: {"aria-hidden": true}},
            "\u00a0"));
    }

    const names = () => state.known.lists[state.layout];
    const values = () => names().map((name) => (state.plan.blocks ?? allOnes()).get(name));

    function setBlocks(changed) {
        state.plan.blocks = tags().filled(names(), changed);
        // What was kept of them, a random choice or a mistake, has given way.
        state.plan.kept = state.plan.kept.filter((text) => !/^(lbw|x|in|mid|out)=/.test(text));
        dialog().querySelector(".crucible-tag-notes").replaceWith(notes());
        drawAll();
    }

    function choosePreset(name) {
        if (!name) return;
        const weights = tags().readBlocks(name, null, state.known);
        state.plan.blocks = weights;
        state.layout = layoutFor(weights);
        setBlocks(values());
    }

    function drawBlocks() {
        const chart = dialog().querySelector(".crucible-blocks");
        const weights = values();
        if (!dragged) bars = ofValues(weights);
        if (chart.children.length !== weights.length) {
            chart.replaceChildren(...names().map(bar));
        }
        const height = (value) => (100 * value) / (bars.high - bars.low);
        chart.style.setProperty("--crucible-one", `${height(1 - bars.low)}%`);
        chart.style.setProperty("--crucible-zero", `${height(-bars.low)}%`);
        weights.forEach((value, index) => {
            const made = chart.children[index];
            const told = {
                "aria-valuenow": value, "aria-valuemin": bars.low, "aria-valuemax": bars.high,
                title: `${names()[index]}: ${tags().written(value)}`,
            };
            for (const [name, text] of Object.entries(told)) made.setAttribute(name, text);
            const fill = made.firstChild.firstChild;
            fill.style.bottom = `${height(Math.min(0, value) - bars.low)}%`;
            fill.style.height = `${height(Math.abs(value))}%`;
        });
        if (chart.contains(document.activeElement)) tellBar(document.activeElement);
        drawChoices();
    }

    function bar(name, index) {
        const track = element("span", {className: "crucible-track"}, element("i"));
        const label = element("span", {translate: false, className: "crucible-block"}, name);
        return element("div", {
            className: "crucible-block-bar", tabIndex: index ? -1 : 0,
            attributes: {role: "slider", "aria-orientation": "vertical", "aria-label": name},
        }, track, label);
    }

    function tellBar(made) {
        const told = dialog().querySelector(".crucible-told");
        if (told.textContent !== made.title) told.textContent = made.title;
        for (const other of made.parentElement.children) other.tabIndex = other === made ? 0 : -1;
    }

    function drawChoices() {
        const {known, plan, layout} = state;
        const now = plan.blocks ?? allOnes();
        const preset = Object.keys(known.presets).find((name) => {
            try {
                const weights = tags().readBlocks(name, null, known);
                return tags().alike(weights, now, relevant(layout));
            } catch (random) {
                return false;
            }
        });
        dialog().querySelector("[name=preset]").value = preset ?? "";
        dialog().querySelector("[name=layout]").value = layout;
    }

    function setBar(index, value) {
        const changed = values();
        changed[index] = value;
        setBlocks(changed);
    }

    // Drawn like a line: every bar that the pointer goes over takes its height.
    function startOnBars(event) {
        if (event.button !== 0) return;
        const chart = event.currentTarget;
        const draw = (moved) => {
            const [frame, track] = [chart, chart.querySelector(".crucible-track")]
                .map((each) => each.getBoundingClientRect());
            const count = chart.children.length;
            const index = Math.floor(((moved.clientX - frame.left) / frame.width) * count);
            const at = between(index, 0, count - 1);
            const part = (track.bottom - moved.clientY) / track.height;
            const value = bars.low + part * (bars.high - bars.low);
            chart.children[at].focus();
            setBar(at, snapped(between(value, bars.low, bars.high)));
        };
        event.preventDefault();
        follow(chart, event, draw);
        draw(event);
    }

    function keyOnBars(event) {
        const chart = event.currentTarget;
        const index = [...chart.children].indexOf(event.target);
        if (index < 0 || event.ctrlKey || event.altKey || event.metaKey) return;
        const value = values()[index];
        const to = (other) => chart.children[between(other, 0, chart.children.length - 1)].focus();
        const keys = {
            ArrowUp: () => setBar(index, near(value, GRID)),
            ArrowDown: () => setBar(index, near(value, -GRID)),
            PageUp: () => setBar(index, near(value, 0.5)),
            PageDown: () => setBar(index, near(value, -0.5)),
            Delete: () => setBar(index, 0),
            ArrowRight: () => to(index + 1),
            ArrowLeft: () => to(index - 1),
            Home: () => to(0),
            End: () => to(chart.children.length),
        };
        if (!Object.hasOwn(keys, event.key)) return;
        event.preventDefault();
        keys[event.key]();
    }

    // --- all of it ----------------------------------------------------------------------------

    function drawAll(typing = null) {
        drawNumbers(typing);
        drawCurve();
        drawBlocks();
        const preview = dialog().querySelector(".crucible-written");
        const made = text();
        if (preview.textContent !== made) preview.textContent = made;
    }
})();
