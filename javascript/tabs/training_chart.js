// Curves of training runs as SVG: loss raw and smoothed, validation, learning rate on the right;
// runs to compare with, smoothed. What lies under the pointer is told in numbers.
(() => {
    "use strict";
    const SVG = "http://www.w3.org/2000/svg";
    const HEIGHT = 250, LEFT = 54, RIGHT = 62, TOP = 10, BOTTOM = 24;

    function node(name, attributes, ...inside) {
        const made = document.createElementNS(SVG, name);
        for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
        made.append(...inside);
        return made;
    }

    // Exponential moving mean, without the pull to its first value.
    function smoothed(points, weight) {
        let mean = 0, share = 0;
        return points.map(([step, value]) => {
            mean = weight * mean + (1 - weight) * value;
            share = weight * share + (1 - weight);
            return [step, mean / share];
        });
    }

    // Of the points that fall on one pixel, the first, the least, the largest and the last.
    function thinned(points, width) {
        if (points.length <= 4 * width) return points;
        const found = [], per = points.length / width;
        for (let pixel = 0; pixel < width; pixel += 1) {
            const some = points.slice(Math.floor(pixel * per), Math.floor((pixel + 1) * per));
            const places = some.map((_, place) => place).sort((a, b) => some[a][1] - some[b][1]);
            const kept = new Set([0, places[0], places[places.length - 1], some.length - 1]);
            found.push(...[...kept].sort((a, b) => a - b).map((place) => some[place]));
        }
        return found;
    }

    function ticks(least, most, count) {
        const rough = (most - least) / count, power = 10 ** Math.floor(Math.log10(rough));
        const step = [1, 2, 5, 10].map((by) => by * power).find((each) => each >= rough);
        const found = [];
        for (let at = Math.ceil(least / step) * step; at <= most + step / 1e6; at += step) {
            found.push(Math.abs(at) < step / 1e6 ? 0 : at);
        }
        return found;
    }

    const short = (value) => {
        if (value === 0) return "0";
        return Math.abs(value) < 0.001 || Math.abs(value) >= 1e5
            ? value.toExponential(1) : String(Number(value.toPrecision(4)));
    };

    // The range of what is told; of the raw loss its few outliers may lie outside.
    function range(raw, others) {
        const sorted = raw.map(([, value]) => value).sort((a, b) => a - b);
        const cut = Math.floor(sorted.length * 0.02);
        const values = sorted.slice(cut, sorted.length - cut || undefined).concat(
            others.flatMap((points) => points.map(([, value]) => value)));
        let least = values.length ? values[0] : 0, most = values.length ? values[0] : 1;
        for (const value of values) {
            if (value < least) least = value;
            if (value > most) most = value;
        }
        const air = (most - least) * 0.06 || Math.abs(most) * 0.1 || 1;
        return [Math.max(0, least - air), most + air];
    }

    const line = (points, x, y) => points.map(
        ([step, value], place) => `${place ? "L" : "M"}${x(step).toFixed(1)} ${y(value).toFixed(1)}`
    ).join("");

    // The point of the step that is nearest; points are in the order of steps.
    function nearest(points, step) {
        let low = 0, high = points.length - 1;
        while (low < high) {
            const middle = (low + high) >> 1;
            if (points[middle][0] < step) low = middle + 1;
            else high = middle;
        }
        if (low > 0 && step - points[low - 1][0] < points[low][0] - step) low -= 1;
        return points[low];
    }

    // Draws into `place`. told: {loss: [step, loss, rate]…, validation: [step, loss]…, steps};
    // others: [{name, colour, loss}]; hidden: a set of series that are not shown.
    function draw(place, told, others, {weight, hidden}) {
        const width = Math.max(320, place.clientWidth);
        const loss = told.loss.filter(([, value]) => value !== null);
        const main = smoothed(loss, weight);
        const compared = others.map((each) => ({...each, points: smoothed(each.loss, weight)}));
        const on = (name) => !hidden.has(name);
        const series = [
            {name: "Loss", kind: "raw", points: loss, on: on("raw")},
            {name: "Smoothed", kind: "mean", points: main, on: on("mean")},
            {name: "Validation", kind: "held", points: told.validation, on: on("held")},
            ...compared.map((each) => ({
                name: each.name, kind: "other", colour: each.colour, points: each.points, on: true})),
        ].filter((each) => each.on && each.points.length);
        const ends = series.map(({points}) => points[points.length - 1][0]);
        const last = Math.max((told.busy && told.steps) || 1, ...ends);
        const [least, most] = range(
            on("raw") ? loss : [], series.filter(({kind}) => kind !== "raw").map(({points}) => points));
        const right = width - RIGHT, bottom = HEIGHT - BOTTOM;
        const x = (step) => LEFT + (step / last) * (right - LEFT);
        const y = (value) => bottom - ((value - least) / (most - least)) * (bottom - TOP);
        const rates = on("rate") ? loss.map(([step, , rate]) => [step, rate]) : [];
        const top = Math.max(...rates.map(([, rate]) => rate), 0) * 1.06 || 1;
        const z = (rate) => bottom - (rate / top) * (bottom - TOP);

        const svg = node("svg", {
            viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, role: "img",
            "aria-label": "Curves of the run"});
        const clip = `crucible-clip-${place.dataset.chart ?? 0}`;
        svg.append(node("clipPath", {id: clip}, node("rect", {
            x: LEFT - 4, y: TOP - 4, width: right - LEFT + 8, height: bottom - TOP + 8})));
        for (const at of ticks(least, most, 6)) {
            svg.append(node("line", {class: "grid", x1: LEFT, x2: right, y1: y(at), y2: y(at)}),
                node("text", {x: LEFT - 6, y: y(at) + 4, "text-anchor": "end"}, short(at)));
        }
        for (const at of ticks(0, last, Math.max(3, Math.floor(width / 140)))) {
            if (at !== Math.round(at)) continue;
            svg.append(node("text", {x: x(at), y: HEIGHT - 6, "text-anchor": "middle"}, String(at)));
        }
        if (rates.length) {
            for (const at of ticks(0, top, 4)) {
                svg.append(node("text", {class: "rate", x: right + 6, y: z(at) + 4}, short(at)));
            }
        }
        const curves = node("g", {"clip-path": `url(#${clip})`});
        if (rates.length) curves.append(node("path", {class: "rate", d: line(thinned(rates, width), x, z)}));
        for (const {kind, points, colour} of series) {
            const curve = node("path", {class: kind, d: line(thinned(points, width), x, y)});
            if (colour) curve.style.stroke = colour;
            curves.append(curve);
            if (kind === "held") {
                for (const [step, value] of points) {
                    curves.append(node("circle", {class: kind, cx: x(step), cy: y(value), r: 3}));
                }
            }
        }
        svg.append(curves);
        const cross = node("line", {class: "cross", y1: TOP, y2: bottom, x1: -9, x2: -9});
        svg.append(cross);
        const tip = document.createElement("div");
        tip.className = "crucible-chart-tip";
        tip.hidden = true;
        svg.addEventListener("pointermove", (event) => {
            const box = svg.getBoundingClientRect();
            const across = (event.clientX - box.left) * (width / box.width);
            const base = series.find(({kind}) => kind === "mean") ?? series[0];
            if (!base || across < LEFT || across > right) return hide();
            const [step] = nearest(base.points, ((across - LEFT) / (right - LEFT)) * last);
            cross.setAttribute("x1", x(step));
            cross.setAttribute("x2", x(step));
            tip.replaceChildren(row("Step", String(step)));
            for (const {name, kind, colour, points} of series) {
                const [at, value] = nearest(points, step);
                if (kind === "held" && at !== step && Math.abs(at - step) > last / 20) continue;
                tip.append(row(name, short(value), kind, colour));
            }
            if (rates.length) tip.append(row("Learning rate", short(nearest(rates, step)[1]), "rate"));
            tip.hidden = false;
            const left = (x(step) / width) * box.width;
            tip.style.left = `${left > box.width / 2 ? left - tip.offsetWidth - 12 : left + 12}px`;
        });
        function hide() {
            tip.hidden = true;
            cross.setAttribute("x1", -9);
            cross.setAttribute("x2", -9);
        }
        svg.addEventListener("pointerleave", hide);
        place.replaceChildren(svg, tip);
    }

    function row(name, value, kind = "", colour = "") {
        const made = document.createElement("p"), sign = document.createElement("i");
        sign.className = kind;
        if (colour) sign.style.background = colour;
        const word = document.createElement("span"), number = document.createElement("b");
        word.textContent = name;
        number.textContent = value;
        if (kind) made.append(sign);
        made.append(word, number);
        return made;
    }

    window.crucibleChart = {draw, smoothed, nearest};
})();
