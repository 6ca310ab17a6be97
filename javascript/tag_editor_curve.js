// The part of the tag editor about the steps: a curve with points to drag, or to move by keys.
(() => {
    "use strict";
    const kit = window.crucible_editor ??= {};
    const tags = () => window.crucible_tags;
    const plan = () => kit.state.plan;

    const SVG = "http://www.w3.org/2000/svg";
    let scale = {low: 0, high: 1.5}; // of the curve

    function part() {
        const add = kit.button("Add a point", "crucible-add-point");
        add.addEventListener("click", addInWidestGap);
        const plot = kit.element("div", {className: "crucible-plot"});
        const lines = document.createElementNS(SVG, "svg");
        lines.setAttribute("viewBox", "0 0 100 100");
        lines.setAttribute("preserveAspectRatio", "none");
        plot.append(lines, kit.element("div", {className: "crucible-points"}));
        plot.addEventListener("pointerdown", startOnCurve);
        plot.addEventListener("keydown", keyOnCurve);
        plot.addEventListener("dblclick", removePressed);
        const axis = kit.element("div", {className: "crucible-axis"},
            kit.element("span", {}, "first step"), kit.element("span", {}, "last step"));
        return kit.element("section", {}, kit.element("div", {className: "crucible-bar-row"},
            kit.element("h3", {}, "UNet weight over the steps"), add), plot, axis,
        kit.element("p", {className: "crucible-hint"},
            "Click to add a point, drag it, double-click or Delete to remove it."));
    }

    const width = () => (plan().unet.shares ? 1
        : Math.max(kit.state.total - 1, plan().unet.points.at(-1)[0]));
    const across = (place) => (100 * place) / width();
    const up = (value) => (100 * (scale.high - value)) / (scale.high - scale.low);

    // From where start and stop are written, in steps or shares, to % of the width.
    function edge(value, otherwise) {
        if (value === null) return otherwise;
        const steps = value > 0 && value < 1 ? value * kit.state.total : value;
        return kit.between((100 * steps) / Math.max(1, kit.state.total - 1), 0, 100);
    }

    function draw() {
        const plot = kit.dialog().querySelector(".crucible-plot");
        const {points} = plan().unet;
        if (!kit.dragged) scale = kit.scaleFor(points.map(([, value]) => value));
        const line = points.map(([place, value]) => `${across(place)},${up(value)}`);
        const [left, right] = [edge(plan().start, 0), edge(plan().stop, 100)];
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

    const handle = () => kit.element("div", {
        className: "crucible-point", tabIndex: 0, attributes: {role: "slider"},
    });

    function drawHandle(made, [place, value], index) {
        made.dataset.index = index;
        made.style.left = `${across(place)}%`;
        made.style.top = `${up(value)}%`;
        const at = plan().unet.shares ? `${Math.round(100 * place)} %` : `${place}`;
        const told = {
            "aria-label": `UNet ${index + 1}`, "aria-valuenow": value,
            "aria-valuetext": `${tags().written(value)} @ ${at}`,
            "aria-valuemin": scale.low, "aria-valuemax": scale.high,
            "aria-orientation": "vertical",
            title: `${tags().written(value)} @ ${at}`,
        };
        for (const [name, text] of Object.entries(told)) made.setAttribute(name, text);
    }

    const placeGrid = () => (plan().unet.shares ? 0.01 : 1);

    // Between its neighbours, on the grid; the last of a curve in steps does not become a share.
    function allowed(place, index) {
        const {points, shares} = plan().unet;
        const gap = placeGrid();
        const low = index ? points[index - 1][0] + gap : 0;
        const high = index < points.length - 1 ? points[index + 1][0] - gap : width();
        const last = !shares && index === points.length - 1;
        const least = last ? Math.max(low, kit.FEWEST_STEPS) : low;
        return kit.between(kit.snapped(place, gap), least, high);
    }

    function movePoint(index, place, value) {
        plan().unet.points[index] = [tags().tidy(allowed(place, index)), value];
        kit.draw();
    }

    function addPoint(place, value) {
        const {unet} = plan();
        const at = kit.snapped(kit.between(place, 0, width()), placeGrid());
        if (unet.points.some((point) => Math.abs(point[0] - at) < placeGrid() / 2)) return -1;
        unet.points = [...unet.points, [at, value]].sort((a, b) => a[0] - b[0]);
        kit.draw();
        return unet.points.findIndex(([other]) => other === at);
    }

    function removePoint(index) {
        const {unet} = plan();
        if (unet.points.length < 2) return;
        const last = index === unet.points.length - 1;
        unet.points = unet.points.filter((_, other) => other !== index);
        // Without its last point a curve in steps could be read as one in shares.
        const end = unet.points.at(-1);
        if (!unet.shares && last && end[0] < kit.FEWEST_STEPS) end[0] = kit.FEWEST_STEPS;
        kit.draw();
        focusPoint(Math.min(index, unet.points.length - 1));
    }

    const focusPoint = (index) =>
        kit.dialog().querySelectorAll(".crucible-point")[index]?.focus();

    function addInWidestGap() {
        const {points} = plan().unet;
        const places = [...new Set([0, ...points.map(([place]) => place), width()])];
        const gaps = places.slice(1).map((place, i) => [place - places[i], i]);
        const [size, at] = gaps.reduce((a, b) => (b[0] > a[0] ? b : a));
        // The ends come first: there the curve begins and ends.
        const has = (place) => points.some((point) => point[0] === place);
        const place = !has(width()) ? width() : !has(0) ? 0 : places[at] + size / 2;
        focusPoint(addPoint(place, curveAt(place)));
    }

    function curveAt(place) {
        const {points} = plan().unet;
        const after = points.findIndex(([other]) => other >= place);
        if (after === 0) return points[0][1];
        if (after < 0) return points.at(-1)[1];
        const [[x0, y0], [x1, y1]] = [points[after - 1], points[after]];
        return kit.snapped(y0 + ((y1 - y0) * (place - x0)) / (x1 - x0), 0.01);
    }

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
        return {place: x * width(), value: kit.snapped(kit.between(value, scale.low, scale.high))};
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
        kit.follow(plot, event, (moved) => {
            const {place, value} = pointed(moved, plot);
            movePoint(index, place, value);
        });
    }

    function keyOnCurve(event) {
        const point = event.target.closest(".crucible-point");
        if (!point || event.ctrlKey || event.altKey || event.metaKey) return;
        const index = Number(point.dataset.index);
        const [place, value] = plan().unet.points[index];
        const side = plan().unet.shares ? kit.GRID : 1;
        const moves = {
            ArrowUp: () => movePoint(index, place, kit.near(value, kit.GRID)),
            ArrowDown: () => movePoint(index, place, kit.near(value, -kit.GRID)),
            ArrowRight: () => movePoint(index, place + side, value),
            ArrowLeft: () => movePoint(index, place - side, value),
            Delete: () => removePoint(index),
            Backspace: () => removePoint(index),
        };
        if (!Object.hasOwn(moves, event.key)) return;
        event.preventDefault();
        moves[event.key]();
    }

    kit.curve = {part, draw};
})();
