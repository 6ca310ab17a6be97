// A network tag as a picture: bars for its block weights, a curve over the steps. This file has the
// popup and its numbers; tag_editor_button.js opens it, tag_editor_curve.js and
// tag_editor_blocks.js draw the two pictures. They share `crucible_editor`.
(() => {
    "use strict";
    const kit = window.crucible_editor ??= {};
    const tags = () => window.crucible_tags;
    const GRID = 0.05; // what a dragged weight snaps to
    const FEWEST_STEPS = 2; // a curve in steps ends there at least: up to 1 are shares
    const SDXL = ["12", "20"];

    // --- small helpers -------------------------------------------------------------------------

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

    // What a scale for these weights goes from and to.
    const scaleFor = (values) => ({
        low: Math.min(0, Math.floor(2 * Math.min(...values)) / 2),
        high: Math.max(1.5, Math.ceil(2 * Math.max(...values) + 0.5) / 2),
    });

    // Calls `move` for each movement of the pointer until it is let go.
    function follow(place, event, move) {
        kit.dragged = true;
        place.setPointerCapture(event.pointerId);
        const end = () => {
            kit.dragged = false;
            place.removeEventListener("pointermove", move);
            if (kit.state) draw();
        };
        place.addEventListener("pointermove", move);
        place.addEventListener("lostpointercapture", end, {once: true});
    }

    // --- what is being edited ------------------------------------------------------------------

    const loraAt = (box) => {
        const tag = tags().tagAt(box.value, box.selectionStart);
        return tag && tags().isLora(tag) ? tag : null;
    };

    async function openAt(box) {
        const tag = loraAt(box);
        if (!tag) return;
        const known = tags().names() ?? await tags().answer();
        if (!known || document.querySelector("#crucible-tag[open]")) return;
        const plan = tags().read(tag, known);
        kit.state = {box, tag, known, plan, total: stepsOf(box)};
        kit.state.layout = layoutFor(plan.blocks);
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
        const {known, tag} = kit.state;
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
    const relevant = (layout) => (SDXL.includes(layout) ? kit.state.known.lists[20] : tags().ALL);
    const text = () => tags().write(kit.state.plan, kit.state.known, relevant(kit.state.layout));

    // --- the popup -----------------------------------------------------------------------------

    const dialog = () => document.getElementById("crucible-tag");

    function build() {
        dialog()?.remove();
        const made = element("dialog", {
            id: "crucible-tag",
            attributes: {"aria-labelledby": "crucible-tag-name"},
        });
        made.append(element("div", {className: "crucible-sheet"},
            header(), numbers(), kit.curve.part(), kit.blocks.part(), notes(), footer()));
        made.addEventListener("close", () => {
            made.remove();
            kit.state?.box.focus();
            kit.state = null;
        });
        made.addEventListener("pointerdown", (event) => {
            if (event.target === made) made.close(); // beside its sheet
        });
        document.body.append(made);
        made.showModal();
        draw();
        made.querySelector("input").focus();
    }

    function header() {
        const name = element("h2", {id: "crucible-tag-name", translate: false}, kit.state.tag.name);
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
        const {kept, lost} = kit.state.plan;
        const told = [["Stays as it is:", kept], ["Left out, it has no meaning:", lost]];
        return element("div", {className: "crucible-tag-notes"}, ...told
            .filter(([, texts]) => texts.length)
            .map(([what, texts]) => element("p", {}, element("span", {}, what), " ",
                element("code", {translate: false}, texts.join(":")))));
    }

    function finish() {
        const {box, tag} = kit.state;
        const made = text();
        const {value} = box;
        const there = value.slice(tag.start, tag.end) === tag.text;
        const start = there ? tag.start : value.indexOf(tag.text);
        dialog().close();
        if (start >= 0) tags().replace(box, start, start + tag.text.length, made,
            start + made.length - 1);
        kit.offer();
    }

    // --- numbers -------------------------------------------------------------------------------

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
            kit.state.plan[key] = reader(input.value);
            input.removeAttribute("aria-invalid");
        } catch (mistake) {
            input.setAttribute("aria-invalid", "true");
        }
        draw(input);
    }

    function drawNumbers(typing) {
        for (const [key, , , write] of fields()) {
            const input = dialog().querySelector(`input[name=${key}]`);
            if (input === typing) continue;
            input.value = write(kit.state.plan[key]);
            input.removeAttribute("aria-invalid");
        }
    }

    // --- all of it -----------------------------------------------------------------------------

    function draw(typing = null) {
        drawNumbers(typing);
        kit.curve.draw();
        kit.blocks.draw();
        const preview = dialog().querySelector(".crucible-written");
        const made = text();
        if (preview.textContent !== made) preview.textContent = made;
    }

    Object.assign(kit, {
        GRID, FEWEST_STEPS, allOnes, between, button, dialog, draw, element, finish, follow,
        layoutFor, loraAt, near, notes, openAt, relevant, scaleFor, snapped,
        dragged: false, // whether a point or bar is being dragged now
        state: null, // {box, tag, known, plan, total, layout} while the popup is open
    });
})();
