// The browser's part of the Tagger tab, in a WebUI too: what is done inside its own HTML is told to
// the server through text fields that nobody sees, one order after the other; fields keep their
// values over a reload; captions are sent to the prompt.
(() => {
    "use strict";
    const PATIENCE = 120000; // ms for an answer, after which the next order is sent all the same
    const tab = () => document.getElementById("crucible-tagger");

    function write(box, text) {
        const kind = Object.getPrototypeOf(box);
        Object.getOwnPropertyDescriptor(kind, "value").set.call(box, text);
        box.dispatchEvent(new Event("input", {bubbles: true}));
    }

    // --- orders ---------------------------------------------------------------------------------

    // The server acts on what an order finds: so each waits until the one before has been answered.
    // An answer shows its order's number in the element `<wire>-told`.
    const lines = {};
    let number = Date.now(); // another than any before, also after a reload

    class Line {
        constructor(wire) {
            this.wire = wire;
            this.waiting = [];
            this.open = 0; // the number of the order under way
            const told = document.getElementById(`${wire}-told`);
            new MutationObserver(() => this.heard(told)).observe(
                told, {childList: true, subtree: true, characterData: true, attributes: true});
        }

        tell(order) {
            const last = this.waiting[this.waiting.length - 1];
            if (last && order.newest && last.do === order.do) this.waiting.pop();
            this.waiting.push(order);
            this.next();
        }

        next() {
            if (this.open || !this.waiting.length) return;
            const {newest, ...order} = this.waiting.shift();
            number += 1;
            this.open = number;
            this.timer = setTimeout(() => this.ended(), PATIENCE);
            this.slow = setTimeout(() => tab().classList.add("crucible-busy"), 400);
            const box = document.querySelector(`#${this.wire}-wire :is(textarea, input)`);
            write(box, JSON.stringify({...order, number}));
        }

        heard(told) {
            const answered = Number(told.querySelector("[data-number]")?.dataset.number ?? 0);
            if (this.open && answered >= this.open) this.ended();
        }

        ended() {
            clearTimeout(this.timer);
            clearTimeout(this.slow);
            tab().classList.remove("crucible-busy");
            this.open = 0;
            // what the answer changed is on the page by then
            requestAnimationFrame(() => this.next());
        }
    }

    function tell(wire, order) {
        lines[wire] ??= new Line(wire);
        lines[wire].tell(order);
    }

    const wireOf = (element) => element.closest(".crucible-wired").id;

    // What a form holds, by the names of its fields.
    function filled(form) {
        const found = Object.fromEntries(new FormData(form));
        for (const box of form.querySelectorAll("input[type=checkbox]")) found[box.name] = box.checked;
        return found;
    }

    function act(element) {
        const {crucibleDo, value} = element.dataset;
        const form = element.tagName === "FORM" ? element : element.closest("form[data-crucible-form]");
        tell(wireOf(element), {do: crucibleDo, ...(form ? filled(form) : {}), value});
    }

    document.addEventListener("click", (event) => {
        const element = event.target.closest?.("#crucible-tagger [data-crucible-do]");
        if (!element || ["FORM", "INPUT", "SELECT"].includes(element.tagName) || element.disabled) return;
        event.preventDefault();
        act(element);
    });

    document.addEventListener("submit", (event) => {
        const form = event.target.closest?.("#crucible-tagger form");
        if (!form) return;
        event.preventDefault();
        if (form.dataset.crucibleDo) act(form);
    });

    // A form with `data-crucible-live` tells of every change, when typing pauses.
    const pauses = new WeakMap(); // by form
    const heard = new WeakMap(); // by form: what was told last, as text
    function changed(event) {
        const form = event.target.closest?.("#crucible-tagger form[data-crucible-live]");
        if (!form) return;
        clearTimeout(pauses.get(form));
        const go = () => {
            heard.set(form, JSON.stringify(filled(form)));
            tell(wireOf(form), {do: form.dataset.crucibleLive, ...filled(form),
                value: form.dataset.value, newest: true});
        };
        if (event.type === "input") pauses.set(form, setTimeout(go, 250));
        // Leaving a field is a change too, after which all is drawn anew: also what was clicked.
        else if (heard.get(form) !== JSON.stringify(filled(form))) go();
    }
    document.addEventListener("input", changed);
    document.addEventListener("change", changed);

    // --- the tab's fields and the prompt --------------------------------------------------------

    window.crucibleTagger = {
        ...window.crucibleForm("crucible-tagger"),
        tell,
        wireOf,

        // Puts a caption into the prompt: of txt2img in the WebUI around this page's frame, on the
        // standalone page of the Generate tab.
        toPrompt(text) {
            const owner = document.getElementById("crucible-frame") ? window.parent : window;
            const box = owner.document.querySelector(
                "#crucible-prompt textarea, #txt2img_prompt textarea");
            if (!box || !text) return [];
            write(box, text);
            if (owner.switch_to_txt2img) owner.switch_to_txt2img();
            else document.querySelector("#crucible-tabs > .tab-nav button")?.click();
            return [];
        },
    };

    // --- options --------------------------------------------------------------------------------

    document.addEventListener("input", ({target}) => {
        if (!target.classList?.contains("crucible-option-search")) return;
        const place = target.closest(".crucible-options");
        // By its label and help, or by its name as in a file (min_snr_gamma) or a shell (--min-snr-gamma)
        const plain = (text) => text.toLowerCase().replace(/[_-]+/g, " ");
        const words = plain(target.value).split(/\s+/).filter(Boolean);
        let found = 0;
        place.classList.toggle("crucible-searching", words.length > 0);
        for (const field of place.querySelectorAll(".crucible-option")) {
            const said = plain(`${field.id} ${field.textContent}`);
            const off = !words.every((word) => said.includes(word));
            field.classList.toggle("crucible-off", off);
            if (!off) found += 1;
        }
        place.querySelector(".crucible-option-none").hidden = found > 0;
    });

    // A number typed beside a slider counts like one that was dragged to.
    document.addEventListener("change", ({target}) => {
        if (target.type === "number" && target.closest("#crucible-tagger .crucible-option")) {
            target.dispatchEvent(new PointerEvent("pointerup", {bubbles: true}));
        }
    });

    // The line across the bars of a preview is a handle of the threshold's slider.
    let dragged = null;
    document.addEventListener("pointerdown", (event) => {
        const line = event.target.closest?.("#crucible-tagger .crucible-bars [data-threshold]");
        if (!line) return;
        event.preventDefault();
        dragged = {rail: line.parentElement.getBoundingClientRect(), slider: line.dataset.threshold};
        move(event);
    });
    function move(event) {
        const share = (event.clientX - dragged.rail.left) / dragged.rail.width;
        const value = Math.round(Math.min(1, Math.max(0, share)) * 100) / 100;
        const box = document.querySelector(`#${dragged.slider} input[type=number]`);
        if (box && Number(box.value) !== value) write(box, String(value));
    }
    document.addEventListener("pointermove", (event) => dragged && move(event));
    document.addEventListener("pointerup", (event) => {
        if (!dragged || !event.isTrusted) return;
        const range = document.querySelector(`#${dragged.slider} input[type=range]`);
        dragged = null;
        range?.dispatchEvent(new PointerEvent("pointerup", {bubbles: true}));
    });
})();
