// What the scripts for prompt boxes share: where a network tag is, what it says, how it is written
// shortest, and the names that the server knows.
// The grammar is that of extensions_lib/prompts, which alone decides what a tag does.
(() => {
    "use strict";
    if (window.crucible_tags) return;

    // --- the boxes ----------------------------------------------------------------------------

    const inside = (ids) => ids.map((id) => `#${id} textarea`).join();
    // Tags in a negative prompt have no effect in any host; embeddings have.
    const NEGATIVE = inside(
        ["txt2img_neg_prompt", "img2img_neg_prompt", "hires_neg_prompt", "crucible-negative"]);
    const POSITIVE = inside(
        ["txt2img_prompt", "img2img_prompt", "hires_prompt", "crucible-prompt"]);

    const boxOf = (event) => {
        const target = event.composedPath()[0];
        return target instanceof Element && target.matches(`${POSITIVE},${NEGATIVE}`)
            ? target : null;
    };
    const isNegative = (box) => box.matches(NEGATIVE);

    // As if it were typed, so that the browser's undo knows it and gradio hears of it.
    function replace(box, start, end, text, caret = start + text.length) {
        box.focus();
        box.setSelectionRange(start, end);
        const command = text ? "insertText" : "delete";
        if (start !== end || text) {
            if (!document.execCommand(command, false, text)) {
                box.setRangeText(text, start, end, "end");
                box.dispatchEvent(new Event("input", {bubbles: true}));
            }
        }
        box.setSelectionRange(caret, caret);
    }

    // --- where tags are -----------------------------------------------------------------------

    // Those of lbwe=blocks:elements:weight,… are one.
    const isOpen = (item) =>
        item?.startsWith("lbwe=") && item.split(",").at(-1).split(":").length < 3;
    const wholeItems = (items) => items.reduce((whole, item) => {
        if (isOpen(whole.at(-1)) && !item.includes("=")) item = `${whole.pop()}:${item}`;
        return [...whole, item];
    }, []);

    function itemsOf(text, start) {
        let place = start;
        return wholeItems(text.split(":")).map((item) => {
            const equals = item.indexOf("=");
            const named = equals >= 0 && !item.includes("=", equals + 1);
            const made = {
                text: item,
                key: named ? item.slice(0, equals) : null,
                value: named ? item.slice(equals + 1) : item,
                start: place + (named ? equals + 1 : 0), // of the value
                end: place + item.length,
            };
            place = made.end + 1;
            return made;
        });
    }

    function tagsIn(text) {
        const found = [];
        const opening = /<([\p{L}\p{N}_]+):/gu;
        for (let match = opening.exec(text); match; match = opening.exec(text)) {
            const first = opening.lastIndex;
            const close = text.indexOf(">", first);
            if (close < 0) break;
            opening.lastIndex = close === first ? close : close + 1;
            if (close === first) continue;
            const [name, ...items] = itemsOf(text.slice(first, close), first);
            found.push({
                kind: match[1],
                name: name.text,
                items,
                text: text.slice(match.index, close + 1),
                start: match.index,
                end: close + 1,
            });
        }
        return found;
    }

    const tagAt = (text, caret) => tagsIn(text).find((t) => t.start < caret && caret < t.end);
    const isLora = (tag) => tag.kind === "lora" || tag.kind === "lyco";

    // --- numbers and curves -------------------------------------------------------------------

    class Mistake extends Error {}

    function number(text) {
        if (!/^\s*[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?\s*$/i.test(text)) {
            throw new Mistake(`${text} is not a number`);
        }
        return Number(text);
    }

    // Sums of tenths are not quite what they should be: 0.1 + 0.2.
    const tidy = (value) => Number(value.toPrecision(12)) + 0;
    const written = (value) => String(tidy(value));

    // {points: [[place, value], …], shares}
    function readCurve(text) {
        const parts = text.split(/[,;]/);
        const points = parts.map((part, index) => {
            const [value, place, ...more] = part.split(/[@~]/);
            if (more.length) throw new Mistake(`${part} has more than one position`);
            const spread = parts.length > 1 ? index / (parts.length - 1) : 0;
            return [place === undefined ? spread : number(place), number(value)];
        });
        if (points.some(([place], i) => i && place <= points[i - 1][0]) || points[0][0] < 0) {
            throw new Mistake(`the positions of ${text} do not rise`);
        }
        return {points, shares: points.at(-1)[0] <= 1};
    }

    const first = (curve) => curve.points[0][1];
    const changing = (curve) => curve.points.some(([, value]) => value !== first(curve));

    // Without the points that a straight line goes through anyway.
    function plainer(curve) {
        const on = ([x0, y0], [x1, y1], [x2, y2]) =>
            Math.abs(y0 + ((y2 - y0) * (x1 - x0)) / (x2 - x0) - y1) < 1e-9;
        const points = curve.points.filter(([, y], i, all) => {
            if (i === 0) return all.length < 2 || all[1][1] !== y;
            if (i === all.length - 1) return all[i - 1][1] !== y;
            return !on(all[i - 1], all[i], all[i + 1]);
        });
        // The last position tells shares from steps.
        const same = points.length > 0 && points.at(-1)[0] <= 1 === curve.shares;
        return same && points.length < curve.points.length ? plainer({...curve, points}) : curve;
    }

    // With every position, although evenly spread ones may be left out: others read them otherwise.
    function writeCurve(curve) {
        if (!changing(curve)) return written(first(curve));
        return plainer(curve).points.map(([x, y]) => `${written(y)}@${written(x)}`).join();
    }

    // --- block weights ------------------------------------------------------------------------

    const SIDE = 12; // blocks on the longer sides
    const named = (side, count = SIDE) =>
        [...Array(count).keys()].map((i) => `${side}${String(i).padStart(2, "0")}`);
    const ALL = ["BASE", ...named("IN"), "M00", ...named("OUT")];

    // Blocks that a list leaves out have the weight of a neighbour.
    function filled(names, values) {
        const given = new Map(names.map((name, i) => [name, values[i]]));
        const weights = new Map([["BASE", given.get("BASE")], ["M00", given.get("M00")]]);
        for (const side of ["IN", "OUT"]) {
            const listed = names.filter((name) => name.startsWith(side));
            for (const name of named(side)) {
                const before = listed.filter((other) => other <= name);
                weights.set(name, given.get(before.length ? before.at(-1) : listed[0]));
            }
        }
        return weights;
    }

    function blockValue(text, x) {
        const match = /^X(?:([+-])(\d*\.?\d+))?$/.exec(text.toUpperCase());
        if (!match) return number(text);
        if (x === null) throw new Mistake(`${text} needs x=`);
        const more = Number(match[2] ?? 0);
        return x + (match[1] === "-" ? -more : more);
    }

    // What follows lbw= as a Map from block to weight. Random values (R, U) are a Mistake here.
    function readBlocks(text, x, known) {
        const wanted = text.trim().toUpperCase();
        const preset = Object.keys(known.presets).find((name) => name.toUpperCase() === wanted);
        const values = (preset ? known.presets[preset] : text).split(",").map((v) => v.trim());
        const names = known.lists[values.length];
        if (!names) throw new Mistake(`${text} is no list of blocks`);
        return filled(names, values.map((value) => blockValue(value, x)));
    }

    function readSides(sides) {
        const weights = new Map(ALL.map((name) => [name, 1]));
        for (const [side, text] of sides) {
            const values = text.split(",").map((value) => blockValue(value.trim(), null));
            const few = side === "mid" ? [1] : [1, 9, SIDE];
            if (!few.includes(values.length)) throw new Mistake(`${side} has other blocks`);
            const names = side === "mid" ? ["M00"]
                : named(side.toUpperCase(), values.length === 1 ? SIDE : values.length);
            names.forEach((name, i) => weights.set(name, values[values.length === 1 ? 0 : i]));
        }
        return weights;
    }

    const alike = (one, other, names) =>
        names.every((name) => Math.abs(one.get(name) - other.get(name)) < 1e-9);

    // --- a tag as a whole ---------------------------------------------------------------------

    const POSITIONS = ["te", "unet", "dyn"];

    // What a tag says. `kept` are arguments that are not understood here: they stay as they are.
    function read(tag, known) {
        const keyed = new Map(tag.items.filter((i) => i.key !== null).map((i) => [i.key, i.value]));
        const plain = tag.items.filter((item) => item.key === null).map((item) => item.text);
        const lost = plain.slice(POSITIONS.length); // without meaning, and nowhere to stand
        const kept = [];
        const said = (key) => {
            const text = keyed.get(key) ?? plain[POSITIONS.indexOf(key)];
            keyed.delete(key);
            return text;
        };
        const tried = (key, reader, otherwise) => {
            const text = said(key);
            try {
                return text === undefined ? otherwise : reader(text);
            } catch (mistake) {
                kept.push(`${key}=${text}`);
                return otherwise;
            }
        };
        const te = tried("te", readCurve, readCurve("1"));
        const unet = tried("unet", readCurve, te);
        const both = tried("hr", readCurve, null);
        const hrte = tried("hrte", readCurve, both);
        return {
            kind: tag.kind,
            name: tag.name,
            te: first(te), // the text encoder runs once, before the first step
            unet,
            dyn: tried("dyn", rank, null),
            hrte: hrte && first(hrte),
            hrunet: tried("hrunet", readCurve, both),
            ...readSpan(said, kept),
            blocks: readAnyBlocks(said, kept, known),
            kept: [...kept, ...[...keyed].map(([key, value]) => `${key}=${value}`)],
            lost,
        };
    }

    function rank(text) {
        if (!/^\s*\+?0*[1-9]\d*\s*$/.test(text)) throw new Mistake(`${text} is no rank`);
        return Number(text);
    }

    function place(text) {
        if (text === undefined || text === "") return null;
        if (number(text) < 0) throw new Mistake(`${text} is below 0`);
        return number(text);
    }

    function readSpan(said, kept) {
        let [start, stop] = [said("start"), said("stop")];
        const span = said("step");
        try {
            if (span !== undefined) {
                const dash = span.indexOf("-");
                if (dash < 0) throw new Mistake(`${span} is not of the form 5-15`);
                [start, stop] = [span.slice(0, dash), span.slice(dash + 1)];
            }
            return {start: place(start), stop: place(stop)};
        } catch (mistake) {
            const texts = span === undefined ? {start, stop} : {step: span};
            for (const [key, text] of Object.entries(texts)) {
                if (text !== undefined) kept.push(`${key}=${text}`);
            }
            return {start: null, stop: null};
        }
    }

    function readAnyBlocks(said, kept, known) {
        const [lbw, x] = [said("lbw"), said("x")];
        const sides = ["in", "mid", "out"].map((side) => [side, said(side)])
            .filter(([, text]) => text !== undefined);
        try {
            if (lbw !== undefined) return readBlocks(lbw, x === undefined ? null : place(x), known);
            return readSides(sides);
        } catch (mistake) {
            const texts = lbw === undefined ? sides : [["lbw", lbw], ["x", x]];
            kept.push(...texts.filter(([, t]) => t !== undefined).map(([k, t]) => `${k}=${t}`));
            return null; // a random choice, or nothing readable
        }
    }

    const shortest = (texts) => texts.reduce((a, b) => (b.length < a.length ? b : a));

    function weights(plan) {
        const [te, unet] = [written(plan.te), writeCurve(plan.unet)];
        // Never without a number, although it may be left out: others look for it.
        const heads = first(plan.unet) === plan.te ? [unet, `${te}:${unet}`] : [`${te}:${unet}`];
        if (plan.dyn === null) return shortest(heads);
        return shortest([...heads.map((head) => `${head}:dyn=${plan.dyn}`),
            `${te}:${unet}:${plan.dyn}`]);
    }

    function hires({hrte, hrunet}) {
        if (hrte === null && hrunet === null) return [];
        if (hrunet === null) return [`hrte=${written(hrte)}`];
        const unet = writeCurve(hrunet);
        if (hrte === null) return [`hrunet=${unet}`];
        return [hrte === first(hrunet) ? `hr=${unet}` : `hr=${written(hrte)}:hrunet=${unet}`];
    }

    function span({start, stop}) {
        const [from, to] = [start ? written(start) : "", stop === null ? "" : written(stop)];
        if (from && to && !from.includes("-")) return [`step=${from}-${to}`];
        return [from && `start=${from}`, to && `stop=${to}`].filter(Boolean);
    }

    function blocks(weights, known, names) {
        if (!weights || names.every((name) => weights.get(name) === 1)) return [];
        const texts = Object.keys(known.presets)
            .filter((preset) => same(() => readBlocks(preset, null, known), weights, names))
            .map((preset) => `lbw=${preset}`);
        for (const list of Object.values(known.lists)) {
            const values = list.map((name) => weights.get(name));
            if (alike(filled(list, values), weights, names)) {
                texts.push(`lbw=${values.map(written).join()}`);
            }
        }
        return [shortest([...texts, ...sides(weights, names)])];
    }

    function same(reader, weights, names) {
        try {
            return alike(reader(), weights, names);
        } catch (random) {
            return false;
        }
    }

    // in= mid= out=, where the text encoder's own weight is 1.
    function sides(weights, names) {
        if (weights.get("BASE") !== 1) return [];
        const parts = [["in", "IN"], ["mid", "M"], ["out", "OUT"]].map(([key, side]) => {
            const values = names.filter((name) => name.startsWith(side))
                .map((name) => weights.get(name));
            if (values.every((value) => value === 1)) return "";
            const one = values.every((value) => value === values[0]);
            return `${key}=${(one ? values.slice(0, 1) : values).map(written).join()}`;
        });
        return [parts.filter(Boolean).join(":")];
    }

    // The shortest tag that says the same about the blocks `names` (all, if not given), among those
    // that other readers of such tags understand.
    function write(plan, known, names = ALL) {
        return `<${[
            plan.kind,
            plan.name,
            weights(plan),
            ...blocks(plan.blocks, known, names),
            ...span(plan),
            ...hires(plan),
            ...plan.kept,
        ].join(":")}>`;
    }

    // --- the names that the server knows ------------------------------------------------------

    const FRESH = 10_000; // ms
    let known = null;
    let asked = -Infinity;
    let asking = null;

    async function ask() {
        asked = performance.now();
        try {
            const stamp = known ? `?have=${known.stamp}` : "";
            const answer = await fetch(`./crucible/completions${stamp}`);
            if (!answer.ok) throw new Error(`${answer.status} ${answer.statusText}`);
            const told = await answer.json();
            if (!told.same) known = told;
        } catch (reason) {
            console.info("Crucible cannot complete names now.", reason);
        }
        asking = null;
        return known;
    }

    // What is known now (null: nothing yet); `news` is called if an answer comes later.
    function names(news) {
        if (performance.now() - asked > FRESH) asking = ask();
        if (asking && news) {
            const before = known;
            asking.then((now) => now && now !== before && news(now));
        }
        return known;
    }

    // What is known, once it is known; null if there is no answer.
    const answer = async () => names() ?? asking ?? ask();

    window.crucible_tags = {
        ALL, Mistake, alike, answer, boxOf, filled, isLora, isNegative, names, number, rank, read,
        readBlocks, readCurve, replace, tagAt, tagsIn, tidy, write, writeCurve, written,
    };
})();
