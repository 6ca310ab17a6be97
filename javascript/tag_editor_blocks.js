// The part of the tag editor about the blocks: a bar for each, drawn with the pointer or by keys.
(() => {
    "use strict";
    const kit = window.crucible_editor ??= {};
    const tags = () => window.crucible_tags;
    const LAYOUTS = {
        17: "SD1, SD2: blocks with attention",
        26: "SD1, SD2: all blocks",
        12: "SDXL: blocks with attention",
        20: "SDXL: all blocks",
    };

    let bars = {low: 0, high: 1.5};

    function part() {
        const own = kit.element("option", {value: ""}, "Own weights");
        const presets = choice("preset", "Preset", own,
            ...Object.keys(kit.state.known.presets).map((name) =>
                kit.element("option", {value: name, translate: false}, name)));
        presets.addEventListener("change", () => choosePreset(presets.value));
        const layouts = choice("layout", "Blocks", ...Object.entries(LAYOUTS).map(([size, name]) =>
            kit.element("option", {value: size}, name)));
        layouts.addEventListener("change", () => {
            kit.state.layout = layouts.value;
            setBlocks(values());
        });
        const chart = kit.element("div", {className: "crucible-blocks"});
        chart.addEventListener("pointerdown", startOnBars);
        chart.addEventListener("keydown", keyOnBars);
        chart.addEventListener("focusin", (event) => tellBar(event.target));
        const row = kit.element("div", {className: "crucible-bar-row"},
            kit.element("h3", {}, "Weights by block"), layouts, presets);
        const told = {className: "crucible-hint crucible-told", attributes: {"aria-hidden": true}};
        return kit.element("section", {}, row, chart, kit.element("p", told, "\u00a0"));
    }

    const choice = (name, label, ...options) =>
        kit.element("select", {name, attributes: {"aria-label": label}}, ...options);

    const names = () => kit.state.known.lists[kit.state.layout];
    const values = () => names().map((name) => (kit.state.plan.blocks ?? kit.allOnes()).get(name));

    function setBlocks(changed) {
        const {plan} = kit.state;
        plan.blocks = tags().filled(names(), changed);
        // What was kept of them, a random choice or a mistake, has given way.
        plan.kept = plan.kept.filter((text) => !/^(lbw|x|in|mid|out)=/.test(text));
        kit.dialog().querySelector(".crucible-tag-notes").replaceWith(kit.notes());
        kit.draw();
    }

    function choosePreset(name) {
        if (!name) return;
        const weights = tags().readBlocks(name, null, kit.state.known);
        kit.state.plan.blocks = weights;
        kit.state.layout = kit.layoutFor(weights);
        setBlocks(values());
    }

    function draw() {
        const chart = kit.dialog().querySelector(".crucible-blocks");
        const weights = values();
        if (!kit.dragged) bars = kit.scaleFor(weights);
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
        const track = kit.element("span", {className: "crucible-track"}, kit.element("i"));
        const label = kit.element("span", {translate: false, className: "crucible-block"}, name);
        return kit.element("div", {
            className: "crucible-block-bar", tabIndex: index ? -1 : 0,
            attributes: {role: "slider", "aria-orientation": "vertical", "aria-label": name},
        }, track, label);
    }

    function tellBar(made) {
        const told = kit.dialog().querySelector(".crucible-told");
        if (told.textContent !== made.title) told.textContent = made.title;
        for (const other of made.parentElement.children) other.tabIndex = other === made ? 0 : -1;
    }

    function drawChoices() {
        const {known, plan, layout} = kit.state;
        const now = plan.blocks ?? kit.allOnes();
        const preset = Object.keys(known.presets).find((name) => {
            try {
                const weights = tags().readBlocks(name, null, known);
                return tags().alike(weights, now, kit.relevant(layout));
            } catch (random) {
                return false;
            }
        });
        kit.dialog().querySelector("[name=preset]").value = preset ?? "";
        kit.dialog().querySelector("[name=layout]").value = layout;
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
            const at = kit.between(index, 0, count - 1);
            const share = (track.bottom - moved.clientY) / track.height;
            const value = bars.low + share * (bars.high - bars.low);
            chart.children[at].focus();
            setBar(at, kit.snapped(kit.between(value, bars.low, bars.high)));
        };
        event.preventDefault();
        kit.follow(chart, event, draw);
        draw(event);
    }

    function keyOnBars(event) {
        const chart = event.currentTarget;
        const index = [...chart.children].indexOf(event.target);
        if (index < 0 || event.ctrlKey || event.altKey || event.metaKey) return;
        const value = values()[index];
        const last = chart.children.length - 1;
        const to = (other) => chart.children[kit.between(other, 0, last)].focus();
        const keys = {
            ArrowUp: () => setBar(index, kit.near(value, kit.GRID)),
            ArrowDown: () => setBar(index, kit.near(value, -kit.GRID)),
            PageUp: () => setBar(index, kit.near(value, 0.5)),
            PageDown: () => setBar(index, kit.near(value, -0.5)),
            Delete: () => setBar(index, 0),
            ArrowRight: () => to(index + 1),
            ArrowLeft: () => to(index - 1),
            Home: () => to(0),
            End: () => to(last),
        };
        if (!Object.hasOwn(keys, event.key)) return;
        event.preventDefault();
        keys[event.key]();
    }

    kit.blocks = {part, draw};
})();
