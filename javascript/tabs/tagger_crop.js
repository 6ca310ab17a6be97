// The box over a picture by which it is cropped by hand: drawn, moved, stretched, with keys too.
(() => {
    "use strict";
    const LEAST = 0.02; // of the picture's sides
    let drag = null;

    const boxOf = (crop) => (crop.dataset.box ? crop.dataset.box.split(",").map(Number) : null);
    const within = (value) => Math.min(1, Math.max(0, value));

    function show(crop) {
        const [left, top, right, bottom] = boxOf(crop) ?? [0, 0, 0, 0];
        const box = crop.querySelector(".crucible-crop-box");
        box.hidden = right - left < LEAST || bottom - top < LEAST;
        const share = (value) => `${value * 100}%`;
        Object.assign(box.style, {
            left: share(left), top: share(top), width: share(right - left), height: share(bottom - top),
        });
    }

    function set(crop, box) {
        crop.dataset.box = box.join(",");
        show(crop);
    }

    function tell(crop) {
        const [left, top, right, bottom] = boxOf(crop);
        if (right - left < LEAST || bottom - top < LEAST) return;
        window.crucibleTagger.tell(window.crucibleTagger.wireOf(crop), {
            do: "crop", value: crop.dataset.value, box: [left, top, right, bottom], newest: true});
    }

    // A box from one corner to the pointer; square, where the pictures become square.
    function stretched(crop, from, to) {
        let [x, y] = to;
        if (crop.dataset.ratio) {
            const {width, height} = crop.dataset;
            const room = [x > from[0] ? 1 - from[0] : from[0], y > from[1] ? 1 - from[1] : from[1]];
            const side = Math.min(
                Math.max(Math.abs(x - from[0]) * width, Math.abs(y - from[1]) * height),
                room[0] * width, room[1] * height);
            x = from[0] + Math.sign(x - from[0] || 1) * side / width;
            y = from[1] + Math.sign(y - from[1] || 1) * side / height;
        }
        return [Math.min(from[0], x), Math.min(from[1], y), Math.max(from[0], x), Math.max(from[1], y)];
    }

    function moved(box, by) {
        const dx = Math.min(1 - box[2], Math.max(-box[0], by[0]));
        const dy = Math.min(1 - box[3], Math.max(-box[1], by[1]));
        return [box[0] + dx, box[1] + dy, box[2] + dx, box[3] + dy];
    }

    function place(event) {
        const area = drag.crop.getBoundingClientRect();
        return [within((event.clientX - area.left) / area.width),
            within((event.clientY - area.top) / area.height)];
    }

    document.addEventListener("pointerdown", (event) => {
        const crop = event.target.closest?.(".crucible-crop");
        if (!crop || event.button) return;
        event.preventDefault();
        crop.focus({preventScroll: true});
        drag = {crop};
        const at = place(event);
        const box = boxOf(crop);
        const handle = event.target.closest(".crucible-crop-box i");
        if (handle) {
            // top left, top right, bottom left, bottom right: the corner across stays
            const corner = [...handle.parentElement.children].indexOf(handle);
            drag.from = [box[corner % 2 ? 0 : 2], box[corner < 2 ? 3 : 1]];
        } else if (event.target.closest(".crucible-crop-box")) Object.assign(drag, {box, at});
        else drag.from = at;
    });

    document.addEventListener("pointermove", (event) => {
        if (!drag) return;
        const at = place(event);
        const {crop, from, box} = drag;
        if (from) set(crop, stretched(crop, from, at));
        else set(crop, moved(box, [at[0] - drag.at[0], at[1] - drag.at[1]]));
        drag.changed = true;
    });

    document.addEventListener("pointerup", () => {
        if (drag?.changed) tell(drag.crop);
        drag = null;
    });

    const STEPS = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
    document.addEventListener("keydown", (event) => {
        const crop = event.target.closest?.(".crucible-crop");
        if (!crop || !STEPS[event.key]) return;
        event.preventDefault();
        const box = boxOf(crop) ?? [0.1, 0.1, 0.9, 0.9];
        const by = STEPS[event.key].map((step) => step * 0.01);
        if (event.shiftKey) set(crop, [box[0], box[1], within(box[2] + by[0]), within(box[3] + by[1])]);
        else set(crop, moved(box, by));
        tell(crop);
    });

    let seen = null;
    new MutationObserver(() => {
        const crop = document.querySelector(".crucible-crop");
        if (crop === seen) return;
        const again = seen !== null && crop !== null && document.activeElement === document.body;
        const opened = crop?.dataset.value !== seen?.dataset.value;
        seen = crop;
        if (crop && opened) crop.closest(".crucible-cropper").scrollIntoView({block: "nearest"});
        if (crop) show(crop);
        if (again) crop.focus({preventScroll: true});
    }).observe(document.documentElement, {childList: true, subtree: true});
})();
