// Ctrl+Up and Ctrl+Down (Cmd on a Mac) change the weight under the caret: that of a network tag,
// with all its arguments, and in the standalone page, where no WebUI does it, that of (a word:1.1).
(() => {
    "use strict";
    const STEP = 0.1;
    const ours = Boolean(window.crucible_page);
    const tags = () => window.crucible_tags;
    const WEIGHTS = ["te", "unet", "hr", "hrte", "hrunet"];
    const NUMBER = /[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?/gi;

    const option = (name) => {
        const value = ours || typeof window.opts !== "object" ? undefined : window.opts?.[name];
        return typeof value === "number" && value > 0 ? value : STEP;
    };

    // --- network tags -------------------------------------------------------------------------

    // <lora:name:0.8> has nothing that the WebUI's own keys would not change as well.
    const isPlain = (tag) => tag.items.length < 2 && (tag.items[0]?.key ?? null) === null
        && /^[\d.+-]*$/.test(tag.items[0]?.text ?? "");

    function numbersIn(text, start) {
        return [...text.matchAll(NUMBER)].map((match) => ({
            start: start + match.index,
            end: start + match.index + match[0].length,
        }));
    }

    const around = (spots, caret) =>
        spots.find((spot) => spot.start <= caret && caret <= spot.end);

    // The parts of a list, of each the value alone: in 0.5@0.2 the place stays.
    function valueAt(item, caret) {
        let start = item.start;
        for (const part of item.value.split(/[,;]/)) {
            const end = start + part.length;
            if (caret <= end) return numbersIn(part.split(/[@~]/)[0], start)[0];
            start = end + 1;
        }
        return undefined;
    }

    const oneWeight = (tag) => tag.kind === "hypernet" || tag.kind === "lllite";

    // The number that the keys change, and how much it changes by; undefined if there is none.
    function target(tag, caret) {
        const at = tag.items.findLast((item) => caret >= item.end - item.text.length);
        if (!at) return weightOf(tag);
        const place = tag.items.filter((item) => item.key === null).indexOf(at);
        const key = at.key ?? (oneWeight(tag) ? "te" : ["te", "unet", "dyn"][place]);
        const inside = Math.max(caret, at.start);
        if (key === "dyn") return {...numbersIn(at.value, at.start)[0], delta: 1, least: 1};
        if (["start", "stop", "step"].includes(key)) {
            const spot = around(stepsIn(at), inside);
            return spot && {...spot, delta: spot.value < 1 ? 0.05 : 1, least: 0};
        }
        const spot = WEIGHTS.includes(key) || ["lbw", "in", "mid", "out", "x"].includes(key)
            ? valueAt(at, inside) : undefined;
        return spot && {...spot, delta: option("keyedit_precision_extra")};
    }

    // Positive numbers: the dash of 5-15 is no sign.
    const stepsIn = (item) => [...item.value.matchAll(/\d+\.?\d*|\.\d+/g)].map((match) => ({
        start: item.start + match.index,
        end: item.start + match.index + match[0].length,
        value: Number(match[0]),
    }));

    // With the caret in the name: the first weight, which is written if it is not there yet.
    function weightOf(tag) {
        const delta = option("keyedit_precision_extra");
        const item = tag.items.find((each) => each.key === null || each.key === "te");
        if (item) return {...valueAt(item, item.start), delta};
        const end = tag.start + 1 + tag.kind.length + 1 + tag.name.length;
        return {start: end, end, before: ":", value: 1, delta};
    }

    function changeTag(box, tag, sign) {
        const caret = box.selectionStart;
        const found = target(tag, caret);
        if (found?.start === undefined) return;
        const text = box.value.slice(found.start, found.end);
        const value = found.value ?? Number(text);
        const changed = Math.max(found.least ?? -Infinity, value + sign * found.delta);
        const number = (found.before ?? "") + tags().written(changed);
        const end = found.start + number.length;
        tags().replace(box, found.start, found.end, number, caretAfter(caret, found, end));
    }

    // The caret stays in what it was in.
    function caretAfter(caret, found, end) {
        if (found.before || caret < found.start) return found.before ? end : caret;
        return caret <= found.end ? end : caret + end - found.end;
    }

    // --- (words:1.1) --------------------------------------------------------------------------

    const PAIRS = {"(": ")", "[": "]"};
    const isEscaped = (text, place) => /(?:^|[^\\])(?:\\\\)*\\$/.test(text.slice(0, place));

    // The innermost brackets around the caret, as {start, end} of what is in them.
    function brackets(text, caret) {
        for (let start = caret - 1, depth = 0; start >= 0; start--) {
            const sign = text[start];
            if (isEscaped(text, start)) continue;
            if (sign === ")" || sign === "]") depth++;
            else if (sign in PAIRS && depth) depth--;
            else if (sign in PAIRS) return closed(text, start);
        }
        return null;
    }

    function closed(text, start) {
        for (let end = start + 1, depth = 0; end < text.length; end++) {
            if (isEscaped(text, end)) continue;
            if (text[end] in PAIRS) depth++;
            else if (")]".includes(text[end]) && depth) depth--;
            else if (text[end] === PAIRS[text[start]]) return {start: start + 1, end};
            else if (")]".includes(text[end])) return null;
        }
        return null;
    }

    function wordAt(text, caret) {
        const [before] = /[^\s,.;:<>()[\]{}|/\\!?]*$/.exec(text.slice(0, caret));
        const [after] = /^[^\s,.;:<>()[\]{}|/\\!?]*/.exec(text.slice(caret));
        return {start: caret - before.length, end: caret + after.length};
    }

    const trimmed = (text, {start, end}) => {
        const inside = text.slice(start, end);
        const lead = inside.length - inside.trimStart().length;
        return {start: start + lead, end: start + lead + inside.trim().length};
    };

    // What is weighed: the marked text, or what is in the brackets, or the word.
    function weighed(box) {
        const {value: text, selectionStart: start, selectionEnd: end} = box;
        const around = brackets(text, start);
        if (start === end) return around ?? wordAt(text, start);
        const marked = trimmed(text, {start, end});
        const rest = around && text.slice(marked.end, around.end);
        const whole = around?.start === marked.start && /^(:-?[\d.]+)?$/.test(rest);
        return whole ? around : marked;
    }

    function changeAttention(box, sign) {
        const text = box.value;
        const {start, end} = weighed(box);
        if (start === end) return;
        let [from, to, weight] = [start, end, 1];
        let inside = text.slice(start, end);
        const open = text[start - 1];
        const isIn = open in PAIRS && text[end] === PAIRS[open] && !isEscaped(text, start - 1);
        const stated = isIn && open === "(" && /^([^]*):(-?(?:\d+\.?\d*|\.\d+))$/.exec(inside);
        // Alternatives and schedules use square brackets: [a|b], [a:b:0.5].
        if (isIn && open === "[" && /[|:]/.test(inside)) return;
        if (stated) {
            [inside, weight, from, to] = [stated[1], Number(stated[2]), start - 1, end + 1];
        } else if (isIn) {
            while (text[from - 1] === open && text[to] === PAIRS[open]) {
                [from, to] = [from - 1, to + 1];
                weight *= open === "(" ? 1.1 : 1 / 1.1;
            }
        }
        weight = tags().tidy(Math.round((weight + sign * STEP) * 1e6) / 1e6);
        if (!stated) weight = Math.round(weight * 10) / 10;
        const number = Number.isInteger(weight) ? weight.toFixed(1) : String(weight);
        tags().replace(box, from, to, weight === 1 ? inside : `(${inside}:${number})`);
        const first = from + (weight === 1 ? 0 : 1);
        box.setSelectionRange(first, first + inside.length);
    }

    // --- keys ---------------------------------------------------------------------------------

    document.addEventListener("keydown", (event) => {
        const sign = {ArrowUp: 1, ArrowDown: -1}[event.key];
        const box = sign && (event.ctrlKey || event.metaKey) && tags()?.boxOf(event);
        if (!box || event.altKey || event.shiftKey) return;
        const tag = tags().tagAt(box.value, box.selectionStart);
        const isOurs = tag && (tags().isLora(tag) || oneWeight(tag));
        if (isOurs ? !ours && isPlain(tag) : !ours) return; // the WebUI's own keys do it
        event.preventDefault();
        event.stopPropagation();
        if (isOurs) changeTag(box, tag, sign);
        else if (!tag) changeAttention(box, sign);
    }, true);
})();
